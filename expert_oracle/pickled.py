"""Plain values out of a pickle that others wrote, without running anything that it names.

A pickle is a program: what it names, it calls. Here numpy's arrays and numbers are rebuilt, and every other
name stands for an `Opaque` record that keeps what the pickle would have given to it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import ConfigError, OracleError

MODULES = ("numpy", "numpy._core.multiarray", "numpy.core.multiarray")
ARRAYS = ("_reconstruct", "scalar", "ndarray", "dtype")
"""The names in these modules that make arrays and numbers and do no more; a pickle cannot change them."""


class Opaque(dict[Any, Any]):
    """What a pickle says of an object whose class was not imported: its items, `args` and `state`."""

    name = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **_kwargs: Any) -> Opaque:
        self = super().__new__(cls)
        self.args = args
        return self

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **_kwargs: Any) -> Opaque:
        return Opaque(*args)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def append(self, value: Any) -> None:
        self.args += (value,)

    extend = add = append


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name in MODULES and global_name in ARRAYS:
            return super().find_class(module_name, global_name)
        if global_name == "_frombuffer":  # an array in numpy's newest form
            return lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(shape, order=order)
        if (module_name, global_name) == ("_codecs", "encode"):  # bytes in an old pickle
            return lambda text, _encoding: text.encode("latin1")
        return type(global_name, (Opaque,), {"name": f"{module_name}.{global_name}"})


def read_pickle(path: Path) -> Any:
    """What a pickle file holds: plain values, arrays and `Opaque` records. Nothing in it is run."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    try:
        return _Reader(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # whatever a malformed program makes of numpy
        raise OracleError(f"{path} is no readable pickle: {type(error).__name__}: {error}") from None


def fields(value: Any) -> dict[str, Any]:
    """The attributes of an `Opaque` record, else an empty dict."""
    state = value.state if isinstance(value, Opaque) else None
    if isinstance(state, tuple):  # (attributes, slots)
        state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
    return state if isinstance(state, dict) else {}
