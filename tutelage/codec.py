"""Arrays and spaces on the wire: trees of numpy arrays as protobuf messages, checked when read.

An array travels as its raw little-endian bytes with dtype and shape; nothing is pickled. What was read is a
read-only view of the message's bytes, not a copy. A list comes back as a tuple.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tree

from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import Array, Tree

MAX_BYTES = 64 * 2**20
"""Largest message that either side sends or takes."""

PACKED_BYTES = 2**20
"""What waits to be sent on a stream is put into one message up to this size."""
CLIENT = "tutelage-client"
"""Metadata by which a client names itself."""

NEEDLESS = "tutelage-needless"
"""Metadata by which a service says what a client need not have sent: `token`."""

_NAMES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in [*_NAMES, "float16", "float32", "float64"]}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
MAX_AXES = 32
MAX_PARTS = 4096
"""Most tensors, maps and lists in one tree."""
_DIGITS = "0123456789"


def encode(value: Tree, name: str = "tree", max_bytes: int = MAX_BYTES) -> pb.Tree:
    """A tree of arrays as a message. Raises ValueError, naming the field, for what cannot travel."""
    message = pb.Tree()
    encode_into(message, value, name, max_bytes)
    return message


def encode_into(message: pb.Tree, value: Tree, name: str, max_bytes: int = MAX_BYTES) -> None:
    """The same into an empty message that is part of another one, which spares a copy."""
    _check_size(value, name, max_bytes)
    if type(value) is np.ndarray:  # the common case, in few steps
        _fill(message.tensor, value, name)
    else:
        _encode(message, value, name)


def _check_size(value: Tree, name: str, max_bytes: int) -> None:
    size = value.nbytes if type(value) is np.ndarray else _nbytes(value)
    if size > max_bytes:
        raise ValueError(f"{name}: {size:,} bytes, more than the limit of {max_bytes:,}")


def _nbytes(value: Tree) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in tree.flatten(value))


def _encode(message: pb.Tree, value: Tree, name: str) -> None:
    if isinstance(value, dict):
        message.map.SetInParent()
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name}: key {key!r} is not a string")
            _encode(message.map.items[key], item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        message.list.SetInParent()
        for i, item in enumerate(value):
            _encode(message.list.items.add(), item, f"{name}.{i}")
    else:
        _fill(message.tensor, value, name)


def encode_tensor(value: Any, name: str = "tensor") -> pb.Tensor:
    """One array, of a dtype in `DTYPES`, as a message."""
    message = pb.Tensor()
    _fill(message, value, name)
    return message


def _fill(message: pb.Tensor, value: Any, name: str) -> None:
    array = np.asarray(value)
    dtype = _NAME_OF.get(array.dtype)
    if dtype is None:
        array = array.astype(array.dtype.newbyteorder("<"))
        dtype = _NAME_OF.get(array.dtype)
    if dtype is None:
        raise ValueError(f"{name}: dtype {array.dtype} cannot be sent; known: {', '.join(DTYPES)}")
    message.dtype = dtype
    message.shape.extend(array.shape)
    message.data = array.tobytes()


def decode(message: pb.Tree, name: str = "tree", max_bytes: int = MAX_BYTES) -> Tree:
    """The tree of read-only arrays in a message. Raises ValueError, naming the field, if it is malformed."""
    if message.HasField("tensor"):  # the common case, in few steps
        value = decode_tensor(message.tensor, name)
    else:
        value = _decode(message, name, itertools.count(1))
    _check_size(value, name, max_bytes)
    return value


def _decode(message: pb.Tree, name: str, parts: Iterator[int]) -> Tree:
    if next(parts) > MAX_PARTS:
        raise ValueError(f"{name}: more than {MAX_PARTS} parts")
    kind = message.WhichOneof("node")
    if kind == "tensor":
        return decode_tensor(message.tensor, name)
    if kind == "map":
        items = sorted(message.map.items.items())
        return {key: _decode(item, f"{name}.{key}", parts) for key, item in items}
    if kind == "list":
        return tuple(_decode(item, f"{name}.{i}", parts) for i, item in enumerate(message.list.items))
    raise ValueError(f"{name}: empty, expected a tensor, a map or a list")


def decode_tensor(message: pb.Tensor, name: str = "tensor") -> Array:
    """The read-only array in a message."""
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise ValueError(f"{name}: unknown dtype {message.dtype!r}; known: {', '.join(DTYPES)}")
    if len(message.shape) > MAX_AXES:
        raise ValueError(f"{name}: {len(message.shape)} axes, more than {MAX_AXES}")
    shape, data = tuple(message.shape), message.data
    if math.prod(shape) * dtype.itemsize != len(data) or (not data and max(shape) >= 2**31):
        raise ValueError(f"{name}: {len(data)} bytes do not make {message.dtype} of shape {list(shape)}")
    return np.ndarray(shape, dtype, data)


def describe_space(space: Any) -> pb.Space:
    """A gymnasium space as a message. Raises ValueError for kinds of spaces that have no message."""
    match type(space).__name__:
        case "Box":
            return box_space(space.low, space.high, space.dtype)
        case "Discrete":
            return discrete_space(int(space.n), int(space.start))
        case "MultiDiscrete":
            return _multi_discrete(space.nvec, space.start)
        case "MultiBinary":
            return pb.Space(multi_binary=pb.MultiBinary(shape=space.shape))
        case "Dict":
            spaces = {str(key): describe_space(part) for key, part in space.spaces.items()}
            return pb.Space(dict=pb.DictSpace(spaces=spaces))
        case "Tuple":
            return pb.Space(tuple=pb.TupleSpace(spaces=[describe_space(part) for part in space.spaces]))
    raise ValueError(f"space {space} is not supported; supported: {', '.join(_KINDS)}")


def box_space(low: Array, high: Array, dtype: Any = np.float32) -> pb.Space:
    """Numbers between `low` and `high`, both of the space's shape."""
    bounds = {"low": _scalar_if_uniform(low), "high": _scalar_if_uniform(high)}
    return pb.Space(box=pb.Box(shape=np.shape(low), dtype=np.dtype(dtype).name, **bounds))


