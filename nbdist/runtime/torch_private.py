"""Every private name of torch that guard and lifeline need, in one place.

Read in torch 2.13.0. `probe` says which of them this torch has; without some nbdist still runs:

    guard hooks       no collective is looked at before it runs: mismatches hang or kill as in torch
    socket abort      a rank stuck in a native call ends only when its process is replaced
    in-place rebuild  after an abort only `%dist restart` gives working groups again
    module reset      a DDP or FSDP2 module must be made anew after a failed step
    shared world      a script's init and destroy are torch's: the group is there once

No other module of nbdist touches these names; those of rpc are in `torch_rpc`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

import torch
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d

_native: Any = torch._C._distributed_c10d
_TORCH = str(Path(torch.__file__).parent)
#: Functions whose C++ takes the future of a collective's work: DDP's reducer, `Join` beside it.
_TAKE_FUTURES = frozenset(
    {
        (torch.autograd.graph.__file__, "_engine_run_backward"),
        (f"{_TORCH}/nn/parallel/distributed.py", "_match_all_reduce_for_bwd_pass"),
    }
)
#: Functions whose C++ waits for the work: functional collectives, what DDP agrees on.
_WAIT_NATIVELY = frozenset(
    {
        (f"{_TORCH}/_ops.py", "__call__"),
        (f"{_TORCH}/_ops.py", "redispatch"),
        (f"{_TORCH}/nn/parallel/distributed.py", "_distributed_broadcast_coalesced"),
        (f"{_TORCH}/nn/parallel/distributed.py", "_pre_forward"),
        (f"{_TORCH}/distributed/utils.py", "_sync_params_and_buffers"),
        (f"{_TORCH}/distributed/utils.py", "_verify_param_shape_across_processes"),
    }
)

ProcessGroup = c10d.ProcessGroup
Work = c10d.Work
Store = c10d.Store


@dataclass(frozen=True)
class Support:
    """What this torch allows.

    Attributes:
        version: Of torch.
        guard: Kernels can be put in front of every collective.
        abort: The sockets of a group can be told from others, and shut down.
        rebuild: Another group can stand in for one that is broken.
        reset: DDP and FSDP2 modules can be made to forget a half-done step.
        share: The world can be put aside and back, and torch's own makers of it be replaced.
        missing: The names that are not there.
    """

    version: str
    guard: bool
    abort: bool
    rebuild: bool
    reset: bool
    share: bool
    missing: tuple[str, ...] = ()


def probe(names: Sequence[tuple[str, str]] | None = None) -> Support:
    """Say which abilities this torch has; changes nothing.

    Args:
        names: (ability, name) of what is looked for; all that this module uses when ``None``.
    """
    wanted = names if names is not None else _wanted()
    missing = [(ability, name) for ability, name in wanted if not _exists(name)]
    lacking = {ability for ability, _ in missing}
    return Support(
        version=torch.__version__,
        guard="guard" not in lacking,
        abort="abort" not in lacking and Path("/proc/self/fd").is_dir(),
        rebuild=not {"guard", "rebuild"} & lacking,
        reset="reset" not in lacking,
        share="share" not in lacking,
        missing=tuple(name for _, name in missing),
    )


def _wanted() -> list[tuple[str, str]]:
    group = "distributed.distributed_c10d.ProcessGroup"
    return [
        *(("guard", f"ops.c10d.{name}.default") for name in ("allreduce_", "broadcast_", "send")),
        ("guard", "_C._dispatch_keyset_full_after"),
        ("guard", "_C.DispatchKey.BackendSelect"),
        ("guard", f"{group}.unbox"),
        ("guard", "distributed.distributed_c10d._new_process_group_helper"),
        ("abort", "distributed.distributed_c10d._new_process_group_helper"),
        ("abort", "distributed.distributed_c10d._world.pg_map"),
        ("abort", "_C._distributed_c10d.Work.unbox"),
        ("abort", "_C._distributed_c10d.Work._get_op_type"),
        ("abort", "_C._distributed_c10d.PythonCallbackWork"),
        ("abort", "_C._distributed_c10d._create_work_from_future"),
        ("abort", "distributed.distributed_c10d.ProcessGroupGloo.__init__"),
        ("rebuild", f"{group}.boxed"),
        ("rebuild", f"{group}._set_group_desc"),
        ("rebuild", f"{group}.split_group"),
        ("rebuild", "distributed.distributed_c10d._hash_ranks_to_str"),
        ("rebuild", f"{group}._register_backend"),
        ("rebuild", f"{group}._set_default_backend"),
        ("rebuild", f"{group}._set_group_name"),
        *(("rebuild", f"{group}.{method}") for method in _BACKEND_METHODS),
        ("rebuild", "distributed.distributed_c10d.ProcessGroupGloo._Options"),
        ("rebuild", "distributed.distributed_c10d._world.pg_names"),
        ("rebuild", "distributed.distributed_c10d._world.pg_group_ranks"),
        ("reset", "nn.parallel.DistributedDataParallel._update_process_group"),
        ("reset", "distributed.fsdp.FSDPModule.reset_iter_state"),
        ("reset", "distributed.fsdp.FSDPModule._get_fsdp_state"),
        ("reset", "distributed._composable_state._module_state_mapping"),
        *(("share", f"distributed.distributed_c10d._world.{book}") for book in (*_BOOKS, _TAGS)),
        ("share", "_C._distributed_c10d._unregister_process_group"),
        ("share", "distributed.distributed_c10d._update_default_pg"),
        ("share", "distributed.rendezvous._create_c10d_store"),
    ]


def _exists(name: str) -> bool:
    import torch.distributed._composable_state
    import torch.nn.parallel

    if name.startswith("distributed.fsdp.") and not _has_fsdp():
        return _is_defined_by_fsdp(name.rpartition(".")[2])
    found: Any = torch
    for part in name.split("."):
        # By its name first: `torch.distributed.rendezvous` is a function of the module called so.
        module = sys.modules.get(f"{getattr(found, '__name__', '')}.{part}")
        try:
            found = module or getattr(found, part)
        except (AttributeError, RuntimeError):
            return False
    return True


def _has_fsdp() -> bool:
    """Say whether this process has imported FSDP, which takes 0.6 s and 55 MB."""
    return "torch.distributed.fsdp" in sys.modules


def _is_defined_by_fsdp(method: str) -> bool:
    """Say whether `FSDPModule` has *method*, by its source: most sessions never import it."""
    try:
        source = Path(_TORCH, "distributed/fsdp/_fully_shard/_fully_shard.py").read_text(
            encoding="utf-8"
        )
    except OSError:
        return False
    return f"    def {method}(" in source


# In front of the operators of c10d --------------------------------------------------------------

#: Always consulted, also for inference tensors, which ADInplaceOrView does not see.
HOOK_KEY = "BackendSelect"

Kernel = Callable[..., Any]


def operator(name: str) -> Any:
    """Return the operator of torch's ``c10d`` library called *name*, or ``None``."""
    return getattr(getattr(torch.ops.c10d, name, None), "default", None)


