from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nbdist.config import (
    Config,
    Hang,
    change_config,
    differences,
    from_dict,
    load_config,
    to_dict,
    to_lines,
    to_yaml,
)
from nbdist.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.yaml"


# Defaults, files, overrides -------------------------------------------------------------------


def test_without_arguments_the_defaults_of_the_schema_are_loaded() -> None:
    assert load_config() == Config()


def test_the_base_file_holds_every_key_once() -> None:
    text = (CONF / "config.yaml").read_text()
    keys = {name for name in to_dict(Config()) if name != "masked"}

    assert OmegaConf.create(text).keys() == keys
    assert OmegaConf.create(text).hang.keys() == {f.name for f in dataclasses.fields(Hang)}


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_file_loads_and_changes_something(file: Path) -> None:
    config = load_config(file.stem)

    assert (config == Config()) == (file.stem == "config")


def test_a_name_chooses_a_shipped_file() -> None:
    config = load_config("debug")

    assert (config.nproc, config.device, config.deterministic) == (2, "cpu", True)


def test_a_file_changes_only_the_keys_it_holds(own: Path) -> None:
    own.write_text("hang:\n  after_s: 3\n")

    assert load_config(own) == Config(hang=Hang(after_s=3.0, action="warn"))


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(own: Path) -> None:
    own.write_text("seed: 1\nnproc: 3\n")

    config = load_config(own, ["seed=2", "seed=7"])

    assert (config.seed, config.nproc) == (7, 3)


def test_overrides_can_be_a_mapping_of_full_keys() -> None:
    config = load_config(None, {"seed": 7, "hang.after_s": 2, "params": {"lr": 0.1}})

    assert (config.seed, config.hang.after_s, config.params.lr) == (7, 2.0, 0.1)


def test_tuples_in_a_mapping_of_overrides_become_lists() -> None:
    config = load_config(None, {"gpus": (0, 1), "params": {"layers": (64, (32,))}})

    assert config.gpus == [0, 1]
    assert config.params.layers == [64, [32]]


def test_a_path_may_be_given_as_text(own: Path) -> None:
    own.write_text("seed: 3\n")

    assert load_config(str(own)).seed == 3


def test_a_path_may_start_at_home(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.write_text("seed: 3\n")
    monkeypatch.setenv("HOME", str(own.parent))

    assert load_config("~/own.yaml").seed == 3


def test_an_empty_file_changes_nothing(own: Path) -> None:
    own.write_text("# nothing yet\n")

    assert load_config(own) == Config()


def test_a_section_with_nothing_under_it_changes_nothing(own: Path) -> None:
    own.write_text("params:\nenv:\nmesh:\nhang:\nhosts:\n")

    assert load_config(own) == Config()


def test_the_files_are_found_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nbdist"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "config.yaml").write_text("seed: 5\n")
    monkeypatch.setattr("nbdist.config.__file__", str(package / "config.py"))

    assert load_config().seed == 5


def test_missing_shipped_files_are_an_error_that_says_where_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdist.config.__file__", str(tmp_path / "nbdist" / "config.py"))

    with pytest.raises(ConfigError, match="Install nbdist again"):
        load_config()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("gpus=[0,1]", "gpus", [0, 1]),
        ("gpus=null", "gpus", None),
        ("hosts=[a,b]", "hosts", ["a", "b"]),
        ("mesh.dp=2", "mesh", {"dp": 2}),
        ("mesh={dp: 2, tp: 3}", "mesh", {"dp": 2, "tp": 3}),
        ("hang={action: stop}", "hang", Hang(action="stop")),
        ("deterministic=yes", "deterministic", True),
        ("timeout_s=5", "timeout_s", 5.0),
        ("backend=cpu:gloo,cuda:nccl", "backend", "cpu:gloo,cuda:nccl"),
        ("guard=off", "guard", "off"),
        ("guard=on", "guard", "on"),
        ("live=off", "live", "off"),
        ("env.A=", "env", {"A": ""}),
        ("env.A=off", "env", {"A": "off"}),
        ("env.A=010", "env", {"A": "010"}),
        ('env.A={"x": [1,', "env", {"A": '{"x": [1,'}),
        ("env.A='a b'", "env", {"A": "a b"}),
        ("env.A=${seed}", "env", {"A": "0"}),
        ("env={A: 1, B: b}", "env", {"A": "1", "B": "b"}),
    ],
)
def test_an_override_is_read_as(override: str, key: str, value: object) -> None:
    assert getattr(load_config(None, [override]), key) == value


