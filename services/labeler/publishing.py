"""From the disk to the queue: a query is asked once its clips are there, the urgent first, then the older.

    publishing.add(ids)     # of queries that are on the disk
    publishing.publish()    # again and again

What can never be asked is a dead letter; what cannot be for now waits, and is tried again.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import redis

from expert_oracle import feedback
from expert_oracle.feedback import Footage
from services.labeler.draws import Draws
from services.labeler.queries import Queries
from services.labeler.queue import Question, Queue
from tutelage.errors import Killed, NoRoom
from tutelage.types import Query

LOG = logging.getLogger(__name__)
AHEAD = 1000
"""Questions that are filmed before somebody takes them; the others wait on the disk."""
FILMING = 32  # of them at a time
PAUSE_S = 5.0  # of filming, where a disk is full or a process was killed
KILLED_LIMIT = 3
"""Times that filming a question ends with its process killed before it is not tried again."""
BLOCK = 500  # questions that are handed to the queue at a time


class Filming(Protocol):
    """Who makes clips: `services.labeler.clips.Clips`."""

    def film(self, footage: Footage) -> Future[dict[str, Any]]:
        """A clip's name and size, once it is there; the future's exception says why it cannot be made, and is
        NoRoom or Killed where it may be later.
        """
        ...

    def path(self, name: str) -> Path | None: ...


class Publishing:
    """Thread-safe, but for `publish`, `has_lost` and `recover`: these are for one thread at a time.

    overlap: share of questions that one annotator more is asked
    add_gold: told the id and kind of each gold question that is in the queue
    wake: called when a clip is there
    """

    def __init__(
        self,
        queue: Queue,
        queries: Queries,
        clips: Filming,
        draws: Draws,
        *,
        overlap: float,
        ahead: int,
        add_gold: Callable[[str, str], object],
        wake: Callable[[], object],
    ) -> None:
        self._queue, self._queries, self._clips, self._draws = queue, queries, clips, draws
        self._overlap, self._ahead = overlap, ahead
        self._add_gold, self._wake = add_gold, wake
        self._lock = threading.Lock()  # of the next three
        self._pending: list[tuple[float, int, str]] = []  # a heap: (-priority, place in the file, id)
        self._unfilmed: list[tuple[float, int, str]] = []  # likewise, of those that need clips
        self._filming: dict[str, tuple[Query, list[Future[dict[str, Any]]]]] = {}
        self._film_from = 0.0  # by the monotonic clock: not before
        self._held_up = ""  # what keeps clips from being made, and may pass
        self._killed: Counter[str] = Counter()  # by question
        self._buried: set[str] = set()  # what never could be asked
        self._filmed_kinds: set[str] = set()
        self._short = 0  # questions that somebody was to be given since the last filming, and were not there
        self._submitted = 0  # questions that the queue has had, as far as was seen

    # For those who ask

    def add(self, ids: Iterable[str]) -> None:
        """Ask these, which are on the disk."""
        with self._lock:
            for id in ids:
                self._push(id)

    def ask_again(self, ids: Sequence[str]) -> None:
        """Of these, what was withdrawn, and what never came as far as the queue."""
        for id, state in self._queue.states(ids).items():
            if state in ("withdrawn", "unasked"):
                self._queue.requeue(id)
        self._push_missing(ids)

    def withdraw(self, ids: set[str]) -> int:
        """Ask nobody new these; returns how many were open."""
        with self._lock:
            for heap in (self._pending, self._unfilmed):
                heap[:] = [entry for entry in heap if entry[2] not in ids]
                heapq.heapify(heap)
            for id in ids & set(self._filming):
                del self._filming[id]
        ordered = sorted(ids)
        return sum(
            self._queue.withdraw(ordered[start : start + BLOCK]) for start in range(0, len(ordered), BLOCK)
        )

    def waiting(self) -> int:
        """How many are on the disk and not asked yet."""
        with self._lock:
            return len(self._pending) + len(self._unfilmed) + len(self._filming)

    def held_up(self) -> str:
        """What keeps those that wait from being filmed, and may pass; empty: nothing."""
        return self._held_up if self.waiting() else ""

    def fell_short(self, n: int, kinds: Sequence[str]) -> None:
        """Somebody was to be given `n` more, of these kinds or of any."""
        if not kinds or self._filmed_kinds & set(kinds):
            self._short = max(self._short, n)

    def wanted(self, query: Query) -> int:
        """How many answers; of gold questions as many as there are annotators."""
        if query.id in self._queries and self._queries.place(query.id).gold:
            return 2**31
        more = query.answers_wanted == 1 and self._draws.share("overlap", query.id) < self._overlap
        if more and query.id in self._queries and self._queries.meant_for(query.id)[0]:
            return 1
        return query.answers_wanted + more

    # After a start or a loss

    def has_lost(self) -> bool:
        """Whether the store has lost questions since the last look, or since they were put back."""
        submitted = self._queue.submitted()
        if submitted < self._submitted:
            return True
        self._submitted = submitted
        return False

    def recover(self) -> None:
        """Ask what is on the disk and not in the queue."""
        submitted = self._queue.submitted()
        ids = list(self._queries)
        dead = self._queue.dead()
        for start in range(0, len(ids), BLOCK):
            self._push_missing(ids[start : start + BLOCK])
        self._buried = {id for id in dead if id in self._queries}
        gold = [id for id in ids if self._queries.place(id).gold]
        for id, state in self._queue.states(gold).items():
            if state in ("kept", "dead"):  # the others once they are handed over
                self._add_gold(id, self._queries.place(id).kind)
        self._submitted = submitted

    def _push_missing(self, ids: Sequence[str]) -> None:
        """Those of them that are neither in the queue nor wait already."""
        if not (missing := self._queue.missing(ids)):
            return
        with self._lock:
            waits = {id for *_, id in (*self._pending, *self._unfilmed)} | set(self._filming)
            for id in missing:
                if id not in waits:
                    self._push(id)

    def _push(self, id: str) -> None:
        place = self._queries.place(id)
        heapq.heappush(self._pending, (-place.priority, place.offset, id))

    # Again and again

    def publish(self) -> None:
        """Ask what can be asked at once, film what is next, and ask what is filmed."""
        self._look_at_the_dead()
        ready = list[Question]()
        try:
            self._ask_at_once(ready)
            self._film()
            for query, clips in self._filmed():
                with self._burying(query.id):
                    ready.append(self._question(query, clips))
            self._hand_over(ready)
        except Exception:  # what was not handed over waits as before
            self.add(question.id for question in ready)
            raise

    def _look_at_the_dead(self) -> None:
        """Film once more what an operator wants asked again."""
        if not self._buried:
            return
        dead = self._queue.dead()
        risen = [id for id in self._buried if id not in dead]
        self._buried -= set(risen)
        self._push_missing(risen)

    def _ask_at_once(self, ready: list[Question]) -> None:
        while (entry := self._next(self._pending)) is not None:
            with self._burying(entry[2]):
                query = self._queries[entry[2]]
                if feedback.kind(query.kind).footage(query):
                    with self._lock:
                        heapq.heappush(self._unfilmed, entry)
                else:
                    ready.append(self._question(query, []))
            if len(ready) >= BLOCK:
                self._hand_over(ready)
        self._hand_over(ready)

    def _next(self, heap: list[tuple[float, int, str]]) -> tuple[float, int, str] | None:
        with self._lock:
            return heapq.heappop(heap) if heap else None

    def _film(self) -> None:
        """So many that there are enough ahead, and that who can take none of those that are has some too."""
        short, self._short = self._short, 0
        if not self._unfilmed or time.monotonic() < self._film_from:
            return
        depth = self._queue.depth()
        room = self._ahead - sum(depth.get(kind, 0) for kind in self._filmed_kinds)
        if short > room and not self._queue.paused():
            room = short
        while len(self._filming) < min(FILMING, room) and (entry := self._next(self._unfilmed)):
            with self._burying(entry[2]):
                query = self._queries[entry[2]]
                kind = feedback.kind(query.kind)
                films = [self._clips.film(footage) for footage in kind.footage(query)]
                self._filmed_kinds.add(query.kind)
                with self._lock:
                    self._filming[query.id] = query, films
                for film in films:
                    film.add_done_callback(lambda _: self._wake())

    def _filmed(self) -> Iterator[tuple[Query, list[dict[str, Any]]]]:
        """Those whose clips are there; what cannot be filmed is a dead letter, or waits if that may pass."""
        with self._lock:
            over = [id for id, (_, films) in self._filming.items() if all(film.done() for film in films)]
        for id in over:
            with self._lock:
                if id not in self._filming:  # withdrawn
                    continue
                query, films = self._filming.pop(id)
            errors = [error for film in films if (error := film.exception()) is not None]
            if not errors:
                self._held_up = ""
                self._killed.pop(id, None)
                yield query, [film.result() for film in films]
                continue
            why = " ".join(str(errors[0]).split()) or type(errors[0]).__name__
            self._killed[id] += isinstance(errors[0], Killed)
            if isinstance(errors[0], NoRoom) or 0 < self._killed[id] < KILLED_LIMIT:
                self._held_up, self._film_from = why, time.monotonic() + PAUSE_S
                self.add([id])
            else:
                del self._killed[id]
                self._bury(id, why)

    def _question(self, query: Query, clips: Sequence[Mapping[str, Any]]) -> Question:
        """What the queue is given."""
        body = feedback.kind(query.kind).body(query, clips)
        known = self._queries.gold(query.id) if self._queries.place(query.id).gold else None
        wanted, kept = self.wanted(query), known is not None
        only, never = self._queries.meant_for(query.id)
        return Question(
            query.id, query.kind, body, query.priority, wanted, only, never, gold=known, kept=kept
        )

    def _hand_over(self, ready: list[Question]) -> None:
        """To the queue, and out of the list."""
        if not ready:
            return
        self._queue.submit(ready)
        self._submitted = self._queue.submitted()
        for question in ready:
            if question.kept:
                self._add_gold(question.id, question.kind)
        ready.clear()

    @contextlib.contextmanager
    def _burying(self, id: str) -> Iterator[None]:
        """Whatever a kind makes of its query, the others go on: this one is a dead letter."""
        try:
            yield
        except ValueError as error:
            self._bury(id, str(error))
        except Exception as error:
            LOG.exception("question %s cannot be asked", id)
            self._bury(id, f"{type(error).__name__}: {error}")

    def _bury(self, id: str, why: str) -> None:
        try:
            self._queue.bury(id, why)
        except redis.RedisError:  # tried again from the beginning
            self.add([id])
            raise
        self._buried.add(id)
        LOG.warning("question %s cannot be asked: %s", id, why)
