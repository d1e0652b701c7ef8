"""Where the members of each group stand, as their calls say.

Pure. A group is known by its name, its ranks and whether its calls are messages of two of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nbdist.wire import GroupCall

_WORLD_NAMES = ("0", "", "default_pg", "world")
_ROOT = re.compile(r"\broot (\d+)\)$")

Key = tuple[str, tuple[int, ...], str]


def positions(calls: Iterable[GroupCall]) -> dict[Key, dict[int, GroupCall]]:
    """Return where each member of each group stands; the later one where it is named twice.

    A group that was destroyed and made again under the same name is such a case.
    """
    found: dict[Key, dict[int, GroupCall]] = {}
    for call in calls:
        members = found.setdefault(key_of(call), {})
        if call.rank not in members or members[call.rank].since <= call.since:
            members[call.rank] = call
    return found


def key_of(call: GroupCall) -> Key:
    """Return what tells the group of *call* from all others."""
    return call.group, call.ranks, call.kind


def gave_up(member: GroupCall, call: GroupCall) -> bool:
    """Say whether *member* has left *call* before it reached the native group."""
    return member.seq == call.seq and member.phase == "idle" and member.issued < member.seq


def op_of(call: GroupCall) -> str:
    """Return the name of the operation: ``all_reduce``."""
    return call.text.partition("(")[0] or "a collective"


def root_of(call: GroupCall) -> int | None:
    """Return the root of *call* as its rank in the world; ``None`` where there is none."""
    found = _ROOT.search(call.text)
    index = int(found[1]) if found else len(call.ranks)
    return call.ranks[index] if index < len(call.ranks) else None


def group_name(call: GroupCall) -> str:
    """Return the name of its group as it is shown: ``world``."""
    return "world" if call.group in _WORLD_NAMES else call.group
