"""Two hundred cells of mixed output lose no line. Real ranks; the lines are counted."""

from __future__ import annotations

import pytest

from nbdist.sessions.session import Session
from nbdist.wire import Display, Progress
from tests.sessions.driving import finished, printed, ranks, shown, statuses
from tests.sessions.mixed_cells import NUM_LINES, SETUP, has_figure, has_widget, lines_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

NUM_CELLS = 200


def check(session: Session, number: int) -> None:
    run = finished(session, f"mixed({number})")

    assert statuses(run) == ["ok", "ok"]
    assert run.gaps == []
    for rank in run.ranks:
        assert sorted(printed(run, rank).splitlines()) == lines_of(number)
        outputs = shown(run, rank)
        bars = [output for output in outputs if isinstance(output, Progress)]
        assert [bar.done for bar in bars][-1] == NUM_LINES
        displays = [output for output in outputs if isinstance(output, Display)]
        assert len(displays) == has_widget(number) + has_figure(number)


def test_cells_of_mixed_output_lose_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    with ranks(2) as session:
        finished(session, SETUP)
        for number in range(NUM_CELLS):
            check(session, number)

        assert session.trouble is None
    seen = capfd.readouterr()
    assert "Traceback" not in seen.out + seen.err
