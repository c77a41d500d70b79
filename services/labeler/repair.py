"""A labeler's folder after an accident: what is damaged, and how it comes back.

    for check in examine(folder): ...      # `tutelage doctor --labeler DIR`
    for line in repair(folder): ...        # and with --repair

Answers are in two places, the store and the ledger, and questions are on the disk besides. So whichever is
damaged is made anew from the others, and nothing is thrown away: the damaged one is kept beside it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from services.doctor import Check
from services.labeler.access import secret_of
from services.labeler.ledger import Ledger
from services.labeler.queries import NAME as QUERIES
from services.labeler.queries import Queries
from services.labeler.queue import Event, Queue, event_key
from services.labeler.serve import queue_name
from services.labeler.valkey import Embedded
from services.run_directory import take_lock
from tutelage.errors import ConfigError, ServiceError

LONGEST_LINE = 64  # bytes of a header in the append-only file


def examine(folder: Path) -> Iterator[Check]:
    """Its store, ledger and questions. Raises ConfigError for a folder that is no labeler's."""
    _must_be_labeler(folder)
    try:
        lock = take_lock(folder, used="in use")
    except ConfigError as error:
        yield Check("labeler", "ok", str(error).split(";")[0])
        yield _ledger(folder)
        return
    with closing(lock):
        yield _store(folder)
        yield _ledger(folder)
        yield _questions(folder)


def repair(folder: Path) -> Iterator[str]:
    """Make anew what is damaged; says what was done. Raises ConfigError where a labeler uses the folder."""
    _must_be_labeler(folder)
    with closing(take_lock(folder, used="in use", advice="stop it first")):
        if _store(folder).level == "failure":
            yield _repair_store(folder / "store")
        if _ledger(folder).level == "failure":
            yield _repair_ledger(folder)


def sound_length(file: BinaryIO) -> int:
    """Bytes of an append-only file up to the first command that is none."""
    sound = 0
    while (count := _number(file, b"*")) is not None and count > 0:
        for _ in range(count):
            size = _number(file, b"$")
            if (
                size is None
                or size < 0
                or len(data := file.read(size + 2)) < size + 2
                or data[-2:] != b"\r\n"
            ):
                return sound
        sound = file.tell()
    return sound


def _number(file: BinaryIO, mark: bytes) -> int | None:
    """The number of a header such as `*3` or `$12`; None where there is no such thing."""
    line = file.readline(LONGEST_LINE)
    if not (line.startswith(mark) and line.endswith(b"\r\n") and line[1:-2].isdigit()):
        return None
    return int(line[1:-2])


def _must_be_labeler(folder: Path) -> None:
    if not (folder / "secret").exists():
        raise ConfigError(f"--labeler: {folder} is no labeler's folder")


# What is damaged


def _store(folder: Path) -> Check:
    store = folder / "store"
    if not (store / "appendonlydir").exists():
        return Check("store", "ok", "none of its own yet")
    try:
        with Embedded(store) as server:
            size = server.client().dbsize()
    except ServiceError as error:
        faults = [
            f"{path.name} is sound up to byte {sound:,} of {path.stat().st_size:,}"
            for path, sound in _lengths(store).items()
            if sound < path.stat().st_size
        ]
        words = "; ".join(faults) or str(error)
        return Check("store", "failure", words, f"tutelage doctor --labeler {folder} --repair")
    return Check("store", "ok", f"{size:,} keys")


def _lengths(store: Path) -> dict[Path, int]:
    """The sound bytes of each file of commands, in their order."""
    lengths = {}
    for path in sorted((store / "appendonlydir").glob("*.incr.aof")):
        with path.open("rb") as file:
            lengths[path] = sound_length(file)
    return lengths


def _ledger(folder: Path) -> Check:
    ledger = Ledger(folder / "answers.jsonl")
    try:
        return Check("ledger", "ok", f"{len(ledger.answers()):,} answers")
    except ServiceError as error:
        return Check("ledger", "failure", str(error), f"tutelage doctor --labeler {folder} --repair")


def _questions(folder: Path) -> Check:
    path = folder / "queries" / QUERIES
    if not path.exists():
        return Check("questions", "ok", "none yet")
    before = path.stat().st_size
    queries = Queries(folder / "queries")  # cuts off what a crash left half-written
    found = f"{len(queries):,} questions"
    queries.close()
    if cut := before - path.stat().st_size:
        return Check("questions", "warning", f"{found}; {cut:,} bytes at the end were half-written")
    return Check("questions", "ok", found)


# How it comes back


def _aside(path: Path) -> Path:
    """The path's new name, under which the damaged one is kept."""
    kept = path.with_name(f"{path.name}-damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    path.rename(kept)
    return kept


def _repair_store(store: Path) -> str:
    """A store of the commands before the damage, or an empty one: the labeler fills it at its next start."""
    kept = _aside(store)
    shutil.copytree(kept, store, ignore=shutil.ignore_patterns("*.sock"))
    for path, sound in _lengths(store).items():
        with path.open("r+b") as file:
            file.truncate(sound)
    try:
        with Embedded(store) as server:
            found = f"has {server.client().dbsize():,} keys"
    except ServiceError:
        shutil.rmtree(store / "appendonlydir")
        found = "is empty: who was signed in needs a new link"
    return (
        f"store: a new one {found}; the labeler's next start adds the answers of the ledger and the "
        f"questions on the disk; the damaged one is kept in {kept}"
    )


def _repair_ledger(folder: Path) -> str:
    """Its whole lines, and what the store has besides, in their order."""
    path = folder / "answers.jsonl"
    events = {event.id: event for event in _whole_lines(Ledger(path))}
    if (folder / "store" / "appendonlydir").exists():
        with Embedded(folder / "store") as server:
            queue = Queue(server.client(), queue_name(folder, secret_of(folder)))
            more, cursor = queue.events()
            while more:
                events |= {event.id: event for event in more}
                more, cursor = queue.events(cursor)
    kept = _aside(path)
    ledger = Ledger(path)
    ledger.append(sorted(events.values(), key=lambda event: event_key(event.id)))
    return f"ledger: made anew with {len(ledger.answers()):,} answers; the damaged one is kept in {kept}"


def _whole_lines(ledger: Ledger) -> Iterator[Event]:
    for line in ledger.path.read_bytes().splitlines():
        with suppress(ValueError, TypeError):
            yield Event(**json.loads(line))