def argument_names(op: Any) -> tuple[str, ...]:
    """Return the names of an operator's arguments, in order."""
    return tuple(argument.name for argument in op._schema.arguments)


def hook(library: Any, name: str, kernel: Kernel) -> None:
    """Let *kernel* be called with (key set, arguments) for operator *name*."""
    library.impl(name, kernel, HOOK_KEY, with_keyset=True)


def keys_below_hook() -> Any:
    """Return the dispatch keys that come after our hook."""
    return torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)


def unbox(boxed: Any) -> ProcessGroup:
    """Return the process group that an operator got as an argument."""
    return ProcessGroup.unbox(boxed) if isinstance(boxed, torch.ScriptObject) else boxed


def unbox_work(boxed: Any) -> Any:
    """Return the `Work` that an operator gave back; ``None`` where it gave none."""
    return Work.unbox(boxed) if isinstance(boxed, torch.ScriptObject) else None


#: Functions whose argument ``op`` is the reduce operation of the operator that they call.
_REDUCERS = frozenset(
    (c10d.__file__, name)
    for name in (
        *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter"),
        *("reduce_scatter_single", "reduce_scatter_tensor"),
    )
)


def reduce_op_number(boxed: Any, frame: FrameType) -> int:
    """Return the number in torch's enum of the reduce operation that an operator got.

    Args:
        boxed: What it got. To ask it costs an `all_reduce` 13 µs, a fourth of all that the guard
            adds to it.
        frame: Where the operator was called. A function of torch's own knows it, too.
    """
    if (frame.f_code.co_filename, frame.f_code.co_name) in _REDUCERS:
        op = frame.f_locals.get("op")
        if isinstance(op, c10d.ReduceOp.RedOpType):
            return int(op.value)
    return int(boxed.op())


