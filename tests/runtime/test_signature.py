from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from nbdist.runtime.signature import NAMES, Signature, fits, has_to_wait, signature_of
from nbdist.runtime.slots import TEXT_BYTES

SIZE = 3


def of(op: str, *, rank: int = 0, size: int = SIZE, **args: Any) -> Signature:
    return signature_of(op, args, rank=rank, size=size)


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def all_reduce(tensor: torch.Tensor, number: int = 0, **more: Any) -> Signature:
    return of("allreduce_", tensors=[tensor], reduce_op=number, **more)


# Texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (all_reduce(t(2, 3)), "all_reduce(float32[2, 3], sum)"),
        (all_reduce(t(), 4), "all_reduce(float32[], max)"),
        (
            of("broadcast_", tensors=[t(4, dtype=torch.bfloat16)], root_rank=1, root_tensor=0),
            "broadcast(bfloat16[4], root 1)",
        ),
        (of("barrier", tensor=t(0), device_ids=[]), "barrier()"),
        (of("send", tensors=[t(2)], dst=1, tag=0), "send(float32[2])"),
        (of("recv_", tensors=[t(2)], src=1, tag=7), "recv(float32[2], tag 7)"),
        (
            of("reduce_", tensors=[t(1)], reduce_op=3, root_rank=0, root_tensor=0),
            "reduce(float32[1], min, root 0)",
        ),
        (
            of("_allgather_base_", output_tensor=t(6), input_tensor=t(2)),
            "all_gather_into_tensor(float32[2])",
        ),
        (
            of("allgather_", output_tensors=[[t(1), t(2), t(3)]], input_tensors=[t(1)]),
            "all_gather([float32[1], float32[2], float32[3]])",
        ),
        (
            of("allreduce_coalesced_", tensors=[t(1)] * 6, reduce_op=0),
            "all_reduce_coalesced(6 tensors of 6 elements, first float32[1], sum)",
        ),
    ],
)
def test_a_call_reads_as_its_user_wrote_it(signature: Signature, text: str) -> None:
    assert signature.text == text


def test_every_reduce_operation_of_torch_has_its_name() -> None:
    for name, number in dist.ReduceOp.RedOpType.__members__.items():
        if name != "UNUSED":
            assert name.lower() in all_reduce(t(1), number.value).text


def test_what_a_rank_puts_in_is_counted_in_bytes() -> None:
    assert all_reduce(t(10)).size_bytes == 40
    assert all_reduce(t(3, dtype=torch.float64)).size_bytes == 24
    assert of("barrier", tensor=t(0), device_ids=[]).size_bytes == 0
    gathered = of("_allgather_base_", output_tensor=t(30), input_tensor=t(10))
    assert gathered.size_bytes == 40


def test_every_collective_of_this_torch_is_known() -> None:
    operators = {
        name.removeprefix("c10d::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("c10d::")
    }

    assert operators - {"check_for_nan"} <= set(NAMES)


# What must be equal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        all_reduce(t(5)),
        all_reduce(t(10, dtype=torch.float64)),
        all_reduce(t(10, dtype=torch.int32)),
        all_reduce(t(10), 4),
        of("barrier", tensor=t(0), device_ids=[]),
        of("broadcast_", tensors=[t(10)], root_rank=0, root_tensor=0),
        of("allgather_", output_tensors=[[t(10)] * 3], input_tensors=[t(10)]),
        of("allreduce_coalesced_", tensors=[t(10)], reduce_op=0),
        of("allreduce_", tensors=[t(10).to("meta")], reduce_op=0),
    ],
)
def test_what_breaks_an_all_reduce_of_ten_differs_from_it(other: Signature) -> None:
    assert other.key != all_reduce(t(10)).key


@pytest.mark.parametrize(
    "other",
    [
        all_reduce(t(2, 5)),
        all_reduce(t(10), async_op=True),
        all_reduce(t(10), timeout=1000),
        all_reduce(t(10), sparse_indices=None),
        all_reduce(t(10).requires_grad_()),
        all_reduce(t(10, 2).t()[0]),
    ],
)
def test_what_may_differ_does_not(other: Signature) -> None:
    assert other.key == all_reduce(t(10)).key


def test_roots_and_order_of_ranks_count() -> None:
    roots = [of("broadcast_", tensors=[t(2)], root_rank=r, root_tensor=0).key for r in (0, 1)]

    assert roots[0] != roots[1]


