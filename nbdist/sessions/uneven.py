"""Warn when a cell that ended well has left some rank of a group behind the others.

Pure. The next collective of such a group would meet the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nbdist.sessions.positions import Key, group_name, positions
from nbdist.view import name_ranks
from nbdist.wire import CallCount, GroupCall

_MESSAGES_SENT = {"send": 1, "recv": 2}


def uneven_ends(calls: Sequence[GroupCall], ranks: Iterable[int]) -> str | None:
    """Warn if a cell that ended well has left some rank of a group behind the others.

    Args:
        calls: Where all *ranks* stand, after the end. Without messages to a rank that receives from
            whoever comes first: their receipt is not posted.
        ranks: Those the cell ran on; groups with other members are not looked at.

    Returns:
        What to do about it, one line per group; ``None`` when all have made equally many calls.
    """
    taking_part = set(ranks)
    found = []
    for key, members in sorted(positions(calls).items()):
        if set(key[1]) <= taking_part:
            counts = {rank: members[rank].seq if rank in members else 0 for rank in key[1]}
            if len(set(counts.values())) > 1:
                tell = _uneven_messages if key[2] == "p2p" else _uneven_group
                found.append(tell(key, members, counts))
    return "\n".join(found) or None


def has_uneven_calls(calls: Mapping[int, Sequence[CallCount]]) -> bool:
    """Say whether the counts of a cell leave it open that some rank has made fewer calls.

    Cheap, and asked after every cell; `uneven_ends` knows it exactly.
    """
    totals: dict[tuple[str, tuple[int, ...]], dict[int, list[int]]] = {}
    for rank, counts in calls.items():
        for count in counts:
            by_rank = totals.setdefault((count.group, count.ranks), {})
            total = by_rank.setdefault(rank, [0, 0, 0])
            total[_MESSAGES_SENT.get(count.op, 0)] += count.count
    return any(_is_uneven(key[1], by_rank) for key, by_rank in totals.items())


def _is_uneven(ranks: tuple[int, ...], by_rank: Mapping[int, Sequence[int]]) -> bool:
    collectives = {by_rank.get(rank, (0,))[0] for rank in ranks}
    sent, received = (sum(total[i] for total in by_rank.values()) for i in (1, 2))
    return len(collectives) > 1 or sent != received


def _uneven_group(key: Key, members: Mapping[int, GroupCall], counts: Mapping[int, int]) -> str:
    high = max(counts.values())
    ahead = [rank for rank in key[1] if counts[rank] == high]
    call = members[ahead[0]]
    parts = [
        _fewer(ranks, high - count, ahead, call)
        for count, ranks in _by_count(counts)
        if count < high
    ]
    late = name_ranks(rank for rank in key[1] if counts[rank] < high)
    return (
        f"{' '.join(parts)} The next collective of that group would meet the wrong one: call it "
        f"on {late}, or `%dist recover` makes the ranks agree again."
    )


def _by_count(counts: Mapping[int, int]) -> list[tuple[int, list[int]]]:
    ranks_of: dict[int, list[int]] = {}
    for rank, count in counts.items():
        ranks_of.setdefault(count, []).append(rank)
    return sorted(ranks_of.items(), reverse=True)


def _fewer(ranks: Sequence[int], number: int, ahead: Sequence[int], call: GroupCall) -> str:
    is_one = number == 1
    which = "it has" if len(ranks) == 1 else "they have"
    if not is_one:
        which = f"the last one that {which}"
    return (
        f"{name_ranks(ranks)} ran {'one collective' if is_one else f'{number} collectives'} fewer "
        f"than {name_ranks(ahead)} in group {group_name(call)}: "
        f"{which} not called{'' if is_one else ' is'} {_full(call)}."
    )


def _uneven_messages(key: Key, members: Mapping[int, GroupCall], counts: Mapping[int, int]) -> str:
    sender, receiver = key[1]
    number = abs(counts[sender] - counts[receiver])
    messages = "one message" if number == 1 else f"{number} messages"
    if counts[sender] > counts[receiver]:
        call, what = members[sender], f"rank {sender} sent {messages} that rank {receiver} "
        what += "has not received"
        remedy = f"receive on rank {receiver}"
    else:
        call, what = members[receiver], f"rank {receiver} began to receive {messages} that "
        what += f"rank {sender} has not sent"
        remedy = f"send on rank {sender}"
    return (
        f"{what}, in group {group_name(call)}: {_full(call)}. The next message between them would "
        f"meet the wrong one: {remedy}, or `%dist recover` makes the ranks agree again."
    )


def _full(call: GroupCall) -> str:
    return f"{call.text}{f' ({call.source})' if call.source else ''}"