def work_of_future(future: Any) -> Any:
    """Return a `Work` that is over when *future* is; its `wait` does not raise."""
    return _native._create_work_from_future(future)


def work_that_calls(wait: Callable[[], None]) -> Any:
    """Return a `Work` for C++ that waits by calling *wait*; its future is not over before."""

    def callback(_timeout: timedelta) -> bool:
        wait()
        return True

    return _native.PythonCallbackWork(callback)


#: Of torch's C++ enum: send, receive, receive from anybody.
_MESSAGE_TYPES = frozenset(
    int(getattr(_native.OpType, name)) for name in ("SEND", "RECV", "RECVANYSOURCE")
)


def is_message(work: Any) -> bool:
    """Say whether *work* is a message from one rank to another."""
    return work._get_op_type() in _MESSAGE_TYPES


def replace_wait(wait: Callable[..., bool]) -> Callable[[], None]:
    """Put *wait* in place of `Work.wait`; return what takes it off again."""
    changed: Any = Work
    original = changed.wait
    changed.wait = wait

    def undo() -> None:
        changed.wait = original

    return undo


def replace_connect(around: Callable[[Callable[[], None], int], None]) -> Callable[[], None]:
    """Have every gloo backend connect with its peers inside *around*; return what ends that.

    Args:
        around: Called with what connects, and with the number of members.
    """
    changed: Any = c10d.ProcessGroupGloo
    original = changed.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        size = kwargs["size"] if "size" in kwargs else args[2]
        around(lambda: original(self, *args, **kwargs), size)

    changed.__init__ = init

    def undo() -> None:
        changed.__init__ = original

    return undo


#: What waits for another process by way of a store. PrefixStore and the others inherit from Store.
_STORE_WAITS = (
    *((c10d.Store, name) for name in ("get", "wait", "barrier", "multi_get", "queue_pop")),
    (TCPStore, "__init__"),
    (_native.FileStore, "__init__"),
)


def replace_store_waits(around: Callable[[Callable[[], object]], None]) -> Callable[[], None]:
    """Have the main thread wait on every store inside *around*; return what ends that."""
    rpc: Any = getattr(torch._C, "_distributed_rpc", None)
    agent = getattr(rpc, "TensorPipeAgent", None)
    waits = [*_STORE_WAITS, *((agent, name) for name in ("__init__", "join") if agent is not None)]
    originals = [(kind, name, getattr(kind, name)) for kind, name in waits if hasattr(kind, name)]
    for kind, name, original in originals:
        setattr(kind, name, _waited_for(original, around))

    def undo() -> None:
        for kind, name, original in originals:
            setattr(kind, name, original)

    return undo


def _waited_for(original: Kernel, around: Callable[[Callable[[], object]], None]) -> Kernel:
    @functools.wraps(original)
    def wait(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return original(*args, **kwargs)
        found: list[Any] = []
        around(lambda: found.append(original(*args, **kwargs)))
        return found[0]

    return wait


def consumer_of_work(frame: Any) -> Literal["python", "reducer", "native"]:
    """Say who waits for the work of a collective that was called from *frame*.

    ``reducer``: C++ takes its future. ``native``: C++ calls its C++ method, and not the future's.
    ``python``: anybody else, so the work has to stay what it is; `Work.wait` is called.
    """
    caller = (frame.f_code.co_filename, frame.f_code.co_name)
    if caller in _TAKE_FUTURES:
        return "reducer"
    return "native" if caller in _WAIT_NATIVELY else "python"


_BACKWARD = (torch.autograd.graph.__file__, "_engine_run_backward")


def is_backward(frame: Any) -> bool:
    """Say whether a thread that is at *frame* is in the C++ of a backward pass."""
    return frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) == _BACKWARD


#: What gloo and NCCL say when a peer's end of a connection is gone.
_LOST = re.compile(
    r"[Cc]onnection (closed|reset|refused)|Socket closed|[Bb]roken pipe|Read error|gloo|NCCL"
)


def is_lost_connection(exc: BaseException) -> bool:
    """Say whether *exc* reads as what a native call raises when the process of a peer has ended.

    So may an error that the user raises: who asks has to tell those apart.
    """
    return isinstance(exc, RuntimeError) and _LOST.search(str(exc)) is not None


