"""Stand in front of every collective of torch: one Python kernel per operator of ``c10d``.

    dist.*, DDP's reducer, FSDP2, DTensor, functional ──▶ c10d operator ──▶ hook ──▶ native group

The hook hands each call to one listener (the guard) and sends it to the group that stands in for
the one named, where there is one (the lifeline's, after a rebuild); who asks a group for its
backend is sent there, too. What the native call returns goes past one waiter, which may wait for it
in Python. Groups are announced to one witness before they are made, and named after the number that
one counter gives. One such set per process.

Not seen: calls on a backend object itself, and store operations (rendezvous, `new_group`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from nbdist.runtime import torch_private
from nbdist.runtime.signature import NAMES
from nbdist.runtime.torch_private import ProcessGroup


class Call(NamedTuple):  # which takes a third of the time of a frozen dataclass to make
    """One call of an operator.

    Attributes:
        op: Name of the operator in torch's ``c10d`` library.
        group: The group that was named by the caller.
        args: The other arguments by name, those left to their defaults missing; the reduce
            operation as torch's number.
    """

    op: str
    group: ProcessGroup
    args: Mapping[str, Any]


Issue = Callable[[], Any]
Listener = Callable[[Call, Issue], Any]
Waiter = Callable[[Any], Any]
Witness = Callable[[str, tuple[int, ...]], None]
Counter = Callable[[tuple[int, ...]], int]


class Hooks:
    """The kernels; passive until `install`."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.waiter: Waiter | None = None
        self.witness: Witness | None = None
        self.counter: Counter | None = None
        self._stand_ins: WeakKeyDictionary[ProcessGroup, ProcessGroup] = WeakKeyDictionary()
        self._library: Any = None

    def __repr__(self) -> str:
        state = "installed" if self._library is not None else "not installed"
        return f"<Hooks {state}, {len(self._stand_ins)} groups stood in for>"

    def install(self) -> None:
        """See every collective from now on; a second call does nothing."""
        if self._library is not None:
            return
        self._library = torch.library.Library("c10d", "IMPL")
        below = torch_private.keys_below_hook()
        for name in NAMES:
            op = torch_private.operator(name)
            if op is not None:  # a torch without this operator has no such collective
                torch_private.hook(self._library, name, self._kernel(name, op, below))
        torch_private.wrap_group_maker(self._witnessed)
        torch_private.number_names(self._count)
        torch_private.redirect_backends(self.in_use)

    def stand_in(self, group: ProcessGroup, replacement: ProcessGroup) -> None:
        """Send the calls of *group* to *replacement* from now on."""
        self._stand_ins[group] = replacement

    def in_use(self, group: ProcessGroup) -> ProcessGroup:
        """Return the group that the calls of *group* go to."""
        return self._stand_ins.get(group, group)

    def _count(self, ranks: tuple[int, ...]) -> int | None:
        return None if self.counter is None else self.counter(ranks)

    def _witnessed(self, make_group: Callable[..., Any]) -> Callable[..., Any]:
        def make_witnessed_group(*args: Any, **kwargs: Any) -> Any:
            if self.witness is not None:
                self.witness(*torch_private.described_group(*args, **kwargs))
            return make_group(*args, **kwargs)

        return make_witnessed_group

    def _kernel(self, name: str, op: Any, below: Any) -> Callable[..., Any]:
        names = torch_private.argument_names(op)
        place = names.index("process_group")

        def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
            group = torch_private.unbox(args[place])
            replacement = self._stand_ins.get(group)
            sent = args
            if replacement is not None:
                sent = (*args[:place], replacement.boxed(), *args[place + 1 :])

            def issue() -> Any:
                return op.redispatch(keys & below, *sent, **kwargs)

            if self.listener is None:
                result = issue()
            else:
                given = dict(zip(names, args, strict=False), **kwargs)
                del given["process_group"]
                if "reduce_op" in given:
                    given["reduce_op"] = torch_private.reduce_op_number(
                        given["reduce_op"], sys._getframe(1)
                    )
                result = self.listener(Call(name, group, given), issue)
            return result if self.waiter is None else self.waiter(result)

        return kernel


#: torch has one set of operators per process, so there is one set of hooks.
hooks = Hooks()
