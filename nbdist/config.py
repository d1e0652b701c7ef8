"""Read the configuration: defaults, then files, then overrides, into one frozen `Config`.

    schema below ◀── conf/config.yaml ◀── conf/NAME.yaml or a user's file ◀── key=value

Everything is checked and resolved here, once. What comes out is plain data that travels as JSON to
every rank (`to_dict`, `from_dict`) and into every checkpoint. Knows nothing of sessions and torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from nbdist.errors import ConfigError, did_you_mean
from nbdist.hiding import MASK, hide_assigned, hide_passwords, is_secret_name

# The schema ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hang:
    """What happens when a collective makes no progress."""

    after_s: float = 10.0
    """Seconds without progress until a running cell shows who waits for whom."""

    action: Literal["warn", "stop"] = "warn"
    """``warn`` shows it; ``stop`` also ends the cell, with its status *error*."""

    certain: Literal["error", "warn"] = "error"
    """Where nobody can come any more: ``error`` ends the call at once, ``warn`` lets it wait."""


@dataclass(frozen=True, repr=False)
class Config:
    """All that decides how a session starts and behaves; every value is checked.

    Attribute access works at any depth, also in ``params``, which cannot be written to.
    """

    nproc: int | None = None
    """Ranks per host; ``None`` is one per visible GPU, or 2 where there is none."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where tensors live; ``auto`` is ``cuda`` where a GPU is visible."""

    gpus: list[int] | None = None
    """Indices among the visible GPUs; ``None`` is all of them."""

    backend: str = "auto"
    """Backend of the process group as torch names it; ``auto`` chooses by device."""

    seed: int = 0
    """Seed of Python, NumPy and torch, set before user code runs; 0 to 2**32 - 1."""

    seed_per_rank: Literal["same", "offset"] = "same"
    """``same`` seeds all ranks alike, ``offset`` seeds each with ``seed + rank``."""

    deterministic: bool = False
    """Use torch's deterministic algorithms, and fail where there is none."""

    threads: int | None = None
    """CPU threads per rank; ``None`` is the available cores divided by the ranks of the host."""

    timeout_s: float = 1800.0
    """Seconds after which torch gives up a collective."""

    oversubscribe: bool = False
    """Allow more ranks than GPUs; they then share the GPUs in turn."""

    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of every rank, set before torch is imported."""

    launcher: Literal["local"] = "local"
    """What starts the ranks; ``local`` is this machine."""

    hosts: list[str] = field(default_factory=list)
    """Names of the hosts; empty is this machine alone, as in all sessions so far."""

    init_method: Literal["tcp", "file"] = "tcp"
    """How `nbdist.setup` lets ranks find each other: by socket or shared file; not in sessions."""

    mesh: dict[str, int] = field(default_factory=dict)
    """Axes of the device mesh with their sizes in ranks; empty is no mesh, all there is so far."""

    guard: Literal["auto", "on", "trace", "off"] = "auto"
    """Check collectives before they run; ``auto`` is ``on`` for CPU groups, else ``trace``."""

    hang: Hang = field(default_factory=Hang)
    """What happens when a collective makes no progress."""

    recover: Literal["manual", "auto"] = "manual"
    """Replace a dead rank on ``%dist recover`` only, or at once."""

    lease_s: float = 600.0
    """Seconds that ranks outlive a killed notebook kernel, waiting for ``%dist attach``."""

    log_bytes: int = 16 * 2**20
    """Most bytes of output kept of one cell and rank."""

    live: Literal["auto", "widget", "lines", "off"] = "auto"
    """What is shown while a cell runs; ``auto`` chooses by front end."""

    params: DictConfig = field(default_factory=lambda: OmegaConf.create({}))
    """The user's own parameters: any keys, read as ``cfg.params.lr``."""

    masked: tuple[str, ...] = field(default=(), compare=False)
    """Not a key of the files: full keys whose values are secret and not shown."""

    def __post_init__(self) -> None:
        values = to_dict(self)
        for key, problem in _wrong_values(values):
            raise ConfigError(f"{key} {problem}.")
        # Frozen for everyone else; here a plain dictionary becomes one with attributes.
        object.__setattr__(self, "params", _read_only(values["params"]))
        object.__setattr__(self, "masked", tuple(self.masked))

    def __repr__(self) -> str:
        shown, default = _shown(self), to_dict(Config())
        del shown["masked"]
        changed = (f"{key}={value!r}" for key, value in shown.items() if value != default[key])
        return f"Config({', '.join(changed)})"