def test_variables_in_a_file_read_as_they_are_written(own: Path) -> None:
    own.write_text("env: {A: off, B: 010, C: 1e-3, D: 'yes'}\n")

    assert load_config(own).env == {"A": "off", "B": "010", "C": "1e-3", "D": "yes"}


def test_switches_in_a_file_need_no_quotes(own: Path) -> None:
    own.write_text("guard: off\nlive: off\n")

    config = load_config(own)

    assert (config.guard, config.live) == ("off", "off")


# Parameters -----------------------------------------------------------------------------------


def test_parameters_are_free_and_read_as_attributes_at_any_depth() -> None:
    config = load_config(None, ["params.lr=3e-4", "params.net.layers=[{width: 8}, 2]"])

    assert config.params.lr == 3e-4
    assert config.params.net.layers[0].width == 8


def test_parameters_cannot_be_written_to() -> None:
    config = load_config(None, ["params.net.width=8"])

    with pytest.raises(Exception, match="read-only"):
        config.params.net.width = 9


def test_the_configuration_itself_cannot_be_written_to() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().seed = 3  # type: ignore[misc]  # that is the point


def test_interpolations_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBDIST_TEST_SEED", "42")

    config = load_config(
        None, ["seed=${oc.env:NBDIST_TEST_SEED}", "params.a=${seed}", "params.b=x${params.a}"]
    )

    assert (config.seed, config.params.a, config.params.b) == (42, 42, "x42")


def test_an_escaped_interpolation_stays_text_on_the_way_to_the_ranks() -> None:
    config = load_config(None, [r"params.text=\${seed}"])

    assert config.params.text == "${seed}"
    assert from_dict(to_dict(config)).params.text == "${seed}"


def test_what_a_variable_holds_is_not_resolved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBDIST_TEST_PROMPT", "${nope}")

    config = load_config(
        None, ["params.a=${oc.env:NBDIST_TEST_PROMPT}", "env.A=${oc.env:NBDIST_TEST_PROMPT}"]
    )

    assert (config.params.a, config.env["A"]) == ("${nope}", "${nope}")


