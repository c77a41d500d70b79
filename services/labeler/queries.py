"""What was asked, whole, on the disk: the queue holds only what annotators see of it.

    queries = Queries(folder)
    queries.add([query, ...])        # on the disk when it returns
    queries["q1"]                    # with its segments

One file of records, each with its length and checksum; what a crash left half-written at its end is cut off.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from services.labeler.messages import query_message, query_of
from tutelage.disk import sync_folder
from tutelage.errors import ServiceError
from tutelage.proto.tutelage.v1 import labeler_pb2 as pb
from tutelage.types import Query

NAME = "queries.bin"
HEAD = struct.Struct("<II")  # length and CRC-32 of a record
FIRST = 0x0A  # byte of every record: the tag of `Stored.query`


@dataclass(frozen=True)
class Place:
    """Where a query is in the file, and what is needed without reading it. Made and eaten by: the store."""

    offset: int
    kind: str
    priority: float
    gold: bool
    chosen: bool  # for some annotators only, or not for some


class Queries:
    """The queries of a folder, in the order in which they came. One process writes; thread-safe."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        is_new = not self.path.exists()
        self._file: BinaryIO = self.path.open("a+b")
        if is_new:
            sync_folder(folder)
        self._end = self._read_all()
        self._file.truncate(self._end)

    def __contains__(self, id: str) -> bool:
        return id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._places))

    def __getitem__(self, id: str) -> Query:
        """Raises KeyError for one that was never asked."""
        return query_of(self._stored(id).query)

    def place(self, id: str) -> Place:
        """Its kind and the like; KeyError as well."""
        return self._places[id]

    def gold(self, id: str) -> Any:
        """The known answer, JSON; None where it has none."""
        text = self._stored(id).gold
        return json.loads(text) if text else None

    def meant_for(self, id: str) -> tuple[list[str], list[str]]:
        """Annotators who alone are asked, empty: all; and those who are not."""
        if not self._places[id].chosen:
            return [], []
        stored = self._stored(id)
        return list(stored.only), list(stored.never)

    def add(
        self,
        queries: Sequence[Query],
        gold: Mapping[str, Any] = {},
        only: Mapping[str, Sequence[str]] = {},
        never: Mapping[str, Sequence[str]] = {},
    ) -> list[str]:
        """Write those that are new; returns their ids. On the disk when it returns.

        Raises ValueError for what cannot be written down, ServiceError where the disk does not take it; then
        none of them is there.
        """
        with self._lock:
            new = {query.id: query for query in reversed(queries) if query.id not in self._places}
            records, places, at = [], {}, self._end
            for query in [query for query in queries if new.get(query.id) is query]:
                known = gold.get(query.id)
                text = "" if known is None else json.dumps(known, allow_nan=False)
                stored = pb.Stored(
                    query=query_message(query),
                    gold=text,
                    only=only.get(query.id, ()),
                    never=never.get(query.id, ()),
                )
                data = stored.SerializeToString()
                records.append(HEAD.pack(len(data), zlib.crc32(data)) + data)
                places[query.id] = _place(at, stored)
                at += len(records[-1])
            if records:
                self._append(b"".join(records))
                self._places |= places
            return list(places)

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._reopen()
            raise ServiceError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._end += len(data)

    def _reopen(self) -> None:
        """Without what a failed write has left, in the file or in the buffer."""
        os.truncate(self.path, self._end)
        raw = self._file.raw if hasattr(self._file, "raw") else None  # type: ignore[attr-defined]
        self._file = self.path.open("a+b")
        if raw is not None:
            raw.close()

    def _stored(self, id: str) -> pb.Stored:
        place = self._places[id]
        length, checksum = HEAD.unpack(os.pread(self._file.fileno(), HEAD.size, place.offset))
        data = os.pread(self._file.fileno(), length, place.offset + HEAD.size)
        if zlib.crc32(data) != checksum:
            raise ServiceError(f"{self.path} is damaged at byte {place.offset}, query {id}")
        return pb.Stored.FromString(data)

    def _read_all(self) -> int:
        """Find every record; returns where the last whole one ends. Raises ServiceError for damage before."""
        size, at = self.path.stat().st_size, 0
        with self.path.open("rb") as file:
            while head := file.read(HEAD.size):
                data = b""
                if len(head) == HEAD.size:
                    length, checksum = HEAD.unpack(head)
                    data = file.read(min(length, size))
                    whole = len(data) == length and zlib.crc32(data) == checksum
                else:
                    whole = False
                if not whole:
                    file.seek(at)
                    if _has_record(file.read()[1:]):  # otherwise it was begun when a crash came
                        raise ServiceError(f"{self.path} is damaged at byte {at}")
                    break
                try:
                    stored = pb.Stored.FromString(data)
                except DecodeError:
                    raise ServiceError(f"{self.path} is damaged at byte {at}") from None
                self._places[stored.query.id] = _place(at, stored)
                at += HEAD.size + len(data)
        return at


def _place(at: int, stored: pb.Stored) -> Place:
    query, chosen = stored.query, bool(stored.only or stored.never)
    return Place(at, query.kind, query.priority, bool(stored.gold), chosen)


def _has_record(data: bytes) -> bool:
    """Whether there is a whole one, wherever it begins."""
    view = memoryview(data)
    for at in range(len(data) - HEAD.size):
        length, checksum = HEAD.unpack_from(view, at)
        begin, end = at + HEAD.size, at + HEAD.size + length
        may_be = length > 0 and end <= len(data) and view[begin] == FIRST
        if may_be and zlib.crc32(view[begin:end]) == checksum:
            return True
    return False
