"""Configurations: YAML files, presets found by name, and `section.key=value` on the command line.

A section is named after a fluent method of `TrainerConfig`, its keys after that method's arguments; so the
methods' signatures are the schema, and `check_arguments` reads them.
"""

from __future__ import annotations

import copy
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

from services.sections import SECTIONS, no_effect
from tutelage.errors import ConfigError
from tutelage.plugins import did_you_mean, load

PRESETS = Path(__file__).parent / "presets"

WHO = {"expert": "oracle", "feedback": "labeler"}
"""Section -> the key that says whose its `arguments` are."""
SHORTHANDS = {"seed": "debugging.seed", "seeds": "tune.seeds"}

Config = dict[str, dict[str, Any]]


# Reading and writing


def presets() -> dict[str, str]:
    """Shipped configurations: name -> the comment in their first line."""
    return {path.stem: _description(path) for path in sorted(PRESETS.glob("*.yaml"))}


def _description(path: Path) -> str:
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file or preset, with `section.key=value` overrides applied in order.

    Raises ConfigError for an unknown preset, section or shorthand, naming the nearest known one.
    """
    path = find_config(name_or_path)
    config = _sections(_parse(path.read_bytes(), str(path)), str(path))
    for section, who in WHO.items():
        if any(override.startswith(f"{section}.{who}=") for override in overrides):
            config.get(section, {}).pop("arguments", None)  # they were somebody else's
    for override in overrides:
        apply_override(config, override)
    return config


def find_config(name_or_path: str | Path) -> Path:
    """The file that a command line's CONFIG means: a path, else a preset's name."""
    path, name, known = Path(name_or_path).expanduser(), str(name_or_path), presets()
    if path.is_file():
        return path
    if name in known:
        return PRESETS / f"{name}.yaml"
    listing = f" (presets: {', '.join(known)})" if known else ""
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_dir():
        what = "a folder, not a" if path.is_dir() else "no such"
        raise ConfigError(f"{name}: {what} configuration file; `tutelage presets` lists what there is")
    near = did_you_mean(name, known)
    raise ConfigError(f"no preset named {name!r}{near if near.endswith('?') else ''}{listing}")


def to_yaml(config: Mapping[str, Mapping[str, Any]]) -> str:
    """A configuration as text that `load_config` reads back the same."""
    return yaml.safe_dump(_plain(config), sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{where}{line}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None


def _sections(parsed: Any, where: str) -> Config:
    """Check that a parsed file is a mapping of known sections, and spell shorthands out."""
    if not isinstance(parsed, dict):
        raise ConfigError(f"{where}: expected sections such as 'environment:', got {type(parsed).__name__}")
    config: Config = {}
    for name, value in parsed.items():
        if name in SHORTHANDS:
            _merge(config, SHORTHANDS[name].split("."), value)
            continue
        _check_section(str(name), where)
        if not isinstance(value, dict | None):
            raise ConfigError(f"{where}: section {name}: expected 'key: value' lines, got {value!r}")
        for key, item in (value or {}).items():
            _merge(config, [name, str(key)], item)
    return config


def _check_section(name: str, where: str) -> None:
    if why := no_effect(name):
        raise ConfigError(f"{where}: section {name}: {why}")
    if name not in SECTIONS:
        raise ConfigError(f"{where}: unknown section {name!r}{did_you_mean(name, SECTIONS)}")


# Overrides


def apply_override(config: Config, override: str) -> None:
    """Set one `section.key=value` in place; mappings are merged, all else is replaced.

    The value is YAML: `[1, 2]` is a list, `null` is None, `0.5**i` and `grpc://host:50051` are strings.
    """
    keys, separator, text = override.partition("=")
    path = SHORTHANDS.get(keys.strip(), keys.strip()).split(".")
    if not separator or not all(path):
        hint = f"; did you mean '{override}=VALUE'?" if len(path) > 1 and path[0] in SECTIONS else ""
        raise ConfigError(f"{override!r}: expected section.key=value{hint}")
    if len(path) == 1:
        raise ConfigError(_without_section(config, path[0], override))
    _check_section(path[0], override)
    _merge(config, path, _parse(text, override))


def _without_section(config: Config, key: str, override: str) -> str:
    found = [f"{section}.{key}" for section, values in config.items() if key in values]
    if key in SECTIONS:
        return f"{override!r}: {key} is a section; write {key}.KEY=VALUE"
    if found:
        return f"{override!r}: expected section.key=value; did you mean {found[0]!r}?"
    shorthands = f"shorthands without a section: {', '.join(SHORTHANDS)}"
    return f"{override!r}: expected section.key=value; {_of_the_expert(config, override)}{shorthands}"


def _of_the_expert(config: Config, override: str) -> str:
    """Where it would go if it were an argument of the expert."""
    oracle, whole = str(config.get("expert", {}).get("oracle") or ""), f"expert.arguments.{override}"
    if oracle.startswith("grpc://"):
        return f"{whole} is for the connection, the expert's own are given to `tutelage oracle serve`; "
    return f"for the expert it is {whole}; " if oracle else ""


def _merge(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for depth, key in enumerate(parents):
        if config.get(key) is None:
            config[key] = {}
        config = config[key]
        if not isinstance(config, dict):
            where = ".".join(path[: depth + 1])
            raise ConfigError(f"{'.'.join(path)}: {where} is {config!r}, which has no keys")
    if isinstance(value, dict) and isinstance(config.get(last), dict):
        for key, item in value.items():
            _merge(config, [last, str(key)], item)
    else:
        config[last] = value


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], parents: str = "") -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    names = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping | None) and isinstance(new, Mapping | None) and (old or new):
            names += changed_keys(old or {}, new or {}, f"{parents}{key}.")
        elif old != new:
            names.append(f"{parents}{key}")
    return names


MAY_CHANGE = (
    *("stop", "run", "expert", "feedback", "evaluation"),
    *("env_runners.num_env_runners", "method.comparisons"),
)


def changed_for_resume(config: Config, overrides: Sequence[str], also: Sequence[str] = ()) -> Config:
    """The configuration of a run that goes on, overrides applied.

    Raises ConfigError, naming the key, for those that would make it another experiment than it was.
    """
    changed, allowed = copy.deepcopy(config), (*MAY_CHANGE, *also)
    for override in overrides:
        apply_override(changed, override)
    for name in changed_keys(config, changed):
        if not any(name == key or name.startswith(f"{key}.") for key in allowed):
            raise ConfigError(
                f"{name} cannot change in a run that goes on, only {', '.join(allowed)}; "
                "start a new run with `tutelage train`"
            )
    return changed


def key_values(arguments: Sequence[str]) -> dict[str, Any]:
    """`["path=experts/hopper", "n=3"]` as a dict; values are YAML."""
    pairs = [argument.partition("=") for argument in arguments]
    for key, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"{key!r} is not of the form KEY=VALUE")
    return {key: _parse(value, key) for key, _, value in pairs}


# Checks against signatures


def check_arguments(
    section: str, function: Callable[..., Any], given: Mapping[str, Any], only: Sequence[str] | None = None
) -> dict[str, Any]:
    """`given`, converted to the types that `function` expects: a fluent method, a dataclass, any callable.

    For a bound method that takes **kwargs, the methods that it overrides count too. Raises ConfigError for a
    key that is unknown, or not among `only`, naming the nearest known one, and for a wrong type. A type that
    is not understood passes.
    """
    taken = _parameters(function)
    known = taken if only is None else {key: taken[key] for key in only}
    checked = {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{section}.{key}: {_why_refused(f'{section}.{key}', taken, known)}")
        try:
            checked[key] = _convert(value, known[key])
        except _WrongTypeError:
            expected = _describe(known[key])
            raise ConfigError(f"{section}.{key}: expected {expected}, got {value!r}") from None
    return checked


def _why_refused(name: str, taken: Iterable[str], known: Iterable[str]) -> str:
    """Why a `section.key` is not among the `known` ones of those that RLlib's method has `taken`."""
    section, _, key = name.partition(".")
    if why := no_effect(name):
        return why
    if key in taken:
        return f"RLlib's setting has no effect here; those of {section} that have: {', '.join(known)}"
    return f"unknown key{did_you_mean(key, known)}"


