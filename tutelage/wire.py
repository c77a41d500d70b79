"""A look at a message's bytes before it is parsed: what is small on the wire may be large in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

SMALL = 2**18
"""Bytes of a message that is parsed as it is: at worst it grows fortyfold."""
MAX_FIELDS = 2**17
"""Fields of all parts of a message together; each number of a packed one counts."""
_TOO_MANY = f"more than {MAX_FIELDS:,} fields in one message"
_MALFORMED = "malformed"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fault(data: bytes, kind: Any) -> str | None:
    """Why a message is not to be parsed; kind: its descriptor."""
    if len(data) <= SMALL:
        return None
    fields, parts = 0, [(0, len(data), kind)]
    try:
        while parts and fields <= MAX_FIELDS:
            fields += _walk(data, *parts.pop(), parts, MAX_FIELDS - fields)
    except (IndexError, ValueError):
        return _MALFORMED
    return _TOO_MANY if fields > MAX_FIELDS else None


def _walk(data: bytes, at: int, end: int, kind: Any, parts: list[Any], most: int) -> int:
    """The number of fields of one part, or one more than `most`; parts that it holds are added to `parts`."""
    fields, (inner, packed) = 0, _shape(kind)
    while at < end and fields <= most:
        fields += 1
        tag, at = _varint(data, at)
        number, how = tag >> 3, tag & 7
        if how == _BYTES:
            size, at = _varint(data, at)
            if number in inner:
                parts.append((at, at + size, inner[number]))
            fields += size * (number in packed)
            at += size
        elif how == _VARINT:
            _, at = _varint(data, at)
        elif how in (_FIXED32, _FIXED64):
            at += 4 if how == _FIXED32 else 8
        else:  # groups, which none of ours has
            raise ValueError
    if at > end:
        raise ValueError
    return min(fields, most + 1)


@cache
def _shape(kind: Any) -> tuple[dict[int, Any], set[int]]:
    """By their numbers the fields that hold messages, and those that hold many numbers."""
    inner = {field.number: field.message_type for field in kind.fields if field.message_type is not None}
    return inner, {field.number for field in kind.fields if field.is_packed}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = data[at] & 127
    shift = 7
    while data[at] & 128:
        at += 1
        value |= (data[at] & 127) << shift
        shift += 7
        if shift > 70:
            raise ValueError
    return value, at + 1
