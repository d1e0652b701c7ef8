"""What a user reads while a cell hangs: who waits where, who is the cause, what to do next.

    diagnose(...) ──▶ Diagnosis ──▶ hang_headline, hang_text       the card
    explain(...)  ──▶ Diagnosis ──▶ certain_text                   the error

Only words are chosen here; who is to blame was decided before. A card stays short however many
ranks there are: equal places share a line, and what is too much is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nbdist.view.columns import clip
from nbdist.view.names import name_ranks

MAX_NAMED = 3  # places in the headline, and causes
MAX_LINES = 8
MAX_NAME_CHARS = 48
MAX_PIDS = 8
MAX_SOURCE_CHARS = 100

# In the order in which they are told: what has to be done something about comes first.
CulpritKind = Literal[
    "dead",
    "stopped",  # by SIGSTOP
    "silent",  # its control thread does not answer
    "starved",  # nor here, where the machine does not let it run
    "mismatch",  # these ranks call different things
    "deadlock",  # these ranks wait for each other
    "absent",  # was not given the cell
    "gave_up",  # left the collective by an exception, and goes on
    "ended",  # is over with the cell, however it ended
    "input",  # waits for the user
    "elsewhere",  # runs another cell, or has not begun this one
    "working",  # runs code of the cell
]

_PLURALS = {
    "is": "are",
    "has": "have",
    "was": "were",
    "does": "do",
    "waits": "wait",
    "sleeps": "sleep",
    "awaits": "await",
    "runs": "run",
    "calls": "call",
}


@dataclass(frozen=True)
class Wait:
    """Ranks that wait at one place.

    Attributes:
        ranks: Ascending.
        kind: In a collective of a ``group``, for a ``p2p`` message, or in a ``native`` call of
            which only the name is known.
        op: ``all_reduce``.
        seq: Its number in the group; 0 where that says nothing.
        groups: Names of the groups it is in; ``world`` is that of all ranks.
        text: The call of the first rank: ``all_reduce(float32[10], sum)``; empty where unknown.
        where: Line of the call: ``In[12]:7``; empty where unknown.
        since_s: How long the one that has waited longest has done so.
        missing: Who has not come, ascending.
    """

    ranks: tuple[int, ...]
    kind: Literal["group", "p2p", "native"]
    op: str
    seq: int
    groups: tuple[str, ...]
    text: str
    where: str
    since_s: float
    missing: tuple[int, ...]

    def summary(self) -> str:
        """Say who waits where: ``ranks 0, 2, 3 wait in all_reduce #41 (In[12]:7)``."""
        return f"{self._who()}{f' ({self.where})' if self.where else ''}"

    def sentence(self) -> str:
        """Say the same in an error: ``ranks 0, 2, 3 wait in all_reduce #41 at In[12]:7``."""
        return f"{self._who()}{f' at {self.where}' if self.where else ''}"

    def _who(self) -> str:
        return f"{short_name(self.ranks)} {_verb('waits', self.ranks)} in {self._call()}"

    def details(self) -> str:
        """Say all that is known, to follow the names of the ranks."""
        where = f" at {self.where}" if self.where else ""
        for_whom = f" for {short_name(self.missing)}" if self.missing else ""
        return (
            f"{_verb('has', self.ranks)} waited {duration(self.since_s)}{for_whom} "
            f"in {self._full_call()}{where}"
        )

    def _call(self) -> str:
        if self.kind == "p2p" and len(self.missing) == 1:
            return f"{self.op} {'to' if self.op == 'send' else 'from'} rank {self.missing[0]}"
        number = f" #{self.seq}" if self.seq else ""
        return f"{self.op}{number}{'' if self.groups == ('world',) else self._of_groups()}"

    def _full_call(self) -> str:
        number = f"#{self.seq}" if self.seq else ""
        which = f"{number}{self._of_groups()}".strip()
        return f"{self.text or self.op}{f' ({which})' if which else ''}"

    def _of_groups(self) -> str:
        if self.kind != "group" or not self.groups:
            return ""
        many = len(self.groups) > 1
        return f" of {len(self.groups)} groups" if many else f" of group {self.groups[0]}"


