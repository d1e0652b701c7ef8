"""What a session cannot do yet is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdist.config import load_config
from nbdist.errors import ConfigError
from nbdist.launchers.start import NOT_YET, check_supported, launch


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("mesh={dp: 2}", "init_device_mesh("),
        ("hosts=[a,b]", "torchrun"),
        ("init_method=file", "nbdist.setup"),
    ],
)
def test_a_value_that_would_have_no_effect_is_refused(
    override: str, instead: str, run_folder: Path
) -> None:
    key = override.partition("=")[0]

    with pytest.raises(ConfigError, match=f"^{key} is not supported yet") as failure:
        launch(load_config("cpu", [override]))

    assert instead in str(failure.value)
    assert list(run_folder.iterdir()) == []


def test_the_default_of_such_a_key_is_accepted() -> None:
    written = load_config(None, ["mesh={}", "hosts=[]", "init_method=tcp"])

    check_supported(written)

    assert set(NOT_YET) == {"mesh", "hosts", "init_method"}