def unbounded_space(shape: Sequence[int], dtype: Any = np.float32) -> pb.Space:
    """Numbers of that shape whose bounds are not known."""
    return pb.Space(box=pb.Box(shape=shape, dtype=np.dtype(dtype).name))


def discrete_space(n: int, start: int = 0) -> pb.Space:
    """The integers `start`, ..., `start + n - 1`."""
    return pb.Space(discrete=pb.Discrete(n=n, start=start))


def multi_discrete_space(nvec: Sequence[int]) -> pb.Space:
    """One integer of 0, ..., n - 1 for each n of `nvec`."""
    return _multi_discrete(np.asarray(nvec, np.int64), np.zeros(len(nvec), np.int64))


def _multi_discrete(nvec: Array, start: Array) -> pb.Space:
    return pb.Space(multi_discrete=pb.MultiDiscrete(nvec=encode_tensor(nvec), start=encode_tensor(start)))


def multi_binary_space(n: int) -> pb.Space:
    """`n` zeros or ones."""
    return pb.Space(multi_binary=pb.MultiBinary(shape=[n]))


def _scalar_if_uniform(bound: Array) -> pb.Tensor:
    bound = np.asarray(bound)
    uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return encode_tensor(bound.flat[0] if uniform else bound)


def check_batch(value: Tree, space: pb.Space, name: str = "obs") -> None:
    """Raise ValueError, naming the field, unless `value` holds [N, ...] elements of `space`.

    Bounds are not checked, and a flat Box takes anything of its size.
    """
    match space.WhichOneof("kind"):
        case "dict":
            if not isinstance(value, dict) or set(value) != set(space.dict.spaces):
                raise ValueError(
                    f"{name}: expected a map with {sorted(space.dict.spaces)}, got {_keys(value)}"
                )
            for key, part in space.dict.spaces.items():
                check_batch(value[key], part, f"{name}.{key}")
        case "tuple":
            if not isinstance(value, tuple) or len(value) != len(space.tuple.spaces):
                raise ValueError(f"{name}: expected a list of {len(space.tuple.spaces)}, got {_keys(value)}")
            for i, part in enumerate(space.tuple.spaces):
                check_batch(value[i], part, f"{name}.{i}")
        case _:
            _check_array(value, space, name)


def _keys(value: Tree) -> str:
    if isinstance(value, dict):
        return f"a map with {sorted(value)}"
    return f"a list of {len(value)}" if isinstance(value, tuple) else "a tensor"


def _check_array(value: Tree, space: pb.Space, name: str) -> None:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name}: expected a tensor, got {_keys(value)}")
    shape, integers = _element(space)
    flat_fits = len(shape) == 1 and math.prod(value.shape[1:]) == math.prod(shape)
    if value.ndim == 0 or not (value.shape[1:] == shape or flat_fits):
        raise ValueError(f"{name}: expected shape (N, {', '.join(map(str, shape))}), got {value.shape}")
    if integers != (value.dtype.kind in "iub"):
        wanted = "integers" if integers else "floating-point numbers"
        raise ValueError(f"{name}: expected {wanted}, got {value.dtype}")