def test_uneven_lists_of_an_all_gather_are_equal_where_they_match() -> None:
    lists = [[t(1), t(2), t(3)]]
    ranks = [
        of("allgather_", rank=r, output_tensors=lists, input_tensors=[t(r + 1)]) for r in range(3)
    ]
    other = of("allgather_", output_tensors=[[t(1), t(2), t(4)]], input_tensors=[t(1)])

    assert len({signature.key for signature in ranks}) == 1
    assert other.key != ranks[0].key


def test_uneven_lists_of_a_reduce_scatter_too() -> None:
    lists = [[t(1), t(2), t(3)]]
    ranks = [
        of(
            "reduce_scatter_",
            rank=r,
            output_tensors=[t(r + 1)],
            input_tensors=lists,
            reduce_op=0,
        )
        for r in range(3)
    ]

    assert len({signature.key for signature in ranks}) == 1


def test_a_reduce_scatter_is_compared_by_what_each_rank_gets() -> None:
    sizes = [
        of("_reduce_scatter_base_", output_tensor=t(n), input_tensor=t(3 * n), reduce_op=0).key
        for n in (2, 2, 4)
    ]

    assert sizes[0] == sizes[1] != sizes[2]


# Amounts that may differ from rank to rank --------------------------------------------------------


def all_to_all(rank: int, gives: list[int], takes: list[int], row: int = 1) -> Signature:
    return of(
        "alltoall_base_",
        rank=rank,
        size=2,
        output=t(sum(takes), row),
        input=t(sum(gives), row),
        output_split_sizes=takes,
        input_split_sizes=gives,
    )


def agree(one: Signature, other: Signature, rank: int = 0, peer: int = 1) -> bool:
    return (
        one.key == other.key
        and fits(one.gives, other.takes, rank, peer)
        and fits(other.gives, one.takes, peer, rank)
    )


def test_an_uneven_all_to_all_agrees_where_each_gives_what_the_other_takes() -> None:
    assert agree(all_to_all(0, [1, 3], [1, 2]), all_to_all(1, [2, 5], [3, 5]))
    assert not agree(all_to_all(0, [1, 3], [1, 2]), all_to_all(1, [2, 5], [4, 5]))
    assert not agree(all_to_all(0, [1, 3], [1, 1]), all_to_all(1, [2, 5], [3, 5]))


def test_splits_count_rows() -> None:
    assert all_to_all(0, [1, 3], [1, 2], row=4).gives == (4, 12)


def test_an_all_to_all_without_splits_is_even() -> None:
    even = of("alltoall_base_", size=2, output=t(10), input=t(10), output_split_sizes=[])

    assert (even.gives, even.takes) == ((5, 5), (5, 5))


def test_an_all_to_all_of_lists_is_compared_by_pairs() -> None:
    def lists(rank: int, gives: list[int], takes: list[int]) -> Signature:
        tensors = [[t(n) for n in amounts] for amounts in (takes, gives)]
        return of(
            "alltoall_", rank=rank, size=2, output_tensors=tensors[0], input_tensors=tensors[1]
        )

    assert agree(lists(0, [1, 2], [1, 3]), lists(1, [3, 4], [2, 4]))
    assert not agree(lists(0, [1, 2], [1, 3]), lists(1, [3, 4], [1, 4]))


def gather(rank: int, gives: int, takes: list[int] | None, root: int = 0) -> Signature:
    outputs = [[t(n) for n in takes]] if takes else []
    return of(
        "gather_", rank=rank, output_tensors=outputs, input_tensors=[t(gives)], root_rank=root
    )


def test_only_the_root_of_a_gather_brings_lists() -> None:
    root = gather(0, 4, [4, 5, 6])

    assert agree(root, gather(1, 5, None))
    assert not agree(root, gather(1, 4, None))
    assert agree(gather(1, 4, None), gather(2, 99, None), 1, 2)
    assert not agree(root, gather(1, 5, None, root=1))


def test_only_the_root_of_a_scatter_brings_lists() -> None:
    def scatter(rank: int, takes: int, gives: list[int] | None) -> Signature:
        inputs = [[t(n) for n in gives]] if gives else []
        return of(
            "scatter_", rank=rank, output_tensors=[t(takes)], input_tensors=inputs, root_rank=0
        )

    assert agree(scatter(0, 4, [4, 5, 6]), scatter(1, 5, None))
    assert not agree(scatter(0, 4, [4, 5, 6]), scatter(1, 6, None))


def test_lists_of_a_wrong_length_are_left_to_torch() -> None:
    assert gather(0, 4, [4, 5]).takes == (-1, -1, -1)