_FREE = ("params", "env", "mesh")
_SAID = (True, False, "")  # with a secret's name, these say whether there is one


def _hints(cls: type) -> dict[str, Any]:
    """Types of the keys of *cls*, by name."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name != "masked"}


@functools.cache
def _known_types() -> dict[str, Any]:
    """Types of all keys by full name; a key with keys of its own is there too."""
    types = _hints(Config)
    return types | {f"hang.{name}": hint for name, hint in _hints(Hang).items()}


def _schema(cls: type) -> type:
    """Return *cls* as OmegaConf 2.3 can use it, for checking types and merging.

    It knows no ``Literal``, and cannot merge into a frozen dataclass inside another one.
    """

    def column(name: str, hint: Any) -> tuple[str, Any, Any]:
        default = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]  # a dataclass
        if hint is DictConfig:
            return name, dict[str, Any], field(default_factory=dict)
        if dataclasses.is_dataclass(hint):
            nested = _schema(hint)  # type: ignore[arg-type]  # the class, not an instance
            return name, nested, field(default_factory=nested)
        hint = str if get_origin(hint) is Literal else hint
        if default.default_factory is not dataclasses.MISSING:
            return name, hint, field(default_factory=default.default_factory)
        return name, hint, field(default=default.default)

    return dataclasses.make_dataclass(
        cls.__name__, [column(name, hint) for name, hint in _hints(cls).items()]
    )


# Which values are right ----------------------------------------------------------------------

_BACKEND = re.compile(r"[A-Za-z]\w*|[A-Za-z]\w*:\w+(,[A-Za-z]\w*:\w+)*")


@dataclass(frozen=True)
class _Rule:
    """A value is right when *holds* says so, else it is answered with *problem*."""

    holds: Callable[[Any], bool]
    problem: str


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _is_index(value: Any) -> bool:  # OmegaConf lets lists and mappings stand in lists
    return type(value) is int and value >= 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_RULES = {
    "nproc": _Rule(lambda n: n is None or n >= 1, "must be 1 or more, or null"),
    "gpus": _Rule(
        lambda g: g is None or (g and all(map(_is_index, g)) and len(set(g)) == len(g)),
        "must be a list of different GPU indices from 0 on, such as [0,1], or null",
    ),
    "backend": _Rule(
        lambda text: _BACKEND.fullmatch(text) is not None,
        "must be auto, a backend such as gloo, or one per device such as cpu:gloo,cuda:nccl",
    ),
    "seed": _Rule(lambda n: 0 <= n < 2**32, "must be between 0 and 4294967295"),
    "threads": _Rule(lambda n: n is None or n >= 1, "must be 1 or more, or null"),
    "timeout_s": _Rule(_is_positive, "must be more than 0 seconds"),
    "env": _Rule(
        lambda env: all(
            name and "=" not in name and "\0" not in name + value for name, value in env.items()
        ),
        "must have names without '=' and no NUL characters",
    ),
    "hosts": _Rule(
        lambda hosts: all(map(_is_name, hosts)) and len(set(hosts)) == len(hosts),
        "must be a list of different host names",
    ),
    "mesh": _Rule(
        lambda mesh: all(axis.isidentifier() and size >= 1 for axis, size in mesh.items()),
        "must be axis names with sizes of 1 or more, such as {dp: 2, tp: 2}",
    ),
    "hang.after_s": _Rule(_is_positive, "must be more than 0 seconds"),
    "lease_s": _Rule(lambda s: math.isfinite(s) and s >= 0, "must be 0 seconds or more"),
    "log_bytes": _Rule(lambda n: n >= 1, "must be 1 byte or more"),
}


def _wrong_values(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the full key and the problem of each value of right type that is wrong."""
    flat = {**values, **{f"hang.{name}": value for name, value in values["hang"].items()}}
    for key, hint in _known_types().items():
        but = "" if _is_secret(key, values["masked"]) else f", not {_shown_value(flat[key])}"
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if choices and flat[key] not in choices:
            yield key, f"must be {_type_words(hint)}{but}"
        if key in _RULES and not _RULES[key].holds(flat[key]):
            yield key, f"{_RULES[key].problem}{but}"
    yield from _not_json(values["params"], "params")


