from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nbdist.errors import TransferError
from nbdist.packing import INLINE_BYTES, ValueFolder, pack, unpack, writer_name
from nbdist.rank.values import make_tensor
from nbdist.sessions.values import FLOAT8, RankTensor, float8_table, tensor_from

FLOAT8_TYPES = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    *FLOAT8_TYPES,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
NUMBERS = torch.tensor([0.0, 1.0, 2.0, 3.0])


@pytest.fixture
def folder(tmp_path: Path) -> ValueFolder:
    (tmp_path / "spill").mkdir()
    (tmp_path / "shared").mkdir()
    return ValueFolder(tmp_path / "shared", tmp_path / "spill")


def to_notebook(value: Any, folder: ValueFolder | None = None) -> Any:
    """Send *value* from a rank to the notebook."""
    packed = pack(value, folder)
    header = json.loads(json.dumps(packed.header))
    return unpack(header, [memoryview(b) for b in packed.buffers], folder, tensor_from)


def to_rank(value: Any, folder: ValueFolder | None = None) -> Any:
    """Send *value* to a rank."""
    packed = pack(value, folder)
    header = json.loads(json.dumps(packed.header))
    return unpack(header, [memoryview(b) for b in packed.buffers], folder, make_tensor)


def files_in(folder: ValueFolder) -> list[Path]:
    return [*folder._shared.glob("*"), *folder._spill.glob("*")]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are alike to the bit."""
    if a.dtype != b.dtype or a.shape != b.shape or not a.numel():
        return a.dtype == b.dtype and a.shape == b.shape
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(raw[0], raw[1])


# Tensors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(4,), (2, 2), (), (0,), (2, 0, 3)], ids=str)
def test_a_tensor_of_any_type_and_shape_comes_back_the_same(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    numbers = NUMBERS.to(dtype)
    tensor = numbers[3].clone() if shape == () else numbers[: 4 if 0 not in shape else 0]
    tensor = tensor.reshape(shape)

    there = to_notebook(tensor)
    back = to_rank(there)

    assert isinstance(there, RankTensor)
    assert there.shape == shape
    assert there.torch_dtype == str(dtype).removeprefix("torch.")
    assert there.device == "cpu"
    assert same(back, tensor)
    assert same(there.torch(), tensor)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_notebook_sees_the_numbers_the_rank_saw(dtype: torch.dtype) -> None:
    there = to_notebook(NUMBERS.to(dtype))

    assert np.array_equal(np.asarray(there), NUMBERS.to(dtype).to(torch.complex64).real.numpy())


def test_types_that_numpy_does_not_have_are_widened_without_loss() -> None:
    for dtype in (torch.bfloat16, *FLOAT8_TYPES):
        tensor = torch.tensor([0.1, -3.0, 1e-3]).to(dtype)

        there = to_notebook(tensor)

        assert there.dtype == np.float32
        assert there.tolist() == tensor.float().tolist()


def test_every_bfloat16_is_widened_and_narrowed_without_loss() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    tensor = codes[~codes.isnan()]

    assert same(to_rank(to_notebook(tensor)), tensor)
    assert np.isnan(to_notebook(codes[codes.isnan()])).all()


@pytest.mark.parametrize("dtype", FLOAT8_TYPES, ids=str)
def test_the_table_of_an_8_bit_float_is_torch_s_for_every_code(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)

    np.testing.assert_array_equal(float8_table(name), codes.view(dtype).float().numpy())

    negative_zeros = np.signbit(float8_table(name)) & (float8_table(name) == 0)
    assert negative_zeros.sum() == (0 if "fnuz" in name else 1)


def test_every_8_bit_float_of_torch_is_known() -> None:
    assert {str(t).removeprefix("torch.") for t in FLOAT8_TYPES} == set(FLOAT8)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.ones(1).expand(5),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.arange(4.0, requires_grad=True),
        torch.nn.Parameter(torch.arange(4.0)),
        torch.arange(4.0, requires_grad=True) * 2,
        torch.empty_strided((0,), (0,)),
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "conj",
        "neg",
        "leaf",
        "parameter",
        "with graph",
        "empty with stride 0",
    ],
)
def test_a_view_comes_as_the_numbers_it_shows(tensor: torch.Tensor) -> None:
    assert same(to_rank(tensor), tensor.detach().resolve_conj().resolve_neg())
    assert to_notebook(tensor).tolist() == tensor.tolist()


def test_tensors_may_stand_anywhere_in_a_value() -> None:
    value = {
        "a": [torch.ones(2), ("b", torch.zeros(3, dtype=torch.int8))],
        "c": np.arange(3),
        "d": 4,
    }

    there = to_notebook(value)

    assert there["a"][0].tolist() == [1, 1]
    assert there["a"][1][0] == "b"
    assert there["a"][1][1].torch_dtype == "int8"
    assert there["c"].tolist() == [0, 1, 2]
    assert there["d"] == 4


def test_a_tensor_that_stands_in_two_places_stays_one() -> None:
    shared = torch.ones(3)

    there = to_notebook([shared, shared])

    assert there[0] is there[1]


def test_small_descriptive_objects_of_torch_become_plain() -> None:
    model = torch.nn.Linear(3, 2)

    there = to_notebook((model.weight.shape, torch.float32, torch.device("cpu")))

    assert there == ((2, 3), "torch.float32", "cpu")
    assert isinstance(there[0], tuple)


def test_a_state_dict_arrives_as_arrays() -> None:
    there = to_notebook(torch.nn.Linear(3, 2).state_dict())

    assert {name: array.shape for name, array in there.items()} == {"weight": (2, 3), "bias": (2,)}


def test_what_arrives_can_be_written_to() -> None:
    there, back = to_notebook(torch.zeros(3)), to_rank(torch.zeros(3))

    there[0] = back[0] = 1

    assert there.tolist() == back.tolist() == [1, 0, 0]


def test_arithmetic_on_a_rank_s_tensor_gives_plain_numpy() -> None:
    there = to_notebook(torch.ones(3, dtype=torch.bfloat16))

    assert type(there * 2) is np.ndarray
    assert not isinstance(there.sum(), RankTensor)
    assert isinstance(there[:2], RankTensor)
    assert there[:2].torch_dtype == "bfloat16"


def test_a_sparse_a_meta_and_a_quantized_tensor_are_refused_with_a_way_out() -> None:
    with pytest.raises(TransferError, match="to_dense"):
        pack(torch.ones(2, 2).to_sparse(), None)
    with pytest.raises(TransferError, match="meta"):
        pack(torch.ones(2, device="meta"), None)


def test_a_subclass_of_tensor_is_refused_with_a_way_out() -> None:
    class Sharded(torch.Tensor):
        pass

    with pytest.raises(TransferError, match=r"Sharded[^$]*full_tensor"):
        pack([torch.ones(2).as_subclass(Sharded)], None)


# NumPy and plain data ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.array(3.5),
        np.array([]),
        np.array(["a", "bc"]),
        np.array([("x", 1)], dtype=[("name", "U1"), ("n", "i4")]),
        np.array([{"a": 1}, None], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::2],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_comes_back_the_same(array: np.ndarray[Any, Any]) -> None:
    for there in (to_notebook(array), to_rank(array)):
        assert type(there) is np.ndarray
        assert there.dtype == array.dtype
        assert np.array_equal(there, array)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.binary()
        | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)
def test_plain_data_comes_back_the_same(value: Any) -> None:
    assert to_notebook(value) == value


def test_what_cannot_be_pickled_is_an_error_that_names_its_type() -> None:
    with pytest.raises(TransferError, match="function"):
        pack(lambda: 0, None)


def test_an_object_whose_pickling_raises_is_an_error() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    with pytest.raises(TransferError, match="not me"):
        pack(Odd(), None)


# Sizes and files ---------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_with_both_sizes(folder: ValueFolder) -> None:
    with pytest.raises(TransferError, match=r"4 MiB[^$]*1 KiB[^$]*--yes"):
        pack(torch.zeros(2**20), folder, max_bytes=1024)

    assert files_in(folder) == []


def test_the_limit_counts_all_parts_together() -> None:
    pack([torch.zeros(100)], None, max_bytes=1000)
    with pytest.raises(TransferError):
        pack([torch.zeros(100)] * 1 + [torch.ones(100), torch.ones(100)], None, max_bytes=1000)


def test_large_parts_pass_through_files_that_are_gone_afterwards(folder: ValueFolder) -> None:
    value = [torch.arange(2.0**15), np.ones(2**16), b"x" * 2**18, torch.ones(3)]

    packed = pack(value, folder)

    assert sum(len(buffer) for buffer in packed.buffers) < 3 * INLINE_BYTES
    assert sorted(files_in(folder)) == sorted(packed.files)
    assert {oct(path.stat().st_mode & 0o777) for path in packed.files} == {"0o600"}
    there = unpack(packed.header, [memoryview(b) for b in packed.buffers], folder, tensor_from)
    assert files_in(folder) == []
    assert there[0][-1] == 2**15 - 1
    assert there[1].sum() == 2**16
    assert there[2] == b"x" * 2**18
    assert there[3].tolist() == [1, 1, 1]


def test_several_readers_of_one_file_each_have_their_own_copy(folder: ValueFolder) -> None:
    packed = pack(torch.zeros(2**16), folder)
    buffers = [memoryview(b) for b in packed.buffers]

    readers = [
        unpack(packed.header, buffers, folder, make_tensor, keep_files=True) for _ in range(2)
    ]
    readers[0][0] = 5

    assert readers[1][0] == 0
    assert files_in(folder) == list(packed.files)


def test_a_file_outside_of_the_session_is_never_read(folder: ValueFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 10)
    header = {"places": [str(tmp_path / "secret")], "tensors": []}

    with pytest.raises(TransferError, match="not a file of this session"):
        unpack(header, [], folder, tensor_from)
    header = {"places": [str(tmp_path / "shared" / ".." / "secret")], "tensors": []}
    with pytest.raises(TransferError, match="not a file of this session"):
        unpack(header, [], folder, tensor_from)

    assert (tmp_path / "secret").exists()


def of_rank(folder: ValueFolder, rank: int, request: str) -> ValueFolder:
    return ValueFolder(folder._shared, folder._spill, writer_name(rank)).asked_by(request)


def test_what_a_killed_rank_was_writing_is_told_apart_and_deleted(folder: ValueFolder) -> None:
    whole = pack(torch.zeros(2**16), of_rank(folder, 1, "s-0.4"))
    others = of_rank(folder, 11, "s-0.4").write(memoryview(b"of another rank"))
    of_rank(folder, 1, "s-0.4").write(memoryview(b"half"))

    folder.discard_drafts("rank1")

    assert sorted(files_in(folder)) == sorted([*whole.files, others])


def test_what_a_killed_rank_had_for_one_request_is_deleted(folder: ValueFolder) -> None:
    pack(torch.zeros(2**16), of_rank(folder, 1, "s-0.4"))
    of_rank(folder, 1, "s-0.4").write(memoryview(b"half"))
    others = [
        *pack(torch.zeros(2**16), of_rank(folder, 1, "s-0.41")).files,
        *pack(torch.zeros(2**16), of_rank(folder, 0, "s-0.4")).files,
    ]

    folder.discard_values("rank1", "s-0.4")

    assert sorted(files_in(folder)) == sorted(others)


@pytest.mark.parametrize("how", ["open", "linked", "named twice", "a pipe"])
def test_a_file_that_others_may_have_written_is_never_unpickled(
    folder: ValueFolder, how: str
) -> None:
    packed = pack(torch.ones(2**16), folder)
    [path] = packed.files
    kept = path.with_name("kept")
    if how == "open":
        path.chmod(0o666)
    elif how == "linked":
        path.rename(kept).chmod(0o600)
        path.symlink_to(kept)
    elif how == "named twice":
        kept.hardlink_to(path)
    else:
        path.unlink()
        os.mkfifo(path, 0o600)

    with pytest.raises(TransferError, match="nothing was read from it"):
        unpack(packed.header, [memoryview(b) for b in packed.buffers], folder, tensor_from)


def test_where_shared_memory_is_missing_files_lie_in_the_session_folder(tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    folder = ValueFolder(tmp_path / "no" / "such" / "place", tmp_path / "spill")

    there = to_notebook(torch.ones(2**16), folder)

    assert there.sum() == 2**16
    assert files_in(folder) == []


def test_a_value_whose_writing_is_interrupted_leaves_no_file(
    folder: ValueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(torch.zeros(2**16), folder)

    assert files_in(folder) == []


def test_a_full_disk_is_an_error_that_says_where(
    folder: ValueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)

    with pytest.raises(TransferError, match="No space left on device"):
        pack(torch.ones(2**16), folder)

    assert files_in(folder) == []


def test_a_value_that_fails_half_way_leaves_no_file(
    folder: ValueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.write, iter([False, True])

    def full_at_the_second(fd: int, data: Any) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full_at_the_second)

    with pytest.raises(TransferError):
        pack([torch.ones(2**16), torch.zeros(2**16)], folder)

    assert files_in(folder) == []


# Without torch -----------------------------------------------------------------------------------


def without_torch(code: str, value: Any) -> str:
    """Run *code* in a fresh Python, *value* packed as ``header, buffers``; return its words."""
    packed = pack(value, None)
    prelude = (
        "import pickle, sys\nfrom nbdist.packing import unpack\n"
        "from nbdist.errors import TransferError\nfrom nbdist.sessions.values import tensor_from\n"
        f"header, buffers = pickle.loads({pickle.dumps((packed.header, packed.buffers))!r})\n"
        "buffers = [memoryview(b) for b in buffers]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{prelude}{code}\nassert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_notebook_without_torch_stays_without_it() -> None:
    code = (
        "x = unpack(header, buffers, None, tensor_from)\nprint(x['w'].tolist(), x['w'].torch_dtype)"
    )

    assert without_torch(code, {"w": torch.ones(2, dtype=torch.bfloat16)}) == "[1.0, 1.0] bfloat16"


def test_a_class_of_torch_is_refused_where_torch_is_not_imported() -> None:
    code = (
        "try: unpack(header, buffers, None, tensor_from)\nexcept TransferError as exc: print(exc)"
    )

    words = without_torch(code, torch.nn.Linear(2, 2))

    assert "torch" in words
    assert "state_dict" in words


def test_a_class_that_is_not_known_here_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("only_there")
    monkeypatch.setitem(sys.modules, "only_there", module)
    exec("class Local: pass", vars(module))
    code = (
        "try: unpack(header, buffers, None, tensor_from)\nexcept TransferError as exc: print(exc)"
    )

    words = without_torch(code, module.Local())

    assert "Local of module only_there" in words


def test_what_was_packed_is_free_at_once() -> None:
    value = torch.ones(3)
    alive = weakref.ref(value)

    pack({"it": value}, None)
    gc.disable()  # no help
    try:
        del value
        assert alive() is None
    finally:
        gc.enable()


def test_a_module_is_sent_with_its_parameters(folder: ValueFolder) -> None:
    module = torch.nn.BatchNorm1d(2)
    module.bias.requires_grad_(False)
    leaf = torch.ones(2, requires_grad=True)

    packed = pack({"module": module, "leaf": leaf, "later": leaf * 2}, folder)
    buffers = [memoryview(buffer) for buffer in packed.buffers]
    there = unpack(packed.header, buffers, folder, make_tensor)

    named = dict(there["module"].named_parameters())
    assert {name: p.requires_grad for name, p in named.items()} == {"weight": True, "bias": False}
    assert "running_mean" in there["module"].state_dict()
    assert (there["leaf"].requires_grad, there["later"].requires_grad) == (True, False)
