"""What the guard says: which call, what differs, who has not come.

Pure: records and slots in, text out.
"""

from __future__ import annotations

from nbdist.runtime.signature import fits
from nbdist.runtime.slots import Record, Slot

_WORLD = "0"  # torch's name of the first group that is made


def where_text(record: Record, group: str, seq: int) -> str:
    """Say which call of which group this is, and where it stands."""
    place = f" at {record.source}" if record.source else ""
    return f"{record.text} (#{seq} of group {_name(group)}){place}"


def mismatch_text(slot: Slot, seq: int, group: str) -> str:
    """Say what each rank calls as number *seq* of a group; ranks that agree share a line."""
    ranks_of: dict[str, list[str]] = {}
    for member, rank in enumerate(slot.key.ranks):
        record = slot.record(member, seq) if slot.seq(member) >= seq else None
        if record is not None:
            place = f" at {record.source}" if record.source else ""
            ranks_of.setdefault(f"{_full_text(record)}{place}", []).append(str(rank))
    lines = [
        f"  rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: {text}"
        for text, ranks in ranks_of.items()
    ]
    return "\n".join(
        [
            f"the ranks of group {_name(group)} call different things as collective #{seq}:",
            *lines,
            *_misfits(slot, seq),
            "Every rank of a group has to call the same collectives in the same order, with equal "
            "dtype and number of elements. All variables are kept.",
        ]
    )


def _misfits(slot: Slot, seq: int) -> list[str]:
    """Name the pairs of ranks of which one gives another amount than the other takes."""
    records = [slot.record(member, seq) for member in range(slot.num_members)]
    members = [(member, record) for member, record in enumerate(records) if record is not None]
    pairs = [
        (slot.key.ranks[giver], slot.key.ranks[taker], given.gives[taker], taken.takes[giver])
        for giver, given in members
        for taker, taken in members
        if given.key == taken.key and not fits(given.gives, taken.takes, giver, taker)
    ]
    return [
        f"  rank {giver} gives rank {taker} {_elements(gives)}, rank {taker} takes {takes} from it"
        for giver, taker, gives, takes in pairs
    ]


def _elements(count: int) -> str:
    return f"{count} element" if count == 1 else f"{count} elements"


def _name(group: str) -> str:
    """Return what people call a group that torch calls *group*."""
    return "world" if group == _WORLD else group


def _full_text(record: Record) -> str:
    """The call with the amounts it gives and takes, where ranks may differ in them."""
    amounts = [
        f"{name} {['*' if n < 0 else n for n in values]}".replace("'", "")
        for name, values in (("gives", record.gives), ("takes", record.takes))
        if any(n >= 0 for n in values)
    ]
    return " ".join([record.text, *amounts])


def message_mismatch_text(slot: Slot, sent: Record, received: Record, group: str) -> str:
    """Say what is sent and what is received."""
    ranks = slot.key.ranks
    return (
        f"rank {ranks[1]} receives something else than rank {ranks[0]} sends, in group "
        f"{_name(group)}:\n"
        f"  rank {ranks[0]}: {sent.text}{_at(sent)}\n"
        f"  rank {ranks[1]}: {received.text}{_at(received)}\n"
        "Both need equal dtype and number of elements. All variables are kept."
    )


def _at(record: Record) -> str:
    return f" at {record.source}" if record.source else ""


def missing_text(slot: Slot, seq: int) -> str:
    """Say who has not come to call *seq*."""
    ranks = [str(rank) for member, rank in enumerate(slot.key.ranks) if slot.seq(member) < seq]
    who = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(ranks)} have"
    return f"{who} not come."
