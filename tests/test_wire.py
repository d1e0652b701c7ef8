from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.wire import (
    LOG_END_LENGTH,
    AgentSpec,
    Area,
    CellError,
    CellReply,
    CellRequest,
    Clear,
    Display,
    Dropped,
    Frame,
    Output,
    Text,
    end_of_log,
    log_heading,
    lost_text,
    output_from_json,
    output_to_json,
    to_json,
)

FRAMES = st.builds(
    Frame, st.text(), st.text(), st.text(), is_cell=st.booleans(), is_library=st.booleans()
)
OF_ERROR: dict[str, Any] = {
    "ename": st.text(),
    "evalue": st.text(),
    "frames": st.lists(FRAMES, max_size=2).map(tuple),
    "link": st.sampled_from(["cause", "context"]),
    "waited_for": st.none() | st.integers(0, 9),
}
ERRORS = st.recursive(
    st.builds(CellError, **OF_ERROR, cause=st.none()),
    lambda causes: st.builds(CellError, **OF_ERROR, cause=causes),
    max_leaves=4,
)
TEXTS = st.builds(Text, st.sampled_from(["stdout", "stderr"]), st.text())
DISPLAYS = st.builds(
    Display,
    st.sampled_from(["display", "update", "result"]),
    st.dictionaries(st.text(), st.text(), max_size=2),
    metadata=st.dictionaries(st.text(), st.integers(), max_size=2),
    display_id=st.none() | st.text(),
    scalar=st.none() | st.integers() | st.floats(allow_nan=False),
)
OUTPUTS = (
    TEXTS
    | DISPLAYS
    | st.builds(Area, st.integers(0, 9))
    | st.builds(Clear, st.booleans(), st.integers(0, 9))
    | st.builds(Dropped, st.integers(0, 2**60))
)
REPLIES = st.builds(
    CellReply,
    st.sampled_from(["ok", "error", "stopped"]),
    st.integers(0, 99),
    outputs=st.lists(OUTPUTS, max_size=4).map(tuple),
    error=st.none() | ERRORS,
    value=st.none() | st.dictionaries(st.text(), st.integers(), max_size=2),
    value_error=st.none() | st.text(),
    seconds=st.floats(0, 1e6),
)


def over_the_wire(content: Any) -> Any:
    """Pass through JSON as strict as Jupyter's: it has no NaN."""
    return json.loads(json.dumps(content, allow_nan=False))


@given(OUTPUTS)
def test_an_output_comes_back_as_it_went(output: Output) -> None:
    assert output_from_json(over_the_wire(output_to_json(output))) == output


@given(REPLIES)
def test_a_reply_comes_back_as_it_went(reply: CellReply) -> None:
    assert CellReply.from_json(over_the_wire(reply.to_json())) == reply


@given(ERRORS)
def test_an_error_comes_back_with_all_its_causes(error: CellError) -> None:
    assert CellError.from_json(over_the_wire(asdict(error))) == error


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_come_back_as_numbers(number: float) -> None:
    sent = Display("result", {"text/plain": "it"}, scalar=number)

    received = output_from_json(over_the_wire(output_to_json(sent)))

    assert isinstance(received, Display)
    assert isinstance(received.scalar, float)
    assert math.isnan(received.scalar) if math.isnan(number) else received.scalar == number


def test_a_request_comes_back_with_the_same_fields() -> None:
    request = CellRequest("id-1", "x", "In[3]", 3, (0, 2), want_value=True)

    received = CellRequest(**over_the_wire(to_json(request)))

    assert tuple(received.ranks) == (0, 2)
    assert asdict(received) | {"ranks": (0, 2)} == asdict(request)


def test_the_agent_s_orders_are_plain_json() -> None:
    spec = AgentSpec(
        session_id="id",
        world_size=2,
        first_rank=0,
        nproc=2,
        device="cpu",
        gpus=(),
        backend="gloo",
        threads=1,
        config={"seed": 0, "env": {}},
        engine_file="/file",
        kernel_pid=1,
        kernel_started=2,
    )

    assert AgentSpec(**{**over_the_wire(to_json(spec)), "gpus": ()}) == spec


def test_the_end_of_a_log_says_of_which_cell_it_is() -> None:
    of_both = f"{log_heading('In[1]')}one\n{log_heading('In[2]')}two\n"
    long = "x" * (2 * LOG_END_LENGTH)

    assert end_of_log(of_both) == of_both
    assert end_of_log(of_both + long) == log_heading("In[2]") + "x" * LOG_END_LENGTH
    assert end_of_log(long) == "x" * LOG_END_LENGTH
    assert lost_text(end_of_log(of_both + long), "In[2]", "") == "x" * LOG_END_LENGTH


def test_words_of_an_earlier_cell_are_never_last_words_of_a_later_one() -> None:
    log = f"{log_heading('In[1]')}one\n"

    assert lost_text(end_of_log(log), "In[2]", "") == ""
    assert lost_text("one\n", "In[2]", "") == ""


def test_both_sides_can_import_it_at_no_cost() -> None:
    code = (
        "import nbdist.wire, sys; print([m for m in ('torch', 'numpy', 'zmq') if m in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"
