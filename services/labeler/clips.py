"""The clips of a labeler: filmed once, kept up to a size, filmed again when one that had to go is wanted.

    clips = Clips(folder, secret=secret)
    clip = clips.film(footage).result()     # {"clip": "3f9c….mp4", "frames": 60, "fps": 20.0, ...}
    path = clips.path(clip["clip"])         # None: there is no such clip

A name is a keyed digest of everything that the pictures depend on: who was not told it cannot guess it, and
what it names never changes. Beside each clip lies its footage, so that the clip can be made again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tree

from actors.clips import Filmer
from expert_oracle.feedback import Footage
from tutelage import codec
from tutelage.disk import is_full
from tutelage.errors import NoRoom, ServiceError, TutelageError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import EnvRecipe

MAX_BYTES, MAX_FOOTAGE = 4 * 10**9, 10**9
PICTURES = 1  # what names depend on besides the footage: raise it when the same footage gives other pictures
FOOTAGE = ".footage"  # suffix
Clip = dict[str, Any]


class Clips:
    """Thread-safe. One labeler's, in a folder of its own.

    workers: rendering processes, each made when it is first needed; default: one for two cores
    max_bytes: of videos that are kept, with their footage; the least recently wanted go first, and none
        within `grace_s` of that, in which it may be on its way to somebody
    max_footage: bytes of footage whose videos had to go; what goes then is not filmed again by its name
    """

    def __init__(
        self,
        folder: Path,
        *,
        secret: bytes,
        workers: int | None = None,
        max_bytes: int = MAX_BYTES,
        max_footage: int = MAX_FOOTAGE,
        grace_s: float = 60.0,
        codec: Literal["mp4", "webm"] = "mp4",
        size: int = 256,
    ) -> None:
        self.folder, self.max_bytes, self.size = Path(folder), max_bytes, size
        self.max_footage, self.grace_s = max_footage, grace_s
        self.folder.mkdir(parents=True, exist_ok=True)
        self._secret, self._suffix = secret, f".{codec}"
        self._name = re.compile(r"[0-9a-f]{64}\.(mp4|webm)")
        self._lock = threading.RLock()  # a future that is done calls back at once
        self._under_way: dict[str, Future[Clip]] = {}
        self._kept: dict[str, int] = {}  # name -> bytes with the footage, the least recently wanted first
        self._gone: dict[str, int] = {}  # likewise, the footage of videos that had to go
        self._sent_at: dict[str, float] = {}  # about when
        self._find()
        workers = workers or max(1, (os.cpu_count() or 1) // 2)
        self._filmers = [Filmer() for _ in range(workers)]
        self._free: queue.SimpleQueue[Filmer] = queue.SimpleQueue()
        for filmer in self._filmers:
            self._free.put(filmer)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="clips")

    def film(self, footage: Footage) -> Future[Clip]:
        """The clip's name, frames, frames a second, width and height, once it is there.

        The future raises TutelageError, saying why, where it cannot be made: NoRoom and Killed where it may
        be later.
        """
        done: Future[Clip] = Future()
        try:
            name = self._named(footage)
        except TutelageError as error:
            done.set_exception(error)
            return done
        with self._lock:
            if (under_way := self._under_way.get(name)) is not None:
                return under_way
            if name in self._kept and (clip := self._read(name)[0]):
                self._wanted(name)
                done.set_result(clip)
                return done
            return self._start(name, footage)

    def path(self, name: str) -> Path | None:
        """The video of that name, filmed again if it had to go; None where there never was one.

        Raises TutelageError where it cannot be filmed any more.
        """
        if not self._name.fullmatch(name):
            return None
        with self._lock:
            self._sent_at[name] = time.monotonic()
            if name in self._kept and (self.folder / name).exists():
                self._wanted(name)
                return self.folder / name
            if (under_way := self._under_way.get(name)) is None:
                _, footage = self._read(name)
                if footage is None:
                    del self._sent_at[name]
                    return None
                under_way = self._start(name, footage)
        under_way.result()
        return self.folder / name

    def close(self) -> None:
        """What is being filmed fails."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for filmer in self._filmers:
            filmer.close()
        self._threads.shutdown(wait=True)

    # Filming; `_lock` is held where nothing else is said

    def _start(self, name: str, footage: Footage) -> Future[Clip]:
        try:
            future = self._threads.submit(self._make, name, footage)
        except RuntimeError:
            raise ServiceError("clips: no longer made, the labeler is stopping") from None
        self._under_way[name] = future
        future.add_done_callback(lambda _: self._end(name))
        return future

    def _end(self, name: str) -> None:  # without the lock
        with self._lock:
            self._under_way.pop(name, None)

    def _make(self, name: str, footage: Footage) -> Clip:  # without the lock
        with self._filmer() as filmer:
            film = filmer.film(footage, self.folder / name, size=self.size)
        clip = {"clip": name, **asdict(film)}
        try:
            self._write(name, clip, footage)
        except OSError as error:
            (self.folder / name).unlink()  # without its footage it would not be found again
            if is_full(error):
                raise NoRoom(f"{self.folder} cannot be written: {error.strerror}") from None
            raise
        size = sum(path.stat().st_size for path in (self.folder / name, self._footage(name)))
        with self._lock:
            self._kept[name] = size
            self._gone.pop(name, None)
            self._make_room()
        return clip

    @contextmanager
    def _filmer(self) -> Iterator[Filmer]:
        filmer = self._free.get()
        try:
            yield filmer
        finally:
            self._free.put(filmer)

    # What is kept

    def _find(self) -> None:
        """What lies in the folder, the least recently wanted first."""
        for path in self.folder.glob(".*"):
            path.unlink()  # begun, and cut short
        stats = {path: path.stat() for path in self.folder.iterdir()}
        for path, stat in sorted(stats.items(), key=lambda entry: entry[1].st_mtime_ns):
            if self._name.fullmatch(path.name) and path.with_suffix(FOOTAGE) in stats:
                self._kept[path.name] = stat.st_size + stats[path.with_suffix(FOOTAGE)].st_size
            elif path.suffix == FOOTAGE and not {path.with_suffix(s) for s in (".mp4", ".webm")} & set(stats):
                self._gone[path.with_suffix(self._suffix).name] = stat.st_size

    def _wanted(self, name: str) -> None:
        self._kept[name] = self._kept.pop(name)
        with suppress(FileNotFoundError):
            os.utime(self.folder / name)

    def _make_room(self) -> None:
        """The newest stays, whatever its size."""
        total, now = sum(self._kept.values()), time.monotonic()
        for name in list(self._kept)[:-1]:
            if total <= self.max_bytes:
                break
            is_sent = name in self._sent_at and now < self._sent_at[name] + self.grace_s
            if not is_sent and self._read(name)[1] is not None:
                total -= self._kept.pop(name)
                self._sent_at.pop(name, None)
                (self.folder / name).unlink(missing_ok=True)
                self._gone[name] = self._footage(name).stat().st_size
        footage = sum(self._gone.values())
        for name in list(self._gone):
            if footage <= self.max_footage:
                break
            footage -= self._gone.pop(name)
            self._footage(name).unlink(missing_ok=True)

    # Footage on the disk: a line of JSON and the arrays

    def _footage(self, name: str) -> Path:
        return (self.folder / name).with_suffix(FOOTAGE)

    def _write(self, name: str, clip: Clip, footage: Footage) -> None:
        """Frames that were kept are not written again: such a clip stays."""
        known = {"clip": clip, "again": footage.frames is None, **_described(footage)}
        arrays = codec.encode(
            {"actions": footage.actions, **({} if footage.obs is None else {"obs": footage.obs})}
        )
        path = self._footage(name)
        unfinished = path.with_name(f".{path.name}")
        try:
            unfinished.write_bytes(json.dumps(known).encode() + b"\n" + arrays.SerializeToString())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _read(self, name: str) -> tuple[Clip | None, Footage | None]:
        """The clip as it was, and the footage if it can be filmed again."""
        try:
            line, _, data = self._footage(name).read_bytes().partition(b"\n")
            known = json.loads(line)
            arrays = codec.decode(pb.Tree.FromString(data))
        except (OSError, ValueError):
            return None, None
        footage = Footage(
            EnvRecipe(**known["recipe"]),
            known["seed"],
            arrays["actions"],
            known["start"],
            arrays.get("obs"),
            posed=known["posed"],
            held=known.get("held", 0),
        )
        return known["clip"], footage if known["again"] else None

    def _named(self, footage: Footage) -> str:
        digest = hmac.new(self._secret, digestmod=hashlib.sha256)
        head = {**_described(footage), "size": self.size, "suffix": self._suffix, "pictures": PICTURES}
        digest.update(json.dumps(head, sort_keys=True).encode())
        for part in (footage.actions, footage.obs, footage.frames):
            for path, leaf in tree.flatten_with_path(part) if part is not None else ():
                array = np.ascontiguousarray(np.frombuffer(leaf, "u1") if isinstance(leaf, bytes) else leaf)
                digest.update(f"{path}{array.dtype.str}{array.shape}".encode())
                digest.update(array.data)
            digest.update(b"|")
        return digest.hexdigest() + self._suffix


def _described(footage: Footage) -> dict[str, Any]:
    """What is not an array. Raises TutelageError for a recipe that no other process could make."""
    recipe = asdict(replace(footage.recipe, kwargs=dict(footage.recipe.kwargs)))
    try:
        json.dumps(recipe)
    except (TypeError, ValueError) as error:
        raise TutelageError(f"{footage.recipe.id}: its keywords cannot be kept: {error}") from None
    return {
        "recipe": recipe,
        "seed": int(footage.seed),
        "start": int(footage.start),
        "posed": footage.posed,
        "held": footage.held,
    }