@dataclass(frozen=True)
class Culprit:
    """Ranks that others wait for, and what they do instead.

    Attributes:
        ranks: Ascending.
        kind: What sort of reason it is; what to do next depends on it.
        text: What one of them does: ``is in load_batch() at In[12]:4``.
        source: The line of code they are at; empty where that says nothing.
        since_s: For how long, where that is known.
        pids: Their processes, where the user may have to signal them.
    """

    ranks: tuple[int, ...]
    kind: CulpritKind
    text: str
    source: str = ""
    since_s: float | None = None
    pids: tuple[int, ...] = ()

    def summary(self) -> str:
        """Say who does what: ``rank 1 is in load_batch() at In[12]:4``."""
        return f"{short_name(self.ranks)} {self._doing()}"

    def details(self) -> str:
        """Say all that is known, to follow the names of the ranks."""
        source = clip(self.source, MAX_SOURCE_CHARS)
        return f"{self._doing()}{f': {source}' if source else ''}"

    def _doing(self) -> str:
        verb, space, rest = self.text.partition(" ")
        since = "" if self.since_s is None else f" since {duration(self.since_s)}"
        return f"{_verb(verb, self.ranks)}{space}{rest}{since}{self._remedy()}"

    def _remedy(self) -> str:
        if self.kind != "stopped":
            return ""
        pids = " ".join(map(str, self.pids[:MAX_PIDS])) + " …" * (len(self.pids) > MAX_PIDS)
        them = "it" if len(self.ranks) == 1 else "them"
        return f"; kill -CONT {pids or 'PID'} lets {them} go on"


