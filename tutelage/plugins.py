"""Plug-ins: `package.module:attribute`, `path/to/file.py:attribute`, and files found where they lie."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.errors import ConfigError


class NoModule(ConfigError):
    """A plug-in of a module that is not there."""


def load(spec: str) -> Any:
    """The attribute that `spec` names, e.g. `mypkg.mpc:Planner` or `experts/expert.py:Expert`.

    Raises ConfigError, naming the part that is missing.
    """
    module_name, separator, attribute = spec.rpartition(":")
    if not separator or not module_name or not attribute:
        raise ConfigError(f"{spec!r} is not of the form 'module:attribute' or 'file.py:attribute'")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _import(module_name)
    try:
        value: Any = module
        for part in attribute.split("."):
            value = getattr(value, part)
    except AttributeError:
        known = [name for name in vars(module) if not name.startswith("_")]
        near = did_you_mean(attribute, known)
        raise ConfigError(f"{module_name} has no attribute {attribute!r}{near}") from None
    return value


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise NoModule(f"no module named {name!r}; is it installed, or in PYTHONPATH?") from None


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    name = f"tutelage_plugin_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def discover(package: str) -> dict[str, str]:
    """Public modules of a package by short name: `learner.methods` -> {"bc": "learner.methods.bc", ...}."""
    paths = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(paths))
    return {name: f"{package}.{name}" for name in names if not name.startswith("_")}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, else all of them."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