@pytest.mark.parametrize(
    ("sent", "received", "is_equal"),
    [
        (t(10), t(10), True),
        (t(2, 5), t(10), True),
        (t(10), t(5), False),
        (t(5), t(10), False),
        (t(10), t(10, dtype=torch.int32), False),
    ],
)
def test_a_message_is_what_its_receiver_takes(
    sent: torch.Tensor, received: torch.Tensor, is_equal: bool
) -> None:
    keys = {
        of("send", tensors=[sent], dst=1, tag=3).key,
        of("recv_", tensors=[received], src=0, tag=3).key,
    }

    assert (len(keys) == 1) == is_equal


# Who has to wait ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "rank", "pending", "expected"),
    [
        (None, 0, [1], True),
        (None, 0, [], False),
        (0, 0, [1, 2], True),
        (0, 0, [2], False),
        (0, 1, [0], True),
        (0, 1, [0, 2], True),
        (0, 1, [2], False),
        (2, 2, [0, 1], True),
        (2, 0, [1, 2], True),
    ],
)
def test_a_rank_is_held_back_only_where_that_keeps_nobody_from_ending(
    root: int | None, rank: int, pending: list[int], expected: bool
) -> None:
    assert has_to_wait(root, rank, pending, SIZE) == expected


# What people see ----------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int32])
LAYOUTS = st.sampled_from([torch.strided, torch.sparse_coo])
DEVICES = st.sampled_from(["cpu", "meta"])
tensors = st.builds(
    lambda shape, dtype, layout, device: torch.zeros(
        shape, dtype=dtype, layout=layout, device=device
    ),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    DTYPES,
    LAYOUTS,
    DEVICES,
)
lists = st.lists(tensors, min_size=1, max_size=7)
ops = st.integers(0, 8)
roots = st.integers(0, SIZE - 1)
calls = st.one_of(
    st.builds(lambda t, o: of("allreduce_", tensors=t, reduce_op=o), lists, ops),
    st.builds(lambda t, o: of("allreduce_coalesced_", tensors=t, reduce_op=o), lists, ops),
    st.builds(lambda t, r: of("broadcast_", tensors=t, root_rank=r), lists, roots),
    st.builds(
        lambda t, o, r: of("reduce_", tensors=t, reduce_op=o, root_rank=r), lists, ops, roots
    ),
    st.builds(lambda t, i: of("allgather_", output_tensors=[t], input_tensors=[i]), lists, tensors),
    st.builds(
        lambda t, i: of("allgather_coalesced_", output_lists=[t], input_list=i), lists, lists
    ),
    st.builds(
        lambda t, i, o: of("reduce_scatter_", input_tensors=[t], output_tensors=[i], reduce_op=o),
        lists,
        tensors,
        ops,
    ),
    st.builds(
        lambda t, i, o: of("_reduce_scatter_base_", output_tensor=t, input_tensor=i, reduce_op=o),
        tensors,
        tensors,
        ops,
    ),
    st.builds(lambda t: of("_allgather_base_", output_tensor=t, input_tensor=t), tensors),
    st.builds(
        lambda t, r: of("gather_", input_tensors=t, output_tensors=[], root_rank=r), lists, roots
    ),
    st.builds(lambda t: of("alltoall_", input_tensors=t, output_tensors=t), lists),
    st.builds(lambda t: of("alltoall_base_", input=t, output=t), tensors),
    st.builds(lambda t: of("barrier", tensor=t), tensors),
    st.builds(lambda t, tag: of("send", tensors=[t], tag=tag), tensors, st.integers(0, 2)),
)


@given(calls, calls)
def test_calls_that_differ_never_read_alike(one: Signature, other: Signature) -> None:
    if one.key != other.key:
        assert one.text != other.text


@pytest.mark.parametrize("num", [3, 50])
def test_long_lists_read_differently_however_late_they_differ(num: int) -> None:
    both = [
        of("allgather_", output_tensors=[[t(1)] * num + [t(last)]], input_tensors=[t(1)])
        for last in (1000, 1001)
    ]
    spelled = [
        of("alltoall_", input_tensors=[t(*[1] * 60, n)] * 4, output_tensors=[]) for n in (1, 2)
    ]

    assert both[0].text != both[1].text
    assert all(len(signature.text.encode()) < TEXT_BYTES for signature in [*both, *spelled])


def test_the_layout_of_a_sparse_tensor_is_shown() -> None:
    sparse = torch.zeros(3, layout=torch.sparse_coo)

    assert all_reduce(sparse).text == "all_reduce(sparse_coo float32[3], sum)"
