"""All answers that count as a table: who said what when, what was asked, and in which order it was shown.

    for part in jsonl(labeling): file.write(part)

Rows are made as they are read: memory does not grow with their number, but for the ids of those undone.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.queue import Event
from tutelage.errors import ServiceError
from tutelage.types import Query, Segment

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 2000  # that go together
REMEMBERED = 256  # questions whose description is kept for the next answer to it


def rows(labeling: Labeling) -> Iterator[dict[str, Any]]:
    """One for every answer that was not undone, in their order."""
    labeling.ledger.follow(labeling.queue)
    asked = functools.lru_cache(REMEMBERED)(functools.partial(_asked, labeling))
    undone = _undone(labeling.ledger)
    for event in labeling.ledger:
        if event.type == "answer" and event.id not in undone:
            yield _row(event, asked(event.again or event.question))


def _undone(ledger: Ledger) -> set[str]:
    return {event.undoes for event in ledger if event.type == "undo"}


def _row(event: Event, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    said = dict(event.body)
    return {
        "event": event.id,
        "question": event.again or event.question,
        "kind": event.kind,
        "annotator": event.annotator,
        "value": said.pop("value", None),
        "cannot_tell": bool(said.pop("cannot_tell", False)),
        "started_at": said.pop("started_at", None),
        "answered_at": said.pop("answered_at", None),
        "side_shown": [int(k) for k in said.pop("side_shown", None) or []],
        "gold": event.gold,
        "repeat": bool(event.again),
        "asked": asked,
        "more": said,
    }


def _asked(labeling: Labeling, question: str) -> dict[str, Any] | None:
    """What a question was about, in words of JSON; None where that cannot be read any more."""
    try:
        query: Query = labeling.query(question)
    except (KeyError, OSError, ServiceError):
        return None
    return {"context": _plain(query.context), "options": [_option(option) for option in query.options]}


def _option(option: Any) -> Any:
    if not isinstance(option, Segment):
        return _plain(option)
    prefix = len(_first(option.prefix))
    return {
        "env": option.recipe.id,
        "kwargs": _plain(option.recipe.kwargs),
        "seed": int(option.seed),
        "start": prefix,  # the first step that was shown, of the episode with that seed
        "steps": len(_first(option.obs)),
    }


def _first(value: Any) -> Any:
    import tree

    return tree.flatten(value)[0]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def jsonl(labeling: Labeling) -> Iterator[bytes]:
    """A line of JSON a row."""
    lines: list[str] = []
    for row in rows(labeling):
        lines.append(json.dumps(row, separators=(",", ":")) + "\n")
        if len(lines) == ROWS:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def parquet(labeling: Labeling) -> Iterator[bytes]:
    """A Parquet file; what has a form of its own in each kind (value, gold, asked, more) is JSON."""
    import pyarrow.parquet as pq

    schema, sink = _schema(), _Sink()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows(labeling):
            batch.append(row)
            if len(batch) == ROWS:
                writer.write_table(_table(batch, schema))
                batch.clear()
                yield sink.take()
        writer.write_table(_table(batch, schema))
    yield sink.take()


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, time = pa.string(), pa.float64()
    return pa.schema(
        {
            **dict.fromkeys(("event", "question", "kind", "annotator", "value"), text),
            "cannot_tell": pa.bool_(),
            "started_at": time,
            "answered_at": time,
            "side_shown": pa.list_(pa.int32()),
            "gold": text,
            "repeat": pa.bool_(),
            "asked": text,
            "more": text,
        }
    )


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    coded = ("value", "gold", "asked", "more")
    plain = [
        row | {name: None if row[name] is None else json.dumps(row[name]) for name in coded} for row in rows
    ]
    return pa.Table.from_pylist(plain, schema=schema)


class _Sink(io.RawIOBase):
    """A file that is read as it is written."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


FORMS: Mapping[str, Callable[[Labeling], Iterator[bytes]]] = {"jsonl": jsonl, "parquet": parquet}
MEDIA = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