def _not_json(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield what in ``params`` would not come out of JSON as it went in."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                yield key, f"has the key {name!r}, which is no text: write it in quotes"
            yield from _not_json(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{key}[{index}]")
    elif not isinstance(value, str | int | float | NoneType):
        yield key, f"is a {type(value).__name__}, which cannot travel to the ranks as JSON"


def _is_secret(key: str, masked: Iterable[str]) -> bool:
    """Say whether an error must not show the value of the full *key*."""
    return key in _FREE or any(f"{name}.".startswith(f"{key}.") for name in masked)


def _shown_value(value: Any) -> str:
    return hide_assigned(json.dumps(value, default=repr))


def _type_words(hint: Any) -> str:
    """Say in words what values a key of this type takes."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if hint in _TYPE_WORDS:
        return _TYPE_WORDS[hint]
    return "a mapping of names to values"


_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    int | None: "a whole number or null",
    list[int] | None: "a list of whole numbers such as [0,1], or null",
    list[str]: "a list of texts such as [a,b]",
    dict[str, str]: "a mapping of names to texts",
    dict[str, int]: "a mapping of names to whole numbers",
}


# Layers: what one file or one override says --------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """The keys that one file or one override sets; interpolations are still text."""

    origin: str
    data: dict[str, Any]

    def sets(self, key: str) -> bool:
        """Say whether this layer is where the full *key* gets its value."""
        inside: Any = self.data
        for part in re.split(r"[.\[\]]+", key.rstrip("]")):
            if not isinstance(inside, Mapping):
                return True  # an interpolation or a list stands for all below it
            if part not in inside:
                return False
            inside = inside[part]
        return True


def _conf_dir() -> Path:
    """Return the directory of the shipped files.

    It is inside the package where that came from a wheel, and beside it in a source tree.
    """
    package = Path(__file__).parent
    for directory in (package / "conf", package.parent / "conf"):
        if (directory / "config.yaml").is_file():
            return directory
    raise ConfigError(
        f"The configuration files of nbdist are neither in {package / 'conf'} nor beside "
        f"{package}.\nInstall nbdist again."
    )


def _file_layer(name_or_path: str | Path) -> _Layer:
    """Read ``conf/NAME.yaml``, or a user's own file where a path is given."""
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or Path(text).suffix in {".yaml", ".yml"}
    if is_path or os.sep in text:
        return _read(Path(text), origin=text)
    names = [file.stem for file in _conf_dir().glob("*.yaml")]
    if text not in names:
        raise ConfigError(
            f"There is no configuration named {text!r}. {did_you_mean(text, names)}\n"
            f"A file of your own is given by its path, such as ./{text or 'mine'}.yaml."
        )
    return _read(_conf_dir() / f"{text}.yaml", origin=f"conf/{text}.yaml")


def _read(path: Path, *, origin: str) -> _Layer:
    """Read one YAML file."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(
            f"There is no file {origin} (looked in {path.absolute().parent})."
        ) from exc
    except (OSError, ValueError, RuntimeError) as exc:  # no text, or the home of nobody
        raise ConfigError(f"The file {origin} cannot be read: {exc}.") from exc
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{origin} is not a mapping. It must hold lines such as `seed: 7`.")
        data = _plain(OmegaConf.create(text), resolve=False)
    except yaml.YAMLError as exc:
        # Not chained: PyYAML shows the lines around the place.
        raise ConfigError(f"{origin} is no valid YAML: {hide_assigned(str(exc))}") from None
    except RecursionError as exc:
        raise ConfigError(f"{origin} contains itself, or is nested too deeply.") from exc
    except ValueError as exc:  # a number of thousands of digits
        raise ConfigError(f"{origin} holds a value that cannot be read: {exc}.") from exc
    except OmegaConfBaseException as exc:
        raise ConfigError(f"{origin}: {exc.full_key}: {_first_line(exc)}.") from exc
    return _Layer(origin, _with_env_as_written(data, root))


def _with_env_as_written(data: dict[str, Any], root: yaml.MappingNode | None) -> dict[str, Any]:
    """Put back the text of ``env`` values that YAML read as a number or a boolean.

    A variable is a text: ``off``, ``010`` and ``1e-3`` mean what is written.
    """
    for section, values in root.value if root is not None else ():
        if section.value == "env" and isinstance(values, yaml.MappingNode):
            for name, value in values.value:
                is_null = value.tag == "tag:yaml.org,2002:null"
                if isinstance(value, yaml.ScalarNode) and not is_null:
                    data["env"][name.value] = value.value
    return data


def _override_layers(overrides: Iterable[str] | Mapping[str, Any]) -> Iterator[_Layer]:
    """Turn ``key=value`` texts, or a mapping of full keys to values, into one layer each."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides must be a list of texts: write [{overrides!r}].")
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield _Layer(f"override {key}", _nest(key, value))
        return
    for override in overrides:
        yield _Layer(f"override {hide_assigned(override)!r}", _parse_override(override))


def _parse_override(override: str) -> dict[str, Any]:
    """Turn ``params.lr=3e-4`` into ``{"params": {"lr": 3e-4}}``."""
    key, equals, value = override.partition("=")
    key, shown = key.strip(), hide_assigned(override)
    if not equals:
        raise ConfigError(f"The override {shown!r} has no value. Write key=value: seed=7.")
    if key.startswith("env.") and not value.strip().startswith(("'", '"')):
        return {"env": {key.removeprefix("env."): value}}
    if "[" in key or not all(part.strip() for part in key.split(".")):
        raise ConfigError(
            f"The override {shown!r} has the key {key!r}, which cannot be read.\n"
            "Write names with dots, and a list as a whole: params.layers=[64,32]."
        )
    try:
        data: dict[str, Any] = _plain(OmegaConf.from_dotlist([f"{key}={value}"]), resolve=False)
    except yaml.YAMLError:
        raise ConfigError(
            f"The value of the override {shown!r} is no valid YAML.\n"
            "Put a text with special characters in quotes: params.note='a: b'."
        ) from None
    except ValueError as exc:  # a number of thousands of digits; a text that is no Unicode
        raise ConfigError(
            f"The value of the override {shown[:80]!a} cannot be read: {hide_assigned(str(exc))}."
        ) from exc
    except OmegaConfBaseException as exc:
        raise ConfigError(f"The override {shown!r}: {hide_assigned(_first_line(exc))}.") from exc
    return data


def _nest(key: str, value: Any) -> dict[str, Any]:
    *sections, name = key.split(".")
    nested = {name: _with_lists(_plain(value, resolve=False))}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _with_lists(value: Any) -> Any:
    """Return *value* with lists for tuples, as it would come out of YAML or JSON."""
    if isinstance(value, Mapping):
        return {name: _with_lists(item) for name, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tidy(layer: _Layer) -> _Layer:
    """Return *layer* with only keys that exist, and with YAML's surprises taken out.

    A section with nothing under it says nothing, and ``guard: off`` is no boolean.
    """
    types = _known_types()
    data: dict[str, Any] = {}
    for key, value in _keys_set(layer):
        if key not in types:
            raise ConfigError(_unknown(key, layer.origin))
        hint = types[key]
        is_section = key == "hang" or key in _FREE
        if value is None and (is_section or key == "hosts"):
            continue
        if is_section and not isinstance(value, Mapping) and not _has_interpolation(value):
            raise _wrong_type(key, layer)
        if hint is bool and isinstance(value, int | float) and not isinstance(value, bool):
            raise _wrong_type(key, layer)
        if isinstance(value, bool) and get_origin(hint) is Literal:
            value = "on" if value else "off"
        for name, problem in _not_plain(key, value):
            raise ConfigError(f"{name} {problem} (from {layer.origin}).")
        if key.startswith("hang."):
            data.setdefault("hang", {})[key.removeprefix("hang.")] = value
        else:
            data[key] = value
    return _Layer(layer.origin, data)


def _keys_set(layer: _Layer) -> Iterator[tuple[str, Any]]:
    """Yield the full keys of *layer* down to where the schema ends, with their values."""
    for key, value in layer.data.items():
        if key == "hang" and isinstance(value, Mapping):
            yield from ((f"hang.{name}", item) for name, item in value.items())
        else:
            yield str(key), value


def _not_plain(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield what in the free keys would silently become something else."""
    if key == "params":
        yield from _not_json(value, key)
    if key == "env" and isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, bool):
                yield f"env.{name}", f"must be a text, not {json.dumps(item)}: put it in quotes"


def _unknown(key: str, origin: str) -> str:
    section, dot, _ = key.rpartition(".")
    known = [name for name in _known_types() if name.startswith(section + dot)]
    message = f"Unknown key {key!r} in {origin}. {did_you_mean(key, known)}"
    return message if dot else f"{message}\nYour own parameters go under params: params.{key}."


def _wrong_type(key: str, layer: _Layer) -> ConfigError:
    value: Any = layer.data
    for part in key.split("."):
        value = value[part]
    but = "" if key in _FREE else f", not {_shown_value(value)}"
    words = _type_words(_known_types()[key])
    return ConfigError(f"{key} must be {words}{but} (from {layer.origin}).")


# Merging and resolving -----------------------------------------------------------------------


def load_config(
    name_or_path: str | Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Config:
    """Read the configuration: defaults, the chosen file, then the overrides.

    Args:
        name_or_path: A name in ``conf/``, or the path of a file of your own (with a directory or
            ending in ``.yaml``). The defaults alone when ``None``.
        overrides: ``key=value`` texts with YAML values, such as ``params.lr=3e-4``; or a mapping of
            full keys to values. Later ones win.

    Returns:
        The resolved configuration; nothing in it depends on files or variables any more.

    Raises:
        ConfigError: It names the key, and the file or override that it came from.
    """
    layers = [_file_layer("config")]
    if name_or_path is not None:
        layers.append(_file_layer(name_or_path))
    return _resolved([*layers, *_override_layers(overrides)])


def change_config(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """Return *config* with *overrides* in front of what it holds; it is not changed itself.

    Args:
        config: A resolved configuration.
        overrides: As in `load_config`.

    Raises:
        ConfigError: As in `load_config`.
    """
    values = to_dict(config)
    secret = values.pop("masked")
    changes = list(_override_layers(overrides))
    kept = [key for key in secret if not any(layer.sets(key) for layer in changes)]
    return _resolved([_Layer("the configuration so far", _escape(values)), *changes], kept)


def _resolved(layers: list[_Layer], secret: Iterable[str] = ()) -> Config:
    """Return what *layers* say together, the last first; also the keys *secret* are not shown."""
    layers = [_tidy(layer) for layer in layers]
    merged = _merge(layers)
    values = _resolve(merged, layers)
    values["masked"] = [*secret, *_secret_keys(_plain(merged, resolve=False), values)]
    for key, problem in _wrong_values(values):
        raise ConfigError(f"{key} {problem} (from {_origin(key, layers)}).")
    return from_dict(values)


def _merge(layers: list[_Layer]) -> DictConfig:
    merged = OmegaConf.structured(_schema(Config))
    for layer in layers:
        try:
            merged.merge_with(layer.data)
        except OmegaConfBaseException as exc:
            key = _schema_key(exc)
            if key not in _known_types():
                raise ConfigError(f"{layer.origin}: {_first_line(exc)}.") from exc
            raise _wrong_type(key, layer) from exc
    assert isinstance(merged, DictConfig)
    return merged


def _resolve(merged: DictConfig, layers: list[_Layer]) -> dict[str, Any]:
    """Return the values as plain data with every ``${...}`` replaced."""
    try:
        values: dict[str, Any] = _plain(merged, throw_on_missing=True)
    except MissingMandatoryValue as exc:
        key = exc.full_key or str(exc.key)
        raise ConfigError(
            f"{key} has no value yet: it is ??? (in {_origin(key, layers)}).\n"
            f"Set it, for example with {key}=..."
        ) from exc
    except InterpolationValidationError as exc:
        # Not chained, and without its text: that shows the value, which may be a secret.
        key = exc.full_key or str(exc.key)
        words = _type_words(_known_types().get(_schema_key(exc), DictConfig))
        raise ConfigError(
            f"{key} must be {words}, but its interpolation gives something else "
            f"(from {_origin(key, layers)})."
        ) from None
    except OmegaConfBaseException as exc:
        key, why = exc.full_key or str(exc.key), _first_line(exc)
        for secret in _secret_contents(_plain(merged, resolve=False)):
            why = why.replace(secret, MASK)
        raise ConfigError(
            f"{key} cannot be resolved (from {_origin(key, layers)}): {why}."
        ) from None
    return values


def _origin(key: str, layers: list[_Layer]) -> str:
    """Name the last layer that sets *key*."""
    return next((layer.origin for layer in reversed(layers) if layer.sets(key)), "the defaults")


def _schema_key(exc: OmegaConfBaseException) -> str:
    """Return the key of the schema that an error of OmegaConf is about, ``""`` where unknown."""
    key = re.sub(r"\[.*", "", exc.full_key or "")
    return key.partition(".")[0] if key.startswith(tuple(f"{name}." for name in _FREE)) else key


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0].rstrip(".")


# Plain data and back -------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """Turn *config* into plain data for JSON, secrets included: for ranks and checkpoints only."""
    values = dataclasses.asdict(config)
    return values | {"params": _plain(values["params"]), "masked": list(config.masked)}


def from_dict(content: Mapping[str, Any]) -> Config:
    """Turn what `to_dict` made back into a configuration; keys that are not there keep defaults."""
    keys = {name: value for name, value in content.items() if name != "masked"}
    values = _tidy(_Layer("the saved configuration", keys)).data
    if "hang" in values:
        values["hang"] = Hang(**values["hang"])
    return Config(**values, masked=tuple(content.get("masked", ())))


def to_yaml(config: Config, *, show_secrets: bool = False) -> str:
    """Write *config* as YAML that `load_config` can read again.

    Args:
        config: Not changed.
        show_secrets: Also write what is ``***`` else: values that came from a variable with KEY,
            TOKEN, SECRET or PASSWORD in its name, or that go into one, and what looks like a secret
            (`nbdist.hiding`).
    """
    values = to_dict(config) if show_secrets else _shown(config)
    del values["masked"]
    return OmegaConf.to_yaml(OmegaConf.create(_escape(values)))


def to_lines(config: Config, key: str) -> str:
    """Write what *config* has under the full *key*, a value or a section, as YAML without secrets.

    Raises:
        ConfigError: There is no such key.
    """
    found: Any = _shown(config)
    del found["masked"]
    known = [*_known_types(), *_flat(found)]
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise ConfigError(f"There is no key {key!r}. {did_you_mean(key, dict.fromkeys(known))}")
        found = found[name]
    return OmegaConf.to_yaml(OmegaConf.create({key: _escape(found)})).rstrip()


def differences(first: Config, second: Config) -> list[str]:
    """Say in which keys two configurations differ, and how: ``seed (0, 7)``; secrets are hidden."""
    values, shown = [], []
    for config in (first, second):
        values.append(_flat(to_dict(config) | {"masked": ()}))
        shown.append(_flat(_shown(config) | {"masked": ()}))
    keys = [*values[0], *(key for key in values[1] if key not in values[0])]
    missing = object()
    return [
        f"{key} ({_in_words(key, shown[0])}, {_in_words(key, shown[1])})"
        for key in keys
        if values[0].get(key, missing) != values[1].get(key, missing)
    ]


def _in_words(key: str, values: Mapping[str, Any]) -> str:
    if key not in values:
        return "not set"
    return MASK if values[key] == MASK else _shown_value(values[key])


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the values below *key* by their full keys; an empty section has none."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flat(item, _join(key, name)).items()}


def _plain(data: Any, *, resolve: bool = True, throw_on_missing: bool = False) -> Any:
    if not OmegaConf.is_config(data):
        return data
    return OmegaConf.to_container(data, resolve=resolve, throw_on_missing=throw_on_missing)


def _read_only(params: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create(_escape(dict(params)))
    assert isinstance(config, DictConfig)
    OmegaConf.set_readonly(config, True)
    return config


def _escape(value: Any) -> Any:
    r"""Escape ``${`` in resolved data, so that OmegaConf does not resolve it once more.

    A variable may hold ``${...}``, and so may a parameter that was written as ``\${...}``.
    """
    if isinstance(value, Mapping):
        return {name: _escape(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escape(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value


# Secrets -------------------------------------------------------------------------------------

_SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_VARIABLE = re.compile(r"oc\.env\s*:\s*([^,}]*)")


def secret_texts(config: Config) -> tuple[str, ...]:
    """Return the secret values of *config* that are texts, for whoever has to keep them hidden."""
    found: list[str] = []

    def look(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                look(item, _join(key, name))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                look(item, _join(key, index))
        elif isinstance(value, str) and (_is_masked(key) or key in config.masked):
            found.append(value)

    look(to_dict(config), "")
    return tuple(dict.fromkeys(found))


def _is_masked(key: str) -> bool:
    return key.startswith("env.") and _SECRET_NAME.search(key[4:]) is not None


def _shown(config: Config) -> dict[str, Any]:
    """Return `to_dict` with the secret values masked."""
    values: dict[str, Any] = _mask(to_dict(config), "", set(config.masked))
    return values


def _mask(value: Any, key: str, masked: set[str]) -> Any:
    if key in masked or _is_masked(key):
        return MASK
    if isinstance(value, Mapping):
        return {name: _mask(item, _join(key, name), masked) for name, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, _join(key, index), masked) for index, item in enumerate(value)]
    if _is_named_secret(key) and isinstance(value, str | int | float) and value not in _SAID:
        return MASK
    return hide_passwords(value) if isinstance(value, str) else value


def _is_named_secret(key: str) -> bool:
    """Say whether a name in the full *key*, of one of the user's own settings, is of a secret."""
    section, *names = key.split(".")
    return section in _FREE and any(map(is_secret_name, names))


def _secret_keys(raw: Any, values: Any) -> list[str]:
    """Return the full keys of the values that hold what came from a secret variable.

    Args:
        raw: The merged data with its interpolations as text.
        values: The same data resolved.
    """
    contents = _secret_contents(raw)

    def walk(raw: Any, value: Any, key: str, is_interpolated: bool) -> Iterator[str]:
        is_interpolated = is_interpolated or _has_interpolation(raw)
        if isinstance(value, Mapping | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for name, item in items:
                inner = raw[name] if isinstance(raw, Mapping | list) else raw
                yield from walk(inner, item, _join(key, name), is_interpolated)
        elif is_interpolated:
            is_named = isinstance(raw, str) and any(map(_may_be_secret, _VARIABLE.findall(raw)))
            if is_named or any(content in str(value) for content in contents):
                yield key

    return list(walk(raw, values, "", False))


def _secret_contents(raw: Any) -> set[str]:
    """Return what the secret variables hold that *raw* names in its interpolations."""
    names = {name.strip(" '\"") for text in _texts(raw) for name in _VARIABLE.findall(text)}
    return {os.environ.get(name, "") for name in names if _SECRET_NAME.search(name)} - {""}


def _may_be_secret(name: str) -> bool:
    """Say whether a variable's name is that of a secret, or is itself made by an interpolation."""
    return "$" in name or _SECRET_NAME.search(name) is not None


def _has_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping | list):
        for item in data.values() if isinstance(data, Mapping) else data:
            yield from _texts(item)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
