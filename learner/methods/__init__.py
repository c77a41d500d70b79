"""One file a method, found because it is there: its module's name is its name in the configuration."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any

from learner.methods._base import Method
from tutelage.errors import ConfigError
from tutelage.plugins import did_you_mean, discover


def method_class(name: str) -> type[Method]:
    """The Method of `learner/methods/NAME.py`. Raises ConfigError for an unknown name."""
    known = discover(__name__)
    if name not in known:
        raise ConfigError(f"method.name: there is no method {name!r}{did_you_mean(name, known)}")
    module = importlib.import_module(known[name])
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method)
    ]
    (found,) = [value for value in classes if value.__module__ == module.__name__]
    return found


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method with these settings; its fields are the settings it knows. Raises ConfigError for others."""
    cls = method_class(name)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"method.{key} is not a setting of {name}{did_you_mean(key, known)}")
    check_ranges(cls, settings)
    return cls(**settings)


def check_ranges(cls: type[Method], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number that the method, or one that it derives from, has no use for."""
    ranges = {
        name: bounds
        for base in reversed(cls.__mro__)
        for name, bounds in vars(base).get("ranges", {}).items()
    }
    for name, (least, greatest) in ranges.items():
        value = settings.get(name, least)
        if not (isinstance(value, int | float) and least <= value <= greatest):
            limits = f"of at least {least}" if greatest == math.inf else f"from {least} to {greatest}"
            raise ConfigError(f"method.{name}: expected a number {limits}, got {value!r}")