class _WrongTypeError(Exception):
    pass


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of the arguments that `function` takes by name."""
    known: dict[str, Any] = {}
    for overridden in _chain(function):
        hints = _hints(overridden)
        parameters = inspect.signature(overridden).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for parameter in named:
            if parameter.name != "self" and not _deprecated(parameter):
                known.setdefault(parameter.name, hints.get(parameter.name, Any))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return known


def _chain(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """`function`, then the methods that it overrides, nearest first."""
    owner = getattr(function, "__self__", None)
    if owner is None or isinstance(owner, type):
        return [function]
    name = function.__name__
    return [vars(base)[name] for base in type(owner).__mro__ if name in vars(base)]


def _deprecated(parameter: inspect.Parameter) -> bool:
    """RLlib keeps deprecated arguments in its signatures, without a type and with a default of -1."""
    return parameter.annotation is parameter.empty and parameter.default == -1


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types by argument; those that cannot be resolved are left out."""
    if is_dataclass(function) and isinstance(function, type):
        bases = reversed(function.__mro__)
        sources = [(inspect.get_annotations(base), vars(sys.modules[base.__module__])) for base in bases]
    else:
        called: Any = function.__init__ if isinstance(function, type) else function
        sources = [(getattr(called, "__annotations__", {}), getattr(called, "__globals__", {}))]
    return {
        name: hint
        for annotations, names in sources
        for name, raw in annotations.items()
        if (hint := _resolve(raw, names)) is not None
    }


