"""Pack values for the way between notebook and ranks; big parts are not copied into a pickle.

    value ──▶ pickle (protocol 5) + tensors and arrays as raw bytes ──▶ header, buffers
                                     └─ large ones: a file in shared memory, named in the header

Both sides import this module; it never imports torch, it only recognises what torch made. Nothing
here is unpickled unless it came over ipyparallel's signed channels, or lies in a file of this user
that no one else could write to.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import pickle
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbdist import private
from nbdist.errors import NotPrivate, TransferError
from nbdist.pushing import Definitions, RankNamespace
from nbdist.sizes import describe_size

INLINE_BYTES = 64 * 2**10  # what is larger goes through a file on one host
_DRAFT = ".part"
_NAMESPACE = "namespace"  # as a persistent id, beside the numbers of tensors
MakeTensor = Callable[["TensorBytes"], Any]


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as raw bytes.

    Attributes:
        data: Its elements in row-major order.
        dtype: torch's name without the prefix: ``bfloat16``.
        shape: Its shape; ``()`` for a scalar.
        device: Where it was: ``cuda:1``.
        is_widened: The data is ``float32``, to be narrowed to *dtype* by the receiver.
        requires_grad: It is a leaf that gets gradients.
        is_parameter: It is a parameter of a module.
    """

    data: memoryview
    dtype: str
    shape: tuple[int, ...]
    device: str
    is_widened: bool = False
    requires_grad: bool = False
    is_parameter: bool = False


@dataclass(frozen=True)
class Packed:
    """A value on its way: a JSON header and the raw buffers that travel with it."""

    header: dict[str, Any]
    buffers: list[bytes]
    files: tuple[Path, ...] = ()


class ValueFolder:
    """Where large values lie while they pass from one process to another of the same host.

    Args:
        shared: A private folder in shared memory, or again *spill*.
        spill: A folder on disk, for when shared memory is too small.
        writer: Who writes here: ``rank3``. With *request* it tells files apart of which nobody
            knows because their writer was killed.
        request: What asks for the values.
    """

    def __init__(
        self, shared: Path, spill: Path, writer: str = "notebook", request: str = "-"
    ) -> None:
        self._shared = shared
        self._spill = spill
        self._writer, self._request = writer, request

    def asked_by(self, request: str) -> ValueFolder:
        """Return the same folder, for the values that *request* asks for."""
        return ValueFolder(self._shared, self._spill, self._writer, request)

    def write(self, data: memoryview) -> Path:
        """Write *data* to a new file, readable by this user only: a draft, until `keep`."""
        name = f"{secrets.token_hex(8)}.{self._writer}.{self._request}{_DRAFT}"
        path = self.for_size(data.nbytes) / name
        fd = private.create_file(path)
        try:
            rest = data.cast("B")  # written, not mapped: a full /dev/shm is an error, not a SIGBUS
            while rest:
                rest = rest[os.write(fd, rest) :]
        except BaseException as exc:
            path.unlink()
            if not isinstance(exc, OSError):
                raise
            raise TransferError(
                f"{path.parent} has no room for {describe_size(data.nbytes)}: {exc.strerror}.\n"
                "Pull a part of the value, or free space there."
            ) from exc
        finally:
            os.close(fd)
        return path

    def keep(self, drafts: Iterable[Path]) -> tuple[Path, ...]:
        """Give the files of a whole value the names by which they are asked for."""
        return tuple(draft.rename(_without_ending(draft)) for draft in drafts)

    def discard_drafts(self, writer: str) -> None:
        """Delete what *writer*, which has ended, was writing: nobody will ever ask for it."""
        self._discard(f"*.{writer}.*{_DRAFT}")

    def discard_values(self, writer: str, request: str) -> None:
        """Delete what *writer*, which has ended, has written for *request* and not told of."""
        self._discard(f"*.{writer}.{request}")
        self._discard(f"*.{writer}.{request}{_DRAFT}")

    def _discard(self, pattern: str) -> None:
        for folder in {self._shared, self._spill}:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)

    def for_size(self, size_bytes: int) -> Path:
        """Return the folder that has room for so many bytes."""
        try:
            room = os.statvfs(self._shared)
        except OSError:
            return self._spill
        is_enough = room.f_bavail * room.f_frsize > size_bytes + 2**20
        return self._shared if is_enough else self._spill

    def read(self, path: Path) -> memoryview:
        """Return the bytes of a file that `write` made: mapped, not read; private to the caller.

        Raises:
            TransferError: It is no file of this session, or others may write to it.
        """
        if path.parent not in (self._shared, self._spill):
            raise TransferError(f"{path} is not a file of this session.")
        try:
            fd = private.open_file(path)
        except NotPrivate as exc:
            raise TransferError(f"A value was not taken from its file: {exc}") from exc
        try:
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
        finally:
            os.close(fd)


