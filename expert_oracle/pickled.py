"""Plain values out of a pickle that others wrote, without running anything that it names.

A pickle is a program: what it names, it calls, and what it has made, it changes. numpy's own functions
believe what they are told of pointers, offsets and sizes, so no name leads to any of them. Numbers and arrays
of numbers are checked and made here, and `np.asarray` gives them; every other name stands for an `Opaque`
record that keeps what the pickle would have given to it.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import ConfigError, OracleError
from tutelage.types import Array

MODULES = re.compile(r"numpy(\._?core\.(multiarray|numeric))?")


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


class _Dtype(Opaque):
    """dtype(name, align, copy), whose state begins with a version and the byte order."""

    def plain(self) -> np.dtype[Any] | None:
        """numpy's, if it is one of numbers; None for objects, texts and records."""
        name = self.args[0] if self.args else None
        if not isinstance(name, str) or not re.fullmatch(r"[biufc]\d{1,2}", name):
            return None
        state = self.state
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        return np.dtype(name).newbyteorder(order)


class _Array:
    """_reconstruct(ndarray, (0,), b"b"), whose state is (version, shape, dtype, is Fortran's, bytes)."""

    array: Array | None = None

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortrans, data = state
        self.array = _rebuilt(data, dtype, shape, "F" if is_fortrans else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.array is None:
            raise ValueError("an array in it does not hold numbers")
        return np.array(self.array, dtype)


class _Buffered(_Array):
    """_frombuffer(bytes, dtype, shape, order): an array in numpy's newest form."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.array = _rebuilt(data, dtype, shape, order)


class _Scalar(Opaque):
    """scalar(dtype, bytes): numpy's number, where it is one."""

    def __new__(cls, *args: Any, **_kwargs: Any) -> Any:
        dtype, data = args
        array = _rebuilt(data, dtype, (), "C")
        return super().__new__(cls, *args) if array is None else array[()]


def _rebuilt(data: Any, dtype: Any, shape: Any, order: Any) -> Array | None:
    """The array of numbers in these bytes; None where they are no numbers. ValueError if they do not fit."""
    plain = dtype.plain() if isinstance(dtype, _Dtype) else None
    if plain is None:
        return None
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise ValueError("an array has a shape that is none")
    if type(data) not in (bytes, bytearray) or len(data) != math.prod(shape) * plain.itemsize:
        raise ValueError(f"an array has not the bytes that make {plain} of shape {shape}")
    return np.frombuffer(data, plain).reshape(shape, order=order)


NUMPYS = {"dtype": _Dtype, "_reconstruct": _Array, "_frombuffer": _Buffered, "scalar": _Scalar}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A class that is made for this one time: a pickle may change what it has found."""
        if (module_name, global_name) == ("_codecs", "encode"):  # bytes in an old pickle
            return lambda text, _encoding: text.encode("latin1")
        if (module_name, global_name) == ("__builtin__", "bytes"):  # those that are empty
            return lambda: b""
        kind = NUMPYS.get(global_name, Opaque) if MODULES.fullmatch(module_name) else Opaque
        return type(global_name, (kind,), {"name": f"{module_name}.{global_name}"})


def read_pickle(path: Path) -> Any:
    """What a pickle file holds: plain values, numpy's numbers and `Opaque` records. Nothing in it is run."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    try:
        return _Reader(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a malformed program raises a dozen kinds
        raise OracleError(f"{path} is no readable pickle: {type(error).__name__}: {error}") from None


def fields(value: Any) -> dict[str, Any]:
    """The attributes of an `Opaque` record, else an empty dict."""
    state = value.state if isinstance(value, Opaque) else None
    if isinstance(state, tuple):  # (attributes, slots)
        state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
    return state if isinstance(state, dict) else {}