def _resolve(raw: Any, names: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": raw})
    try:
        return typing.get_type_hints(holder, globalns=names)["it"]
    except Exception:  # a name that exists only for type checkers
        return None


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` wants it, or _WrongTypeError. Exact fits win over conversions."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is typing.Literal:
        fits = [choice for choice in arguments if choice == value and type(choice) is type(value)]
        return fits[0] if fits else _refuse()
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if hint is None or hint is type(None):
        return None if value is None else _refuse()
    kind = origin or hint
    if kind in _SEQUENCES:
        return _convert_sequence(value, _SEQUENCES[kind], arguments)
    if kind in _MAPPINGS:
        return _convert_mapping(value, arguments)
    if kind in _CALLABLES:
        return _convert_callable(value)
    return value


def _refuse() -> typing.NoReturn:
    raise _WrongTypeError


def _convert_union(value: Any, members: Sequence[Any]) -> Any:
    fits = []
    for member in members:
        try:
            fits.append(_convert(value, member))
        except _WrongTypeError:
            continue
    if not fits:
        _refuse()
    return next((fit for fit in fits if type(fit) is type(value) and fit == value), fits[0])


def _to_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse()


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _to_float(value)  # 1e6, which YAML 1.1 reads as text
    return int(number) if number.is_integer() and not isinstance(value, bool) else _refuse()


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        _refuse()
    try:
        return float(value)
    except ValueError:
        _refuse()


def _to_str(value: Any) -> str:
    return value if isinstance(value, str) else _refuse()


_SCALARS: dict[Any, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}
_SEQUENCES: dict[Any, type] = {list: list, tuple: tuple, Sequence: list}
_MAPPINGS = (dict, Mapping)
_CALLABLES = (Callable, typing.Callable, type)


def _convert_sequence(value: Any, kind: type, items: Sequence[Any]) -> Any:
    if not isinstance(value, list | tuple):
        _refuse()
    if kind is tuple and items and items[-1] is not Ellipsis:
        if len(value) != len(items):
            _refuse()
        return tuple(_convert(item, hint) for item, hint in zip(value, items, strict=True))
    return kind(_convert(item, items[0] if items else Any) for item in value)


def _convert_mapping(value: Any, arguments: Sequence[Any]) -> Any:
    if not isinstance(value, Mapping):
        _refuse()
    hint = arguments[1] if len(arguments) == 2 else Any
    return {key: _convert(item, hint) for key, item in value.items()}


def _convert_callable(value: Any) -> Any:
    """A function or class; in a file it is written 'module:attribute'."""
    if callable(value):
        return value
    return load(value) if isinstance(value, str) and ":" in value else _refuse()


def _describe(hint: Any) -> str:
    """A type in words: 'int', 'list of float', "'a' or 'b'"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [_describe(member) for member in arguments if member is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    kind = origin or hint
    if kind in _SEQUENCES:
        items = [argument for argument in arguments if argument is not Ellipsis]
        return "list" if not items else f"list of {' and '.join(map(_describe, items))}"
    if kind in _MAPPINGS:
        return "mapping"
    if kind in _CALLABLES:
        return "'module:attribute'"
    return getattr(hint, "__name__", str(hint))
