"""What came from a secret variable is shown nowhere: not printed, not in errors, not in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdist.config import load_config
from nbdist.rank.secrets import Secrets
from nbdist.sessions import current
from tests.waiting import wait_until

SECRET = "hunter2-is-long"


def test_only_what_came_from_a_secret_variable_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("CITY", "Amsterdam")
    config = load_config(None, ["params.a=${oc.env:HF_TOKEN}", "params.b=${oc.env:CITY}"])
    secrets = Secrets.of({"params": {"a": SECRET, "b": "Amsterdam"}, "masked": config.masked})

    hidden = secrets.hide({"text": f"<{SECRET}> in Amsterdam", "more": [1, None, (SECRET,)]})

    assert hidden == {"text": "<***> in Amsterdam", "more": [1, None, ["***"]]}
    assert secrets.hide_bytes(SECRET.encode() * 2) == b"******"


def test_a_secret_that_holds_another_is_hidden_whole() -> None:
    assert Secrets(("abcdefgh", "https://abcdefgh/x")).hide("https://abcdefgh/x") == "***"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a hunter2", ("a ", "hunter2")),
        ("a hunter2-is-long", ("a ***", "")),
        ("a hunter2-is-longh", ("a ***", "h")),
        ("a hunter2\n", ("a hunter2\n", "")),
        ("hhunt", ("h", "hunt")),
        ("", ("", "")),
    ],
)
def test_what_a_secret_may_begin_with_is_set_apart(text: str, parts: tuple[str, str]) -> None:
    secrets = Secrets((SECRET,))

    assert secrets.split(text) == parts
    assert secrets.split_bytes(text.encode()) == tuple(part.encode() for part in parts)


@pytest.mark.parametrize("texts", [(), ("short",), ("",)])
def test_nothing_to_hide_costs_nothing(texts: tuple[str, ...]) -> None:
    assert not Secrets(texts)
    assert Secrets(texts).hide("a short text") == "a short text"


@pytest.mark.ranks
def test_on_ranks_it_is_in_no_output_no_error_and_no_file(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = load_config(None, ["nproc=1", "device=cpu", "params.a=${oc.env:HF_TOKEN}"])
    with current.start(config) as session:
        for code in (
            "print(cfg.params.a)",
            "cfg.params.a",
            "raise ValueError(cfg.params.a)",
            "import os; os.write(1, cfg.params.a.encode())",
            "import time\nfor c in cfg.params.a: print(c, end=''); time.sleep(0.08)",
            "for c in cfg.params.a: os.write(1, c.encode()); time.sleep(0.08)",
        ):
            run = session.run(code)
            assert run.wait(20)
            assert "***" in str(run.render()), code
            assert SECRET not in str(run.render()), code
        os_exit = session.run("import os; os.write(1, cfg.params.a.encode()); os._exit(3)")
        assert os_exit.wait(20)
        wait_until(lambda: session.dead_ranks == (0,), "the rank to be gone")
        texts = [p.read_text(errors="replace") for p in files_of(run_folder)]
    assert texts
    assert not any(SECRET in text for text in texts)


def files_of(folder: Path) -> list[Path]:
    """Return all files of the sessions, but what the agent was told, which is the secret itself."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if path.name != "agent.json"]