def is_real(value: Any) -> bool:
    """Say whether *value* is a tensor with data: neither traced nor on the meta device."""
    if type(value) is torch.Tensor:
        return not value.is_meta
    from torch._subclasses.fake_tensor import FakeTensor

    return (
        isinstance(value, torch.Tensor)
        and not isinstance(value, FakeTensor)
        and value.device.type != "meta"
    )


#: `dist.send` and `dist.recv` are isend and irecv, then a wait; only the frame tells them apart.
_BLOCKING_CODES: frozenset[CodeType] = frozenset(
    inspect.unwrap(function).__code__ for function in (c10d.send, c10d.recv)
)
_BLOCKING_DEPTH = 8


def is_blocking_message(frame: Any) -> bool:
    """Say whether *frame* was called by `dist.send` or `dist.recv`, which wait for their peer."""
    for _ in range(_BLOCKING_DEPTH):
        if frame is None:
            return False
        if frame.f_code in _BLOCKING_CODES:
            return True
        frame = frame.f_back
    return False


# Groups -----------------------------------------------------------------------------------------


def living_groups() -> list[ProcessGroup]:
    """Return the groups that this process is in, the world first, the others as they were made.

    Those that were put aside are among them.
    """
    world = default_group()
    groups = [group for group in list(_book("pg_map")) if group is not world]
    return groups if world is None else [world, *groups]


def default_group() -> ProcessGroup | None:
    """Return the group of all ranks, also while it is put aside; ``None`` where there is none."""
    world = c10d.GroupMember.WORLD
    return _aside.world if world is None and _aside is not None else world


def is_living(group: ProcessGroup) -> bool:
    """Say whether *group* has not been destroyed; one that was put aside has not."""
    return group in _book("pg_map")


def group_ranks(group: ProcessGroup) -> tuple[int, ...] | None:
    """Return the ranks of *group* in the world in its order; ``None`` for a group unknown here."""
    ranks = _book("pg_group_ranks").get(group)
    return None if ranks is None else tuple(sorted(ranks, key=ranks.__getitem__))


def group_backends(group: ProcessGroup) -> dict[str, str]:
    """Return the backend of each device type: ``{"cpu": "gloo"}``; empty where unknown."""
    config = _book("pg_backend_config").get(group, "")
    pairs = (pair.partition(":") for pair in str(config).split(",") if pair)
    return {device: backend.lower() for device, _, backend in pairs}


def group_timeout(group: ProcessGroup, device: torch.device) -> timedelta:
    """Return after which time a call of *group* fails."""
    timeout: timedelta = group._get_backend(device).options._timeout
    return timeout


def set_group_timeout(native: ProcessGroup, timeout: timedelta) -> None:
    """Let the calls that go to *native* fail after *timeout*."""
    for device in native._device_types:
        native._get_backend(device)._set_default_timeout(timeout)


def group_count() -> int:
    """Return how many groups were made so far; torch names the next one after it."""
    return int(c10d._world.group_count)


def set_group_count(count: int) -> None:
    """Let the next group be named after *count*."""
    c10d._world.group_count = count


def described_group(*args: Any, **kwargs: Any) -> tuple[str, tuple[int, ...]]:
    """Return name and ranks of the group that one of torch's makers of groups is called for.

    Args:
        *args: Those of the maker.
        **kwargs: Likewise.
    """
    if args and isinstance(args[0], ProcessGroup):
        given = dict(zip(_SPLITTER_ARGUMENTS, args, strict=False)) | kwargs
        members = group_ranks(given["parent"]) or ()
        return str(given.get("group_name")), tuple(members[rank] for rank in given["ranks"])
    given = dict(zip(_MAKER_ARGUMENTS, args, strict=False)) | kwargs
    ranks = given["global_ranks_in_group"] or range(given["group_size"])
    return str(given["group_name"]), tuple(ranks)


_MAKER_ARGUMENTS = tuple(inspect.signature(c10d._new_process_group_helper).parameters)
_SPLITTER_ARGUMENTS = ("parent", "ranks")