# What is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=7", ["'sed'", "'seed'", "override 'sed=7'"]),
        ("lr=3", ["'lr'", "params.lr"]),
        ("hang.after=3", ["'hang.after'", "'hang.after_s'"]),
        ("masked=[params]", ["Unknown key"]),
        ("gpus=[[[]]]", ["gpus must be a list of different GPU indices", "[[[]]]"]),
        ("gpus=[{}]", ["gpus must be a list of different GPU indices"]),
        ("hosts=[[[]]]", ["hosts must be a list of different host names", "[[[]]]"]),
        ("params.x=\udcff", ["'params.x=\\udcff' cannot be read"]),
        ("seed=" + 5000 * "9", ["cannot be read", "digits"]),
        ("seed=abc", ['seed must be a whole number, not "abc"', "'seed=abc'"]),
        ("seed=1.5", ["seed", "a whole number"]),
        ("seed=true", ["seed", "a whole number"]),
        ("seed=null", ["seed", "a whole number"]),
        ("seed={a: 1}", ["seed", "a whole number"]),
        ("seed.x=1", ["seed", "a whole number"]),
        ("nproc=two", ["nproc", "a whole number or null"]),
        ("timeout_s=soon", ["timeout_s", "a number"]),
        ("deterministic=2", ["deterministic", "true or false"]),
        ("gpus=0,1", ["gpus", "[0,1]"]),
        ("gpus=[a]", ["gpus", "[0,1]"]),
        ("hosts=a", ["hosts", "[a,b]"]),
        ("hang=3", ["hang", "a mapping"]),
        ("params=3", ["params", "a mapping"]),
        ("params={1: 2}", ["params", "key 1", "in quotes"]),
        ("params.a={1: 2}", ["params.a", "in quotes"]),
        ("env={A: off}", ["env.A", "in quotes"]),
        ("mesh.dp=x", ["mesh", "whole numbers"]),
        ("device=gpu", ["device", "auto, cuda, cpu", '"gpu"']),
        ("live=on", ["live", "auto, widget, lines, off"]),
        ("launcher=slurm", ["launcher", "local"]),
        ("hang.action=kill", ["hang.action", "warn, stop"]),
        ("hang.certain=stop", ["hang.certain", "error, warn"]),
        ("nproc=0", ["nproc", "1 or more", "not 0"]),
        ("threads=0", ["threads", "1 or more"]),
        ("seed=-1", ["seed", "between 0 and"]),
        ("seed=4294967296", ["seed", "between 0 and"]),
        ("gpus=[]", ["gpus"]),
        ("gpus=[0,0]", ["gpus", "different"]),
        ("gpus=[-1]", ["gpus", "from 0 on"]),
        ("backend=a b", ["backend", "cpu:gloo,cuda:nccl"]),
        ("timeout_s=0", ["timeout_s", "more than 0"]),
        ("timeout_s=.nan", ["timeout_s", "more than 0"]),
        ("timeout_s=.inf", ["timeout_s", "more than 0"]),
        ("hang.after_s=0", ["hang.after_s", "more than 0"]),
        ("lease_s=-1", ["lease_s", "0 seconds or more"]),
        ("log_bytes=0", ["log_bytes", "1 byte"]),
        ("mesh.dp=0", ["mesh", "1 or more"]),
        ("mesh={d p: 2}", ["mesh", "axis names"]),
        ("hosts=[a,a]", ["hosts", "different"]),
        ("env={a=b: c}", ["env", "without '='"]),
        ("params.x=${nope}", ["params.x", "'nope' not found"]),
        ("params.x=${nope:1}", ["params.x", "nope"]),
        ("params.x=${", ["params.x=${"]),
        ("params.x=${params.x}", ["params.x", "Recursive"]),
        ("params.x={y: '${oc.env:NBDIST_NO_SUCH}'}", ["params.x.y", "NBDIST_NO_SUCH"]),
        ("gpus=['${nope}']", ["gpus[0]", "'nope' not found"]),
        ("params.x=???", ["params.x", "???"]),
        ("params.x=[1", ["params.x=[1", "YAML"]),
        ("seed", ["'seed'", "key=value"]),
        ("=3", ["'=3'"]),
        ("a..b=3", ["'a..b'"]),
        ("params.l[0]=3", ["params.l[0]", "as a whole"]),
    ],
)
def test_a_wrong_override_is_answered_with(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])

    missing = [word for word in [*words, "override"] if word not in str(caught.value)]
    assert missing == []


def test_the_error_names_the_file_that_the_key_came_from(own: Path) -> None:
    own.write_text("seed: abc\n")

    with pytest.raises(ConfigError, match=f"from {own}"):
        load_config(own, ["nproc=2"])


def test_a_wrong_interpolated_type_is_traced_to_the_file_too(own: Path) -> None:
    own.write_text("seed: ${params.x}\nparams: {x: abc}\n")

    with pytest.raises(ConfigError, match=f"seed must be a whole number.*from {own}"):
        load_config(own)


def test_a_wrong_range_is_traced_to_the_last_one_that_set_it(own: Path) -> None:
    own.write_text("nproc: 0\n")

    with pytest.raises(ConfigError, match="override 'nproc=-1'"):
        load_config(own, ["nproc=-1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "not a mapping"),
        ("hello\n", "not a mapping"),
        ("3\n", "not a mapping"),
        ("a: [1\n", "no valid YAML"),
        ("seed: 1\nseed: 2\n", "duplicate key"),
        ("seed: 1\n---\nseed: 2\n", "no valid YAML"),
        ("params: !!python/object/apply:os.getcwd []\n", "no valid YAML"),
        ("params: &p {a: *p}\n", "contains itself|recursive"),
        ("sead: 1\n", "Did you mean 'seed'"),
        ("1: 1\n", "Unknown key '1'"),
        ("env:\n  A:\n", "texts"),
    ],
)
def test_a_wrong_file_is_answered_with(own: Path, text: str, words: str) -> None:
    own.write_text(text)

    with pytest.raises(ConfigError, match=words) as caught:
        load_config(own)

    assert str(own) in str(caught.value)


