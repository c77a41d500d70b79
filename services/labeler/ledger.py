"""The ledger of answers: a line for every one, on the disk, whatever becomes of the queue.

    ledger = Ledger(run / "answers.jsonl")
    ledger.follow(queue)          # adds what the queue has and the ledger has not
    for event in ledger: ...

A line is one event of the queue, in its order; the last line says how far the ledger is, so a process that
was killed goes on where it was, and nothing is written twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path

from services.labeler.queue import Event, Queue
from tutelage.errors import ServiceError

TAIL = 2**16  # bytes that are looked through at a time for the end of a line


class Ledger:
    """An append-only file of events. One process writes it; any number may read. `follow` is thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._following = threading.Lock()  # else two would add what both find missing

    def __iter__(self) -> Iterator[Event]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # otherwise a crash cut it short: the queue still has it
                    yield self._parsed(line, number)

    def _parsed(self, line: bytes, number: int) -> Event:
        try:
            return Event(**json.loads(line))
        except (ValueError, TypeError) as error:
            where = f"line {number}" if number > 0 else "last line"
            raise ServiceError(f"{self.path}, {where}: {error}") from None

    def answers(self) -> list[Event]:
        """The answers that count: not those that were undone."""
        events = list(self)
        undone = {event.undoes for event in events}
        return [event for event in events if event.type == "answer" and event.id not in undone]

    def cursor(self) -> str:
        """The last event's id; "0" where there is none."""
        if not self.path.exists():
            return "0"
        end = _line_end(self.path, self.path.stat().st_size)
        with self.path.open("rb") as file:
            file.seek(_line_end(self.path, max(0, end - 1)))
            line = file.readline()
        return self._parsed(line, -1).id if line.endswith(b"\n") else "0"

    def append(self, events: Sequence[Event]) -> None:
        """Add events that are later than the last; they are on the disk when this returns.

        Raises ServiceError where they cannot be written, a full disk for example; then none of them is.
        """
        if not events:
            return
        data = b"".join(json.dumps(asdict(event)).encode() + b"\n" for event in events)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:  # else closing it would write what did not fit
                fcntl.flock(file, fcntl.LOCK_EX)
                end = _line_end(self.path, self.path.stat().st_size)
                file.truncate(end)
                try:
                    _write_all(file, data)
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise ServiceError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def follow(self, queue: Queue) -> int:
        """Add what the queue has had since the last line; returns how much."""
        with self._following:
            added, cursor = 0, self.cursor()
            while True:
                events, cursor = queue.events(cursor)
                if not events:
                    return added
                self.append(events)
                added += len(events)


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _line_end(path: Path, before: int) -> int:
    """The end of the last whole line in the first `before` bytes; 0 where there is none."""
    with path.open("rb") as file:
        start = before
        while start > 0:
            size = min(TAIL, start)
            start -= size
            file.seek(start)
            if (at := file.read(size).rfind(b"\n")) >= 0:
                return start + at + 1
    return 0