def wrap_group_maker(wrap: Callable[[Kernel], Kernel]) -> Callable[[], None]:
    """Put *wrap* around what makes every group, and what splits one; return the undoing."""
    maker, splitter = c10d._new_process_group_helper, ProcessGroup.split_group
    changed: Any = ProcessGroup
    c10d._new_process_group_helper = wrap(maker)
    changed.split_group = wrap(splitter)

    def undo() -> None:
        c10d._new_process_group_helper = maker
        changed.split_group = splitter

    return undo


def number_names(count: Callable[[tuple[int, ...]], int | None]) -> None:
    """Let torch tell groups of the same ranks apart by *count*, where it names groups by these.

    It takes how many groups live on a rank, which may be another number on another rank. Also say
    more where it refuses to split a group: on GPUs it does that whenever a mesh is made.
    """
    parents: list[ProcessGroup | None] = []  # of the group that is being split
    original, original_name = c10d.split_group, c10d._hash_ranks_to_str

    def split_group(parent_pg: ProcessGroup | None = None, *args: Any, **kwargs: Any) -> Any:
        parents.append(parent_pg or default_group())
        try:
            return original(parent_pg, *args, **kwargs)
        except RuntimeError as exc:
            if torch.accelerator.is_available():
                raise
            raise RuntimeError(
                "torch splits groups of GPUs alone, and these ranks have none.\n"
                "`dist.new_group` makes the same groups: call it on all ranks, once for each."
            ) from exc
        finally:
            parents.pop()

    def name_of(ranks: list[int]) -> str:
        parent = parents[-1] if parents else None
        members = None if parent is None else group_ranks(parent)
        named = tuple(ranks) if members is None else tuple(members[rank] for rank in ranks)
        number = count(named)
        if number is None:
            return original_name(ranks)
        return hashlib.sha1(f"{named} {number}".encode(), usedforsecurity=False).hexdigest()

    replace_function("split_group", lambda _: split_group)
    c10d._hash_ranks_to_str = name_of


#: Methods that go to the backend of a group past the operators, with a device as argument.
_BACKEND_METHODS = ("_get_backend", "_start_coalescing", "_end_coalescing")


def redirect_backends(in_use: Callable[[ProcessGroup], ProcessGroup]) -> None:
    """Let a group that is asked for its backend answer for the group that stands in for it."""
    changed: Any = ProcessGroup
    for name in _BACKEND_METHODS:
        if (original := getattr(changed, name, None)) is not None:
            setattr(changed, name, _redirected(original, in_use))