def test_a_file_that_is_no_text_is_an_error(own: Path) -> None:
    own.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(own)


@pytest.mark.parametrize("path", ["no/such.yaml", "such.yaml", Path("such")])
def test_a_missing_path_is_an_error_that_says_where_it_looked(path: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no file .*looked in"):
        load_config(path)


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'debug'"):
        load_config("debg")


def test_a_name_like_none_is_answered_with_all_names() -> None:
    with pytest.raises(ConfigError, match=r"There are: .*config, .*debug"):
        load_config("zzz")


def test_one_text_in_place_of_a_list_of_overrides_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"\['seed=7'\]"):
        load_config(None, "seed=7")


def test_a_value_that_is_no_data_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"params\.a is a object.*from override params"):
        load_config(None, {"params": {"a": object()}})


def test_a_configuration_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="nproc must be 1 or more"):
        Config(nproc=0)


# Secrets --------------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NBDIST_TEST_API_KEY", "s3cret")
    return "s3cret"


@pytest.mark.parametrize(
    "overrides",
    [
        ["params.a=${oc.env:NBDIST_TEST_API_KEY}"],
        ["params.a=${oc.env:NBDIST_TEST_API_KEY,none}"],
        ["params.a=https://${oc.env:NBDIST_TEST_API_KEY}@host"],
        ["params.a=['${oc.env:NBDIST_TEST_API_KEY}']"],
        ["params.a=${oc.env:NBDIST_TEST_API_KEY}", "params.b=[1,'${params.a}']"],
        ["params.a={k: '${oc.env:NBDIST_TEST_API_KEY}'}", "params.b=${params.a}"],
        ["params.n=NBDIST_TEST_API_KEY", "params.a=${oc.env:${params.n}}"],
        ["env.A=${oc.env:NBDIST_TEST_API_KEY}"],
        ["env.HF_TOKEN=s3cret"],
        ["backend=${oc.env:NBDIST_TEST_API_KEY}"],
    ],
)
def test_secrets_are_not_shown(secret: str, overrides: list[str]) -> None:
    config = load_config(None, overrides)

    on_a_rank = from_dict(json.loads(json.dumps(to_dict(config))))

    assert secret not in to_yaml(config) + repr(config) + to_yaml(on_a_rank) + repr(on_a_rank)
    assert "***" in to_yaml(on_a_rank)
    assert secret in to_yaml(on_a_rank, show_secrets=True)