def _element(space: pb.Space) -> tuple[tuple[int, ...], bool]:
    """The shape of one element of a space, and whether it holds integers."""
    match space.WhichOneof("kind"):
        case "box":
            return tuple(space.box.shape), not space.box.dtype.startswith("float")
        case "multi_discrete":
            return tuple(space.multi_discrete.nvec.shape), True
        case "multi_binary":
            return tuple(space.multi_binary.shape), True
    return (), True


def space_text(space: pb.Space) -> str:
    """A space in a few words: `Box(6,)`, `Discrete(4)`, `Dict(camera: Box(84, 84, 3) of uint8)`."""
    kind = space.WhichOneof("kind")
    if kind is None:
        return "an unknown space"
    return _KINDS[kind](getattr(space, kind))


def _box_text(box: pb.Box) -> str:
    return f"Box{tuple(box.shape)}" + ("" if box.dtype.startswith("float") else f" of {box.dtype}")


def _discrete_text(space: pb.Discrete) -> str:
    return f"Discrete({space.n})" if space.start == 0 else f"Discrete({space.n}, start={space.start})"


def _parts_text(parts: Iterable[str]) -> str:
    return f"({', '.join(parts)})"


_KINDS: dict[str, Callable[[Any], str]] = {
    "box": _box_text,
    "discrete": _discrete_text,
    "multi_discrete": lambda space: f"MultiDiscrete({decode_tensor(space.nvec).tolist()})",
    "multi_binary": lambda space: f"MultiBinary{tuple(space.shape)}",
    "dict": lambda space: (
        "Dict" + _parts_text(f"{k}: {space_text(s)}" for k, s in sorted(space.spaces.items()))
    ),
    "tuple": lambda space: "Tuple" + _parts_text(map(space_text, space.spaces)),
}


def space_difference(
    expert: pb.Space, environment: pb.Space, what: Literal["action", "observation"] = "action"
) -> str | None:
    """One line that says how an expert's space differs from the environment's, or None.

    Bounds count for actions only, and an expert for flat observations takes any of the same size.
    """
    for path, (left, right) in _unlike(expert, environment, what == "action"):
        where = f" at {path!r}" if path else ""
        return f"expert's {what} space {left} differs from the environment's {right}{where}"
    return None


def _unlike(a: pb.Space, b: pb.Space, exact: bool, path: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """The parts in which two spaces differ: where, and either's text."""
    kind = a.WhichOneof("kind")
    if kind != b.WhichOneof("kind"):
        yield path, (space_text(a), space_text(b))
    elif kind == "dict" and set(a.dict.spaces) == set(b.dict.spaces):
        for key in sorted(a.dict.spaces):
            yield from _unlike(a.dict.spaces[key], b.dict.spaces[key], exact, f"{path}.{key}".lstrip("."))
    elif kind == "tuple" and len(a.tuple.spaces) == len(b.tuple.spaces):
        for i, (left, right) in enumerate(zip(a.tuple.spaces, b.tuple.spaces, strict=True)):
            yield from _unlike(left, right, exact, f"{path}.{i}".lstrip("."))
    elif kind == "box":
        if not _same_box(a.box, b.box, exact):
            yield path, (space_text(a), space_text(b))
        elif exact and (bounds := _unlike_bounds(a.box, b.box)):
            yield path, (space_text(a) + bounds[0], space_text(b) + bounds[1])
    elif a != b:
        yield path, (space_text(a), space_text(b))


def _same_box(a: pb.Box, b: pb.Box, exact: bool) -> bool:
    flat_fits = not exact and len(a.shape) == 1 and math.prod(a.shape) == math.prod(b.shape)
    return (a.shape == b.shape or flat_fits) and a.dtype.rstrip(_DIGITS) == b.dtype.rstrip(_DIGITS)


def _unlike_bounds(a: pb.Box, b: pb.Box) -> tuple[str, str] | None:
    """Either's bounds in words where both are known and they differ."""
    if not all(box.HasField("low") and box.HasField("high") for box in (a, b)):
        return None
    left, right = _bounds_text(a), _bounds_text(b)
    return None if left == right else (left, right)


def _bounds_text(box: pb.Box) -> str:
    low, high = (
        np.round(decode_tensor(bound).astype(np.float64), 4).tolist() for bound in (box.low, box.high)
    )
    return f" from {low} to {high}"