def _redirected(original: Kernel, in_use: Callable[[ProcessGroup], ProcessGroup]) -> Kernel:
    @functools.wraps(original)
    def method(self: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
        return original(in_use(self), *args, **kwargs)

    return method


def set_group_store(group: ProcessGroup, store: Store) -> None:
    """Let torch use *store* for *group*, and for groups that are made from it."""
    c10d._world.pg_map[group] = (c10d._world.pg_map[group][0], store)


def make_group(group: ProcessGroup, store: Store) -> ProcessGroup:
    """Make a group with the members, devices and default backend of *group*, still without any.

    *store* has the prefixes that a fresh process uses, so that one may join with it.
    """
    fresh = ProcessGroup(store, group.rank(), group.size())
    fresh._set_default_backend(_default_type(group))
    if group.bound_device_id is not None:
        fresh.bound_device_id = group.bound_device_id
    return fresh


def _default_type(group: ProcessGroup) -> Any:
    is_nccl = "nccl" in group_backends(group).values()
    return ProcessGroup.BackendType.NCCL if is_nccl else ProcessGroup.BackendType.GLOO


def add_backend(fresh: ProcessGroup, group: ProcessGroup, name: str, backend: Any) -> None:
    """Let *backend*, called *name*, carry in *fresh* the devices that such a one has in *group*."""
    backend.options.group_name = group.group_name
    backend.options.global_ranks_in_group = (
        [] if group is default_group() else list(group_ranks(group) or ())
    )
    backend._set_sequence_number_for_group()
    kind = getattr(ProcessGroup.BackendType, name.upper())
    for device, carried_by in group_backends(group).items():
        if carried_by == name:
            fresh._register_backend(torch.device(device), kind, backend)


def name_group(fresh: ProcessGroup, group: ProcessGroup) -> None:
    """Give *fresh* the name of *group*; it lives on the backends, so they come first."""
    fresh._set_group_name(group.group_name)
    fresh._set_group_desc(group.group_desc)


def backends_of(group: ProcessGroup, name: str | None = None) -> list[Any]:
    """Return the backend objects in use for *group*, each once: all, or those called *name*."""
    carried = [d for d, backend in group_backends(group).items() if name in (None, backend)]
    found = [group._get_backend(torch.device(device)) for device in carried]
    return list({id(backend): backend for backend in found}.values())


def make_gloo(store: Store, group: ProcessGroup, timeout: timedelta, connect: timedelta) -> Any:
    """Connect a gloo backend with the members of *group*; returns when all have come."""
    backend = c10d.ProcessGroupGloo(PrefixStore("cpu/", store), group.rank(), group.size(), connect)
    backend.set_timeout(timeout)
    return backend


def make_nccl(store: Store, group: ProcessGroup, timeout: timedelta, _connect: timedelta) -> Any:
    """Make an NCCL backend for the members of *group*; it connects at its first call."""
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return c10d.ProcessGroupNCCL(PrefixStore("cuda/", store), group.rank(), group.size(), options)


def open_store(host: str, port: int, timeout: timedelta) -> Store:
    """Connect to a TCPStore that another process keeps."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


def keys_of(store: Any) -> list[str]:
    """Return all keys of *store*; none where torch does not tell."""
    return list(store.list_keys()) if hasattr(store, "list_keys") else []


def first_device(group: ProcessGroup) -> torch.device:
    """Return a device whose tensors *group* carries."""
    return torch.device(next(iter(group_backends(group)), "cpu"))


def prefix_store(prefix: str, store: Store) -> Store:
    """Return *store* with *prefix* before every key."""
    return PrefixStore(prefix, store)


def replay_group(
    name: str, ranks: Sequence[int], backend: str, description: str, timeout: timedelta
) -> None:
    """Make a group that the other ranks have already, under the name it has there."""
    world = c10d._get_default_group()
    group, _ = c10d._new_process_group_helper(
        len(ranks),
        ranks.index(world.rank()),
        list(ranks),
        backend,
        c10d._world.pg_map[world][1],
        c10d.GroupName(name),
        timeout=timeout,
        group_desc=description,
    )
    c10d._world.pg_group_ranks[group] = {rank: index for index, rank in enumerate(ranks)}
    call_by_backend(group)


def call_by_backend(group: ProcessGroup) -> None:
    """Let `dist.get_backend` of *group* be what scripts compare with: ``gloo``, not ``cpu:gloo``.

    Where devices have different backends torch's own name stays: groups made from this one take
    their backends from it, and should carry both.
    """
    backends = set(group_backends(group).values())
    if len(backends) == 1:
        c10d._world.pg_map[group] = (c10d.Backend(backends.pop()), c10d._world.pg_map[group][1])


# The world, put aside ---------------------------------------------------------------------------

#: What torch forgets of its groups when the world is destroyed, by group; also, by tag, the groups.
_BOOKS = (
    *("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config"),
    *("pg_to_tag", "pg_coalesce_state"),
)
_TAGS = "tags_to_pg"


@dataclass(frozen=True)
class _Remembered:
    """What torch knew of a group that was put aside.

    Attributes:
        group: Returns it; ``None`` where it is a sub-group that nobody holds any more.
        entries: Those of torch's books.
        tags: Under which torch lists it.
    """

    group: Callable[[], ProcessGroup | None]
    entries: dict[str, Any]
    tags: list[str]


@dataclass(frozen=True)
class _Aside:
    """What torch knew of its groups: there is one such memory in a process, as torch's."""

    world: ProcessGroup
    groups: list[_Remembered]
    communicators: list[Any]


_aside: _Aside | None = None


def _book(name: str) -> dict[Any, Any]:
    books: dict[Any, Any] = getattr(c10d._world, name)
    if _aside is None:
        return books
    living = [(put.group(), put.entries) for put in _aside.groups]
    return {
        **{g: entries[name] for g, entries in living if g is not None and name in entries},
        **books,
    }


def is_world_aside() -> bool:
    """Say whether torch takes its groups for destroyed, and they are not."""
    return _aside is not None


def put_world_aside() -> None:
    """Let torch take all its groups for destroyed, and end none that somebody holds.

    They keep their names, and torch goes on counting: no name is given twice.
    """
    global _aside
    world = c10d.GroupMember.WORLD
    if world is None:
        return
    groups = [_remember(group, is_world=group is world) for group in c10d._world.pg_map]
    _aside = _Aside(world, groups, list(c10d._world.comms))
    for name in (*_BOOKS, _TAGS):
        getattr(c10d._world, name).clear()
    c10d._world.comms.clear()
    c10d._update_default_pg(None)


def _remember(group: Any, *, is_world: bool) -> _Remembered:
    entries = {
        name: book[group] for name in _BOOKS if group in (book := getattr(c10d._world, name))
    }
    tags = [tag for tag, groups in getattr(c10d._world, _TAGS).items() if group in groups]
    return _Remembered((lambda: group) if is_world else weakref.ref(group), entries, tags)


def put_world_back() -> None:
    """Let torch know again what was put aside and has not ended."""
    global _aside
    if _aside is None:
        return
    for put in _aside.groups:
        if (group := put.group()) is None:
            _native._unregister_process_group(put.entries["pg_names"])
            continue
        for name, entry in put.entries.items():
            getattr(c10d._world, name)[group] = entry
        for tag in put.tags:
            getattr(c10d._world, _TAGS).setdefault(tag, []).append(group)
    c10d._world.comms.extend(_aside.communicators)
    c10d._update_default_pg(_aside.world)
    _aside = None


def replace_function(name: str, changed: Callable[[Kernel], Kernel]) -> Callable[[], None]:
    """Put *changed* of `dist.<name>` in its place wherever it was imported; return the undoing."""
    original = getattr(c10d, name)
    replacement = functools.wraps(original)(changed(original))
    places = [
        m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is original
    ]

    def put(function: Kernel) -> None:
        for module in places:
            setattr(module, name, function)

    put(replacement)
    return functools.partial(put, original)


def replace_store_maker(is_kept: Callable[[str, int], bool]) -> Callable[[], None]:
    """Have rendezvous look for a store where *is_kept*, and host one elsewhere as it does.

    ``TORCHELASTIC_USE_AGENT_STORE`` would mean all addresses, and the processes that a rank starts.
    """
    # Not by import: `torch.distributed.rendezvous` is a function of the module called so.
    rendezvous: Any = sys.modules["torch.distributed.rendezvous"]
    original = rendezvous._create_c10d_store

    @functools.wraps(original)
    def make(hostname: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if not is_kept(hostname, port):
            return original(hostname, port, *args, **kwargs)
        timeout = (
            inspect.signature(original).bind(hostname, port, *args, **kwargs).arguments["timeout"]
        )
        return open_store(hostname, port, timeout)

    rendezvous._create_c10d_store = make

    def undo() -> None:
        rendezvous._create_c10d_store = original

    return undo


# Modules ----------------------------------------------------------------------------------------


def watch_ddp(seen: Callable[[Any], None]) -> Callable[[], None]:
    """Call *seen* with every DDP module once it is made; return what ends that."""
    from torch.nn.parallel import DistributedDataParallel

    original = DistributedDataParallel.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        seen(self)

    original_setstate = DistributedDataParallel.__setstate__

    @functools.wraps(original_setstate)
    def setstate(self: Any, state: Any) -> None:  # one that was copied has no `__init__`
        original_setstate(self, state)  # type: ignore[no-untyped-call]
        seen(self)

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
    DistributedDataParallel.__setstate__ = setstate  # type: ignore[method-assign]

    def undo() -> None:
        DistributedDataParallel.__init__ = original  # type: ignore[method-assign]
        DistributedDataParallel.__setstate__ = original_setstate  # type: ignore[method-assign]

    return undo


def fsdp_roots() -> list[Any]:
    """Return the outermost FSDP2 modules that live."""
    if not _has_fsdp():
        return []
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in _module_state_mapping if isinstance(module, FSDPModule)]
    return [module for module in modules if module._get_fsdp_state()._is_root]


def reset_ddp(module: Any) -> None:
    """Let a DDP module forget a half-done step."""
    module._update_process_group(module.process_group)


def reset_fsdp(root: Any) -> None:
    """Let an FSDP2 module forget a half-done step, with all modules below it.

    `reset_iter_state` leaves the gradients of parameters whose reduction had not begun (those of
    the root come last), where `zero_grad` does not see them; they would be added to the next ones.
    """
    root.reset_iter_state()
    for state in root._get_fsdp_state()._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            for parameter in group.fsdp_params:
                parameter.unsharded_accumulated_grad = None
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None