@pytest.mark.parametrize(
    "override",
    [
        "params.password=hunter2x",
        "params.db.password=hunter2x",
        "params.credentials={user: me, words: [hunter2x]}",
        "params.openai_api_key=hunter2x",
        "params.url=postgres://user:hunter2x@host/db",
        "params.url=${oc.env:NBDIST_TEST_DB_URL}",
        "env.DB_PASSWD=hunter2x",
    ],
)
def test_what_looks_like_a_secret_is_not_shown_and_reaches_the_ranks(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBDIST_TEST_DB_URL", "postgres://user:hunter2x@host/db")
    config = load_config(None, [override])

    on_a_rank = from_dict(json.loads(json.dumps(to_dict(config))))

    assert "hunter2x" not in to_yaml(config) + repr(config) + to_yaml(on_a_rank) + repr(on_a_rank)
    assert "***" in to_yaml(config)
    assert "hunter2x" in json.dumps(to_dict(on_a_rank))
    assert to_dict(load_config(None, [override])) == to_dict(on_a_rank)


def test_what_a_secret_is_not_is_shown() -> None:
    overrides = [
        "params.tokenizer=bpe",
        "params.max_tokens=5",
        "params.auth=true",
        "params.key=loss",
    ]

    shown = to_yaml(load_config(None, [*overrides, "params.password="]))

    assert "***" not in shown


@pytest.mark.parametrize(
    "override",
    [
        "password=hunter2x",
        "params.password=[hunter2x",
        "params.a={password: hunter2x",
        "[password]=hunter2x",
        "seed={password: hunter2x}",
        "nproc=postgres://u:hunter2x@h",
    ],
)
def test_errors_about_a_setting_do_not_show_its_secret(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])

    assert "hunter2x" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_errors_about_a_file_do_not_show_its_secrets(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("params:\n  password: hunter2x: x\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="no valid YAML") as caught:
        load_config(own)

    assert "hunter2x" not in str(caught.value)


def test_a_short_secret_does_not_mask_equal_values_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NBDIST_TEST_API_KEY", "1")

    text = to_yaml(load_config(None, ["params.a=${oc.env:NBDIST_TEST_API_KEY}", "seed=1"]))

    assert "seed: 1\n" in text
    assert "a: '***'\n" in text


@pytest.mark.parametrize(
    "override",
    [
        "seed=${oc.env:NBDIST_TEST_API_KEY}",
        "device=${oc.env:NBDIST_TEST_API_KEY}",
        "params.a=${oc.decode:'[${oc.env:NBDIST_TEST_API_KEY}'}",
    ],
)
def test_errors_do_not_show_secrets(secret: str, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])

    assert secret not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_variables_that_are_not_secret_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBDIST_TEST_PLACE", "here")

    config = load_config(None, ["params.a=${oc.env:NBDIST_TEST_PLACE}"])

    assert "a: here" in to_yaml(config)


# There and back -------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
).filter(lambda value: "???" not in repr(value))
PARAMS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@given(params=PARAMS)
def test_any_parameters_reach_the_ranks_as_they_are(params: dict[str, Any]) -> None:
    config = Config(params=params)  # type: ignore[arg-type]

    received = from_dict(json.loads(json.dumps(to_dict(config))))

    assert received == config
    assert to_dict(received)["params"] == params


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab${}:\\. '\"[]-#é", max_size=12))
def test_yaml_reads_back_as_the_same_configuration(own: Path, text: str) -> None:
    config = Config(nproc=2, seed=7, env={"A": text}, params={"b": text})  # type: ignore[arg-type]

    own.write_text(to_yaml(config, show_secrets=True), encoding="utf-8")

    assert load_config(own) == config


@given(key=st.sampled_from(sorted(to_dict(Config()))) | st.text(max_size=8), value=st.text())
def test_an_override_loads_or_is_an_error_of_ours(key: str, value: str) -> None:
    with suppress(ConfigError):
        load_config(None, [f"{key}={value}"])


def test_copies_and_pickles_are_equal() -> None:
    config = load_config("debug", ["params.net={width: 8}"])

    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_saved_keys_that_are_not_known_are_an_error() -> None:
    with pytest.raises(ConfigError, match="'sede' in the saved configuration"):
        from_dict({"sede": 1})


def test_saved_keys_that_are_missing_keep_their_defaults() -> None:
    assert from_dict({"seed": 3}) == Config(seed=3)


def test_the_text_of_a_configuration_names_what_differs_from_the_defaults() -> None:
    assert repr(load_config(None, ["seed=3", "params.lr=0.1"])) == (
        "Config(seed=3, params={'lr': 0.1})"
    )


# A configuration with changes ---------------------------------------------------------------------


def test_a_change_keeps_all_that_it_does_not_name() -> None:
    config = load_config(None, ["seed=3", "params.lr=1", r"params.text='\${x}'"])

    changed = change_config(config, ["params.lr=2", "hang.after_s=5"])

    assert (changed.seed, changed.params.lr, changed.hang.after_s) == (3, 2, 5.0)
    assert changed.params.text == config.params.text == "${x}"
    assert config.params.lr == 1
    with pytest.raises(ConfigError, match="Did you mean 'seed'"):
        change_config(config, ["sed=1"])


def test_what_was_secret_stays_so_until_it_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush")
    config = load_config(None, ["params.a=${oc.env:MY_TOKEN}", "params.b=${oc.env:MY_TOKEN}"])

    changed = change_config(config, ["params.b=open"])

    assert to_lines(changed, "params") == "params:\n  a: '***'\n  b: open"


def test_two_configurations_differ_in_these_keys() -> None:
    first = load_config(None, ["params.lr=1", "params.password=one"])
    second = load_config(None, ["params.password=two", "params.new=[1]", "hang.after_s=1"])

    assert differences(first, first) == []
    assert differences(first, second) == [
        "hang.after_s (10.0, 1.0)",
        "params.lr (1, not set)",
        "params.password (***, ***)",
        "params.new (not set, [1])",
    ]
