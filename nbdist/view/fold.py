"""Show once what several ranks have in common.

Ranks fold only where all they show is *exactly* equal: numbers are never rounded, addresses and
times never masked, since one odd digit may be what the user looks for.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from nbdist.view.consolidate import Shown
from nbdist.view.progress import Bar
from nbdist.wire import Dropped, Text


@dataclass(frozen=True)
class Block:
    """Outputs, and the ranks (ascending) that have exactly these."""

    ranks: tuple[int, ...]
    outputs: tuple[Shown, ...]


def fold(outputs: Mapping[int, Sequence[Shown]]) -> tuple[Block, ...]:
    """Put ranks with equal outputs into one block; blocks come in the order of their first rank.

    Args:
        outputs: Consolidated outputs by rank.
    """
    groups: dict[Hashable, list[int]] = {}
    for rank in sorted(outputs):
        groups.setdefault(identity(outputs[rank]), []).append(rank)
    return tuple(Block(tuple(ranks), tuple(outputs[ranks[0]])) for ranks in groups.values())


def identity(outputs: Sequence[Shown]) -> Hashable:
    """Return a key that is equal for two ranks if and only if they show the same."""
    return tuple(_identity(output) for output in outputs)


def _identity(output: Shown) -> Hashable:
    if isinstance(output, Text):
        return output.name, output.text
    if isinstance(output, Dropped | Bar):
        return output
    # As text, because a NaN is not equal to itself, and 1 is equal to 1.0 and True.
    facts = [output.kind, dict(output.data), dict(output.metadata), repr(output.scalar)]
    return json.dumps(facts, sort_keys=True, default=repr)