@dataclass(frozen=True)
class Diagnosis:
    """Why a cell does not get on.

    Attributes:
        label: The cell: ``In[12]``.
        ranks: Those it was sent to, ascending.
        waits: Who waits where, in the order of the first rank; empty where nobody does and a rank
            only does not answer.
        culprits: Whom they wait for, in the order of what has to be done about them.
    """

    label: str
    ranks: tuple[int, ...]
    waits: tuple[Wait, ...]
    culprits: tuple[Culprit, ...]

    @property
    def headline(self) -> str:
        """All of it in one line; without times but for a rank that does not answer."""
        parts = [wait.summary() for wait in self.waits[:MAX_NAMED]]
        parts += _more(len(self.waits) - MAX_NAMED, "others wait at", "place")
        parts += [culprit.summary() for culprit in self.culprits[:MAX_NAMED]]
        parts += _more(len(self.culprits) - MAX_NAMED, "others do", "other thing")
        return "; ".join(parts)

    @property
    def lines(self) -> tuple[str, ...]:
        """Each place and each cause with all that is known of it, one line each."""
        waits = [f"{short_name(wait.ranks)} {wait.details()}" for wait in self.waits[:MAX_LINES]]
        waits += _more(len(self.waits) - MAX_LINES, "others wait at", "place")
        culprits = [f"{short_name(c.ranks)} {c.details()}" for c in self.culprits[:MAX_LINES]]
        culprits += _more(len(self.culprits) - MAX_LINES, "others do", "other thing")
        return (*waits, *culprits)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do next, the most helpful first."""
        kinds = dict.fromkeys(culprit.kind for culprit in self.culprits)
        if not kinds.keys() <= _HOPEFUL:  # in vain, as somebody else never comes
            kinds = dict.fromkeys(kind for kind in kinds if kind not in ("working", "elsewhere"))
        stop = _STOP_OTHERS if kinds.keys() & {"silent", "starved", "stopped"} else _STOP
        return (*(text for kind in kinds if (text := self._advice(kind))), stop)

    def _advice(self, kind: CulpritKind) -> str:
        ranks = sorted(rank for c in self.culprits if c.kind == kind for rank in c.ranks)
        who = short_name(ranks)
        if kind == "absent":
            return (
                f"{self.label} runs on {short_name(self.ranks)} only; {who} will never come: "
                "stop it and run it with `%%dist all`."
            )
        if kind == "silent":
            numbers = ",".join(map(str, ranks))
            return (
                f"If that call never returns, `%dist restart --ranks {numbers}` puts a fresh "
                f"process in the place of {who}; the others keep all they have."
            )
        if kind == "deadlock":
            return self.way_out_of_deadlock()
        return _ADVICE.get(kind, "").format(who=who)

    def way_out_of_deadlock(self) -> str:
        """Say how ranks that wait for each other can be kept from it."""
        if any(wait.kind == "p2p" for wait in self.waits):
            return (
                "None of them can go on: let one side receive while the other sends, or use "
                "`isend`, `irecv` or `batch_isend_irecv`."
            )
        return (
            "None of them can go on: every rank has to call the collectives of these groups in the "
            "same order."
        )


_HOPEFUL = {"working", "elsewhere", "input", "silent", "starved", "stopped"}
_STOP = "The stop button ends the cell on every rank within a second and keeps all variables."
_STOP_OTHERS = "The stop button frees all other ranks; every variable is kept."
_ADVICE: dict[CulpritKind, str] = {
    "working": "If {who} will get there, let it run.",
    "elsewhere": "If {who} will get there, let it run.",
    "input": "Answer the prompt of {who}.",
    "ended": "{who} will not come any more: the ranks of a group have to call the same "
    "collectives.",
    "gave_up": "{who} will not come any more: the ranks of a group have to call the same "
    "collectives, also after an exception.",
    "starved": "{who} will get on as soon as the machine has time: end what else computes there, "
    "or use fewer ranks.",
    "dead": "`%dist recover` puts a fresh process in the place of {who}; the others keep all "
    "they have.",
    "mismatch": "With `guard=on` such calls raise on every rank before anything is sent.",
}


def certain_text(diagnosis: Diagnosis) -> str:
    """Say why the calls of *diagnosis* were ended: nobody can come to them any more."""
    parts = [wait.sentence() for wait in diagnosis.waits[:MAX_NAMED]]
    parts += _more(len(diagnosis.waits) - MAX_NAMED, "others wait at", "place")
    parts += [culprit.summary() for culprit in diagnosis.culprits]
    return (
        f"{'; '.join(parts)}\n"
        "Nobody can come any more, so the wait was ended. All variables are kept; the next cell "
        "works with the same groups.\n"
        f"{_certain_advice(diagnosis)} `hang.certain=warn` lets such calls wait."
    )


def _certain_advice(diagnosis: Diagnosis) -> str:
    kinds = {culprit.kind for culprit in diagnosis.culprits}
    if "deadlock" in kinds:
        return diagnosis.way_out_of_deadlock()
    if "absent" in kinds:
        return (
            f"{diagnosis.label} was given to {short_name(diagnosis.ranks)} only: run it with "
            "`%%dist all`, or use a group of these ranks."
        )
    if all(wait.kind == "p2p" for wait in diagnosis.waits):
        return "Each receive needs a send on the other rank, and each send a receive."
    return "Every rank of a group has to call the same collectives."


Hang = Diagnosis | str
"""Why a cell does not get on, or why that cannot be said."""


def hang_headline(hang: Hang | None) -> str | None:
    """Return *hang* in one line; ``None`` where there is none."""
    return hang.headline if isinstance(hang, Diagnosis) else hang


def hang_text(hang: Hang) -> str:
    """Write *hang* as plain text without a line break at its end."""
    if isinstance(hang, str):
        return hang
    lines = [f"  {line}" for line in (*hang.lines, *hang.advice)]
    return "\n".join([hang.headline, *lines])


def short_name(ranks: Iterable[int]) -> str:
    """Name *ranks*; where that gets long, by their number and the first ones."""
    ranks = sorted(set(ranks))
    name = name_ranks(ranks)
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{len(ranks)} ranks ({', '.join(map(str, ranks[:4]))}, …)"


def duration(seconds: float) -> str:
    """Write a time in whole seconds, minutes or hours, at least one second."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def _verb(verb: str, ranks: tuple[int, ...]) -> str:
    return verb if len(ranks) == 1 else _PLURALS.get(verb, verb)


def _more(number: int, what: str, noun: str) -> list[str]:
    return [f"{what} {number} {noun}{'s' * (number > 1)}"] if number > 0 else []