def writer_name(rank: int) -> str:
    """Return what *rank* is called as the writer of values."""
    return f"rank{rank}"


def _without_ending(draft: Path) -> Path:
    return draft.with_name(draft.name.removesuffix(_DRAFT))


def pack(
    value: Any,
    folder: ValueFolder | None,
    *,
    max_bytes: int | None = None,
    definitions: Definitions | None = None,
) -> Packed:
    """Pack *value*.

    Args:
        value: Anything that can be pickled; tensors may stand anywhere in it.
        folder: Where large buffers go; ``None`` sends everything with the message.
        max_bytes: Refuse what is larger; ``None`` for no limit.
        definitions: How what is defined here is sent; by its name alone when ``None``.

    Raises:
        TransferError: It cannot be pickled, or is larger than *max_bytes*.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, definitions)
    try:
        pickler.dump(value)
    except TransferError:
        raise
    except Exception as exc:
        raise TransferError(
            f"A value of type {type(value).__name__} cannot be sent: {exc}.\n"
            "Send a part of it that is plain data, tensors or arrays."
        ) from exc
    parts = [memoryview(stream.getbuffer()), *pickler.parts]
    size_bytes = sum(part.nbytes for part in parts)
    if max_bytes is not None and size_bytes > max_bytes:
        raise TransferError(
            f"The value has {describe_size(size_bytes)}; up to {describe_size(max_bytes)} are sent "
            "without asking.\nAdd --yes to send it all the same, or send a part of it."
        )
    return _lay_out(parts, pickler.tensors, folder)


def _lay_out(
    parts: list[memoryview], tensors: list[dict[str, Any]], folder: ValueFolder | None
) -> Packed:
    """Put each part into a file or beside the header; where that fails, no file stays."""
    places: list[str | None] = []
    buffers: list[bytes] = []
    drafts: list[Path] = []
    files: tuple[Path, ...] = ()
    try:
        for part in parts:
            if folder is not None and part.nbytes > INLINE_BYTES:
                drafts.append(folder.write(part))
                places.append(str(_without_ending(drafts[-1])))
            else:
                buffers.append(part.tobytes())
                places.append(None)
        if folder is not None:
            files = folder.keep(drafts)
    except BaseException:
        for draft in drafts:
            draft.unlink(missing_ok=True)
            _without_ending(draft).unlink(missing_ok=True)
        raise
    size_bytes = sum(part.nbytes for part in parts)
    header = {"places": places, "tensors": tensors, "size_bytes": size_bytes}
    return Packed(header, buffers, files)


def unpack(
    header: Mapping[str, Any],
    buffers: list[memoryview],
    folder: ValueFolder | None,
    make_tensor: MakeTensor,
    *,
    keep_files: bool = False,
    namespace: dict[str, Any] | None = None,
) -> Any:
    """Return the value that `pack` packed.

    Args:
        header: As `pack` made it.
        buffers: As `pack` made them, in order.
        folder: The folder that `pack` used.
        make_tensor: Builds this side's tensor from its bytes.
        keep_files: Leave the files for other readers.
        namespace: The variables of this rank, where `Definitions` were packed.

    Raises:
        TransferError: It needs a class or a library that is not here.
    """
    inline = iter(buffers)
    parts: list[memoryview] = []
    for place in header["places"]:
        if place is None:
            parts.append(memoryview(bytearray(next(inline))))  # writable, as what is mapped
            continue
        if folder is None:
            raise TransferError("The value lies in a file of another host.")
        parts.append(folder.read(Path(place)))
        if not keep_files:
            Path(place).unlink(missing_ok=True)
    unpickler = _Unpickler(parts, header["tensors"], make_tensor, namespace)
    return unpickler.load()


def discard(header: Mapping[str, Any]) -> None:
    """Delete the files of a packed value that nobody will unpack."""
    for place in header["places"]:
        if place is not None:
            Path(place).unlink(missing_ok=True)


def _take_buffer(parts: list[memoryview], buffer: pickle.PickleBuffer) -> None:
    parts.append(buffer.raw())


class _Pickler(pickle.Pickler):
    """Sets tensors and big buffers aside while it pickles the rest."""

    def __init__(self, stream: io.BytesIO, definitions: Definitions | None) -> None:
        self.parts: list[memoryview] = []
        take = functools.partial(_take_buffer, self.parts)  # no method: with a circle of
        super().__init__(stream, protocol=5, buffer_callback=take)  # references values would stay
        self.tensors: list[dict[str, Any]] = []
        self._places: dict[int, tuple[int, Any]] = {}
        self._torch = sys.modules.get("torch")
        self._definitions = definitions

    def persistent_id(self, obj: Any) -> Any:
        """Set a tensor aside, once for all places it stands in; everything else is pickled."""
        if type(obj) is RankNamespace:
            return _NAMESPACE
        if id(obj) in self._places:
            return self._places[id(obj)][0]
        as_bytes = getattr(type(obj), "nbdist_tensor_bytes", None)
        if as_bytes is not None:
            tensor = as_bytes(obj)
        elif self._torch is not None and isinstance(obj, self._torch.Tensor):
            tensor = _bytes_of(obj, self._torch)
        else:
            return None
        self.parts.append(tensor.data)
        self.tensors.append(
            {
                "part": len(self.parts),  # the pickle itself is part 0
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "device": tensor.device,
                "is_widened": tensor.is_widened,
                "requires_grad": tensor.requires_grad,
                "is_parameter": tensor.is_parameter,
            }
        )
        self._places[id(obj)] = (len(self.tensors) - 1, obj)  # the object keeps its id taken
        return len(self.tensors) - 1

    def reducer_override(self, obj: Any) -> Any:
        """Send what torch describes things by as what it says: the notebook may have no torch."""
        if self._definitions is not None:
            return self._definitions.reduce(obj)
        torch = self._torch
        if torch is not None:
            if isinstance(obj, torch.Size):
                return tuple, (list(obj),)
            if isinstance(obj, (torch.dtype, torch.device)):
                return str, (str(obj),)
        return NotImplemented


def _bytes_of(tensor: Any, torch: Any) -> TensorBytes:
    """Return the elements of a torch tensor; a CUDA tensor passes through the CPU."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise TransferError(
            f"A {type(tensor).__name__} cannot be sent as it is.\n"
            "Send its local part (`x.to_local()`) or the whole (`x.full_tensor()`)."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise TransferError(
            f"A tensor with layout {tensor.layout} on device {tensor.device} cannot be sent.\n"
            "Send a dense one: `x.to_dense()`."
        )
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    data = memoryview(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""
    return TensorBytes(
        data=memoryview(data),
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        device=str(tensor.device),
        requires_grad=tensor.requires_grad and tensor.is_leaf,
        is_parameter=type(tensor) is torch.nn.Parameter,
    )


class _Unpickler(pickle.Unpickler):
    """Puts tensors and buffers back where they were."""

    def __init__(
        self,
        parts: list[memoryview],
        tensors: list[dict[str, Any]],
        make_tensor: MakeTensor,
        namespace: dict[str, Any] | None,
    ) -> None:
        self._tensor_of: dict[int, Any] = {}
        self._parts = parts
        self._tensors = tensors
        self._make_tensor = make_tensor
        self._namespace = namespace
        stream = io.BytesIO(parts[0])
        super().__init__(stream, buffers=self._plain_parts())

    def _plain_parts(self) -> list[memoryview]:
        """The parts that are not tensors, in the order in which they were set aside."""
        used = {entry["part"] for entry in self._tensors}
        return [part for i, part in enumerate(self._parts) if i > 0 and i not in used]

    def persistent_load(self, pid: Any) -> Any:
        """Return the tensor that was set aside, or the variables of this rank."""
        if pid == _NAMESPACE:
            return self._namespace
        index = int(pid)
        if index not in self._tensor_of:
            about = dict(self._tensors[index])
            data, shape = self._parts[about.pop("part")], tuple(about.pop("shape"))
            self._tensor_of[index] = self._make_tensor(TensorBytes(data, shape=shape, **about))
        return self._tensor_of[index]

    def find_class(self, module: str, name: str) -> Any:
        """Refuse what would import torch here, and say what a missing class means."""
        root = module.partition(".")[0]
        if root == "torch" and "torch" not in sys.modules:
            raise TransferError(
                f"The value holds a {module}.{name}, and torch is not imported here.\n"
                "Take plain tensors out of it (say `model.state_dict()`), or import torch first."
            )
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as exc:
            raise TransferError(
                f"The value is or holds a {name} of module {module}, which is not known here.\n"
                "Send its plain parts, or define the class on both sides."
            ) from exc
