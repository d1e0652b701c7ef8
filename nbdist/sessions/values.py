"""Values that came from the ranks, as the notebook holds them.

A tensor becomes a `RankTensor`: a NumPy array that remembers its torch type. So the notebook kernel
needs no torch until someone calls `RankTensor.torch`.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nbdist.errors import RankError
from nbdist.packing import TensorBytes

Unpacker = Callable[[Mapping[str, Any], list[memoryview]], Any]

# torch's name: (exponent bits, mantissa bits, exponent bias, has infinities, minus zero is NaN)
FLOAT8 = {
    "float8_e4m3fn": (4, 3, 7, False, False),
    "float8_e5m2": (5, 2, 15, True, False),
    "float8_e4m3fnuz": (4, 3, 8, False, True),
    "float8_e5m2fnuz": (5, 2, 16, False, True),
}


WIDENED = frozenset({"bfloat16", *FLOAT8})  # torch's names of the types that NumPy does not have


class RankTensor(np.ndarray[Any, Any]):
    """A tensor of a rank as a NumPy array.

    ``bfloat16`` and 8-bit floats, which NumPy does not have, are widened to ``float32``, which
    loses nothing.

    Attributes:
        torch_dtype: torch's name of the type: ``bfloat16``.
        device: Where the tensor was: ``cuda:1``.
    """

    torch_dtype: str
    _device: str

    @property
    def device(self) -> str:  # type: ignore[override]  # NumPy's own says "cpu", always
        """Where the tensor was."""
        return self._device

    def __array_finalize__(self, source: Any) -> None:
        """Keep the torch type through slices and copies."""
        self.torch_dtype = getattr(source, "torch_dtype", str(self.dtype))
        self._device = str(getattr(source, "device", "cpu"))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return results of arithmetic as plain NumPy: they are the notebook's own."""
        plain = np.asarray(array)
        return plain[()] if return_scalar or plain.ndim == 0 else plain

    def torch(self) -> Any:
        """Return it as a CPU tensor of its true type. Imports torch.

        Returns:
            A ``torch.Tensor`` of the same shape that owns its memory.
        """
        torch = importlib.import_module("torch")
        plain = torch.from_numpy(np.array(self, copy=True, subok=False))
        return plain.to(getattr(torch, self.torch_dtype))

    def nbdist_tensor_bytes(self) -> TensorBytes:
        """Return it as bytes, for the way back to the ranks."""
        data = memoryview(np.ascontiguousarray(self).tobytes())
        is_widened = self.torch_dtype in WIDENED
        return TensorBytes(data, self.torch_dtype, self.shape, self.device, is_widened=is_widened)


def tensor_from(source: TensorBytes) -> RankTensor:
    """Return the array over the bytes of *source*.

    Raises:
        TypeError: NumPy does not have its type, and it cannot be widened either.
    """
    if source.dtype == "bfloat16":
        raw = np.frombuffer(source.data, dtype=np.uint16)
        array = (raw.astype(np.uint32) << 16).view(np.float32)
    elif source.dtype in FLOAT8:
        array = float8_table(source.dtype)[np.frombuffer(source.data, dtype=np.uint8)]
    else:
        array = np.frombuffer(source.data, dtype=source.dtype)
    tensor = array.reshape(source.shape).view(RankTensor)
    tensor.torch_dtype, tensor._device = source.dtype, source.device
    return tensor


def float8_table(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the 256 values of an 8-bit float type as ``float32``, shape ``(256,)``.

    Source: "FP8 Formats for Deep Learning" (2022), and "8-bit Numerical Formats for DNNs" (2022)
    for the ``fnuz`` variants.
    """
    exponent_bits, mantissa_bits, bias, has_infinities, is_fnuz = FLOAT8[name]
    codes = np.arange(256)
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = codes & (2**mantissa_bits - 1)
    fraction = mantissa / 2**mantissa_bits
    normal = np.ldexp(1 + fraction, exponent - bias)
    values = sign * np.where(exponent == 0, np.ldexp(fraction, 1 - bias), normal)
    highest = 2**exponent_bits - 1
    if is_fnuz:
        values[0x80] = np.nan
    elif has_infinities:
        values = np.where(
            exponent == highest, np.where(mantissa == 0, sign * np.inf, np.nan), values
        )
    else:
        values[(exponent == highest) & (mantissa == 2**mantissa_bits - 1)] = np.nan
    table: np.ndarray[Any, np.dtype[np.float32]] = values.astype(np.float32)
    return table


class RankValues:
    """One value per rank: ``values[2]`` is that of rank 2; iteration goes through the values.

    Args:
        by_rank: The values, by rank.
    """

    def __init__(self, by_rank: Mapping[int, Any]) -> None:
        self._by_rank = dict(sorted(by_rank.items()))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks there are values of, ascending."""
        return tuple(self._by_rank)

    def __getitem__(self, rank: int) -> Any:
        """Return the value of *rank*.

        Raises:
            RankError: There is none of that rank.
        """
        try:
            return self._by_rank[rank]
        except KeyError:
            have = ", ".join(map(str, self.ranks)) or "none"
            raise RankError(
                f"There is no value of rank {rank}; there are those of: {have}."
            ) from None

    def __iter__(self) -> Iterator[Any]:
        """Go through the values in rank order (not through the ranks, as a dict would)."""
        return iter(self._by_rank.values())

    def __len__(self) -> int:
        return len(self._by_rank)

    def keys(self) -> Any:
        """Return the ranks."""
        return self._by_rank.keys()

    def items(self) -> Any:
        """Return (rank, value) pairs."""
        return self._by_rank.items()

    def values(self) -> Any:
        """Return the values in rank order."""
        return self._by_rank.values()

    def stack(self) -> np.ndarray[Any, Any]:
        """Return the values as one array of shape ``(ranks, *)``; all must have one shape ``(*)``.

        Raises:
            ValueError: Their shapes differ.
        """
        return np.stack([np.asarray(value) for value in self])

    def mean(self) -> Any:
        """Return the mean over the ranks, elementwise: a float for numbers, else shape ``(*)``."""
        if all(isinstance(value, (int, float)) for value in self):
            return statistics.fmean(self)
        return self.stack().mean(axis=0)

    def __repr__(self) -> str:
        width = len(str(max(self.ranks, default=0)))
        return "\n".join(f"rank {rank:>{width}}: {describe(value)}" for rank, value in self.items())


def describe(value: Any) -> str:
    """Return a value in one line: shape, type and device of a tensor, else its ``repr``."""
    if isinstance(value, RankTensor):
        if value.ndim == 0:
            return f"{value[()]} ({value.torch_dtype}, {value.device})"
        return f"tensor {tuple(value.shape)} {value.torch_dtype} {value.device}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
