"""A labeler's folder after an accident: what is damaged, and how it comes back.

    for check in examine(folder): ...      # `tutelage doctor --labeler DIR`
    for line in repair(folder): ...        # and with --repair

Answers are in two places, the store and the ledger, and questions are on the disk besides. So whichever is
damaged is made anew from the others, and nothing is thrown away: the damaged one is kept beside it. A store
elsewhere is looked at where its URL is given, and not mended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import redis

from services.doctor import Check
from services.labeler.access import secret_of
from services.labeler.ledger import Ledger
from services.labeler.queries import NAME as QUERIES
from services.labeler.queries import Queries
from services.labeler.queue import Event, Queue, event_key
from services.labeler.serve import client_of, queue_name
from services.labeler.valkey import Embedded
from services.run_directory import take_lock
from tutelage.errors import ConfigError, ServiceError

LONGEST_LINE = 64  # bytes of a header in the append-only file


def examine(folder: Path, store: str = "") -> Iterator[Check]:
    """Its store, here or at a URL, its ledger and questions. Raises ConfigError where it is no labeler's."""
    _must_be_labeler(folder)
    try:
        lock = take_lock(folder, used="in use")
    except ConfigError as error:
        yield Check("labeler", "ok", str(error).split(";")[0])
        yield _ledger(folder)
        return
    with closing(lock):
        found = _store_elsewhere(folder, store) if store else _store(folder)
        yield found
        yield _ledger(folder, store if found.level == "ok" else "")
        yield _questions(folder)


def repair(folder: Path, store: str = "") -> Iterator[str]:
    """Make anew what is damaged; says what was done. Raises ConfigError where a labeler uses the folder,
    ServiceError where its store at a URL cannot be reached.
    """
    _must_be_labeler(folder)
    with closing(take_lock(folder, used="in use", advice="stop it first")):
        if not store and _store(folder).level == "failure":
            yield _repair_store(folder / "store")
        if _ledger(folder, store).level == "failure":
            yield _repair_ledger(folder, store)


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
        if not (folder / "answers.jsonl").exists():
            return Check("store", "ok", "none of its own yet")
        advice = f"name the one that it has elsewhere: tutelage doctor --labeler {folder} --store URL"
        return Check("store", "warning", "none of its own; another was not looked at", advice)
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


def _store_elsewhere(folder: Path, url: str) -> Check:
    try:
        events = _events(folder, url)
    except ServiceError as error:
        return Check("store", "failure", str(error), "start it, or correct its URL")
    return Check("store", "ok", f"{len(events):,} answers, with those taken back")


def _events(folder: Path, url: str) -> list[Event]:
    """Of the store at the URL, or of its own; none where it has none."""
    with ExitStack() as stack:
        if url:
            client = client_of(url)
        elif (folder / "store" / "appendonlydir").exists():
            client = stack.enter_context(Embedded(folder / "store")).client()
        else:
            return []
        events = list[Event]()
        try:
            queue = Queue(client, queue_name(folder, secret_of(folder)))
            more, cursor = queue.events()
            while more:
                events += more
                more, cursor = queue.events(cursor)
        except redis.RedisError as error:
            raise ServiceError(f"the store cannot be read: {error}") from None
        return events


def _ledger(folder: Path, store: str = "") -> Check:
    """store: a URL, whose answers it has to have as far as it goes."""
    ledger, advice = Ledger(folder / "answers.jsonl"), f"tutelage doctor --labeler {folder} --repair"
    if store:
        advice += " --store URL"
    try:
        lines = {event.id for event in ledger}
        end = event_key(ledger.cursor())
    except ServiceError as error:
        return Check("ledger", "failure", str(error), advice)
    if store:
        known = [event.id for event in _events(folder, store) if event_key(event.id) <= end]
        if lost := len(set(known) - lines):
            return Check("ledger", "failure", f"lacks {lost:,} lines that the store has", advice)
    return Check("ledger", "ok", f"{len(ledger.answers()):,} answers")


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
    kept = path.with_name(f"{path.name}-damaged-{datetime.now():%Y%m%d-%H%M%S-%f}")
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


def _repair_ledger(folder: Path, store: str) -> str:
    """Its whole lines, and what the store has besides, in their order."""
    path = folder / "answers.jsonl"
    events = {event.id: event for event in _whole_lines(Ledger(path))}
    has_store = bool(store) or (folder / "store" / "appendonlydir").exists()
    events |= {event.id: event for event in _events(folder, store)}
    kept = _aside(path)
    ledger = Ledger(path)
    ledger.append(sorted(events.values(), key=lambda event: event_key(event.id)))
    said = f"ledger: made anew with {len(ledger.answers()):,} answers; the damaged one is kept in {kept}"
    if not has_store:
        said += (
            f"; no store was looked at: if it has one elsewhere, tutelage doctor --labeler {folder} --repair "
            "--store URL adds what that has"
        )
    return said


def _whole_lines(ledger: Ledger) -> Iterator[Event]:
    for line in ledger.path.read_bytes().splitlines():
        with suppress(ValueError, TypeError):
            yield Event(**json.loads(line))
