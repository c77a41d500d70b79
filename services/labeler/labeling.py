"""What the ways in (HTTP, gRPC) stand on: kinds of questions, clips, queue and ledger together.

    labeling.submit(queries)                                   # a trainer
    for assignment in labeling.assign("anna", n=3):            # a page, or a machine
        labeling.answer(assignment.id, "anna", [1, 0], started_at=...)
    answers, cursor = labeling.answers(cursor)                 # a trainer again

A query is on the disk when `submit` returns, and asked once its clips are there. What can be lost is only
what is nowhere else: the queue follows the disk, and the ledger follows the queue.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import redis

from expert_oracle import feedback
from services.labeler import submission
from services.labeler.draws import Draws
from services.labeler.ledger import Ledger
from services.labeler.messages import answer_of_body
from services.labeler.mixing import Mixing
from services.labeler.publishing import AHEAD, Filming, Publishing
from services.labeler.queries import Queries
from services.labeler.queue import Event, Known, Lease, Outcome, Queue, Undoing, event_key
from services.labeler.shown import Shown
from tutelage.errors import ServiceError, TutelageError
from tutelage.types import Answer, Query

LOG = logging.getLogger(__name__)
TICK_S = 0.2
CURSOR = re.compile(r"\d{1,20}(-\d{1,20})?")
PLAYED = {"demonstration"}
"""Kinds whose answers this service has played itself, and that nobody is asked again."""


@dataclass(frozen=True)
class Assignment:
    """A question as one annotator is shown it. Made by: `Labeling`. Eaten by: the page, machines."""

    id: str
    kind: str
    view: dict[str, Any]  # what the page shows
    ends_at: float  # seconds since the epoch
    began_at: float  # likewise; the same after a reload
    query: str  # its query's id: another one than its own where it is asked once more


class Labeling:
    """Thread-safe and blocking. Errors of the store are redis's own.

    repeats: share of an annotator's questions that it is asked again later, their sides reversed
    overlap: share of questions that one annotator more is asked
    gold: share of questions beside which an annotator is asked one with a known answer
    """

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        clips: Filming,
        folder: Path,
        *,
        secret: bytes,
        repeats: float = 0.05,
        overlap: float = 0.1,
        gold: float = 0.05,
        ahead: int = AHEAD,
    ) -> None:
        self.queue, self.ledger, self.clips, self.folder = queue, ledger, clips, Path(folder)
        self.queries = Queries(self.folder / "queries")
        self.fault = ""  # what keeps `run_once` from its work; empty: nothing
        self._draws = Draws(secret)
        self._shown = Shown(queue, self.queries, clips)
        self._mixing = Mixing(queue, self._shown, self._draws, repeats=repeats, gold=gold)
        self._wake = threading.Event()
        self._publishing = Publishing(
            queue,
            self.queries,
            clips,
            self._draws,
            overlap=overlap,
            ahead=ahead,
            add_gold=self._mixing.add_gold,
            wake=self._wake.set,
        )
        self._working = threading.Lock()
        self._recovered = self._recalled = False
        self._lost = ""  # what only somebody else can mend
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # For those who ask

    def submit(
        self,
        queries: Sequence[Query],
        gold: Mapping[str, Any] = {},
        *,
        only: Mapping[str, Sequence[str]] = {},
        never: Mapping[str, Sequence[str]] = {},
    ) -> list[str]:
        """Ask; returns the ids in order. A query whose id is known is left as it is.

        gold: by id, the known answer in the JSON form of its kind. Such a question is asked now and then of
        every annotator, and not learned from.
        only, never: by id, the annotators who alone are asked, and those who are not.

        Raises ValueError, naming the field, for what cannot be asked; then none is. Raises ServiceError where
        the disk does not take them.
        """
        submission.check(queries, gold, only, never)
        added = set(self.queries.add(queries, gold, only, never))
        self._publishing.add(added)
        self._wake.set()
        if known := [query.id for query in queries if query.id not in added]:
            self._publishing.ask_again(known)
            self._wake.set()
        return [query.id for query in queries]

    def query(self, id: str) -> Query:
        """With its segments, for machines. Raises KeyError."""
        return self.queries[id]

    def answers(self, cursor: str = "0", wait_s: float = 0.0) -> tuple[list[tuple[str, Answer]], str]:
        """What was answered after `cursor`, each with its event's id, and the cursor after it.

        Waits for something to happen if asked. Answers to gold questions and repeats are not among them. An
        answer that was taken back comes once more as one that cannot tell, and takes the place of the first.
        """
        events, cursor = self.events(cursor, wait_s)
        return [(event.id, _answer(event)) for event in events], cursor

    def events(self, cursor: str = "0", wait_s: float = 0.0) -> tuple[list[Event], str]:
        """The same as events of the queue, which tell an answer taken back from one that cannot tell."""
        if not CURSOR.fullmatch(cursor):
            raise ValueError(f"cursor: {cursor[:80]!r} is none that this service gave")
        events, cursor = self.queue.events(cursor, wait_s=wait_s)
        return [event for event in events if learned_from(event)], cursor

    def withdraw(self, ids: Sequence[str] = (), *, kind: str = "") -> int:
        """Ask nobody new these, or all of a kind; returns how many were open.

        Who has one may still answer it, and it is asked again when it is submitted again. Gold stays.
        """
        chosen = set(ids)
        if kind:
            chosen |= {id for id in self.queries if self.queries.place(id).kind == kind}
        chosen = {id for id in chosen if id in self.queries and not self.queries.place(id).gold}
        return self._publishing.withdraw(chosen)

    def waiting(self) -> int:
        """How many are on the disk and not asked yet."""
        return self._publishing.waiting()

    # For those who answer

    def assign(self, annotator: str, n: int = 1, kinds: Sequence[str] = ()) -> list[Assignment]:
        """At most `n` questions: those that the annotator has, the oldest first, then new ones.

        Raises Banned.
        """
        self._mixing.mix_in(annotator, kinds)
        while True:
            leases = self.queue.lease(annotator, n=n, kinds=kinds)
            assignments = [self._assignment(lease, annotator) for lease in leases]
            if None not in assignments:  # else others take the place of what cannot be shown
                break
        self._publishing.fell_short(n - len(leases), kinds)
        return [assignment for assignment in assignments if assignment is not None]

    def _assignment(self, lease: Lease, annotator: str) -> Assignment | None:
        """As this annotator is shown it. What its kind cannot show is given back, as broken."""
        try:
            kind = feedback.kind(lease.kind)
            order = self._draws.order(lease.id, annotator, kind.sides(lease.body), lease.again)
            view = kind.view(lease.body, order)
        except Exception as error:
            LOG.exception("question %s cannot be shown", lease.id)
            self.queue.give_back(lease.id, annotator, broken=f"{type(error).__name__}: {error}")
            return None
        self._shown.remember(lease, annotator)
        query = lease.again or lease.id
        return Assignment(lease.id, lease.kind, view, lease.ends_at, lease.began_at, query)

    def answer(
        self,
        question: str,
        annotator: str,
        value: Any,
        *,
        cannot_tell: bool = False,
        started_at: float,
        answered_at: float | None = None,
        moments: Mapping[str, float] = {},
        extra: Mapping[str, Any] = {},
        played: bool = False,
    ) -> tuple[Outcome, str]:
        """What became of the answer, and its event's id; `Queue.answer` says what the outcomes mean.

        value: JSON, as its kind has it; of what is `played`, only what this service has played itself.
        started_at, answered_at, moments: seconds since the epoch; what is before the lease or after now is
        set right. Raises ValueError, naming the field, for a value that is none.
        """
        known = self._shown.look_up(question)
        if known is None:
            return "unknown", ""
        if known.kind in PLAYED and not (played or cannot_tell):
            raise ValueError(f"value: a {known.kind} is played in the page; it cannot be sent")
        said: dict[str, Any] = {"value": None, "cannot_tell": bool(cannot_tell)}
        order: list[int] = []
        if known.body is not None:  # otherwise it is done for long: whatever is said, it does not count
            kind = feedback.kind(known.kind)
            said["value"] = None if cannot_tell else np.asarray(kind.value(known.body, value)).tolist()
            order = self._draws.order(question, annotator, kind.sides(known.body), known.again)
        now = time.time()
        times = {"started_at": started_at, "answered_at": now if answered_at is None else answered_at}
        began = self._shown.began_at(question, annotator)
        said |= {name: min(max(at, began), now) for name, at in {**times, **moments}.items()}
        outcome, event = self.queue.answer(question, annotator, {**said, "side_shown": order, **extra})
        if outcome == "accepted" and self._is_ordinary(question, known):
            self._mixing.answered(annotator, question)
        return outcome, event

    def _is_ordinary(self, question: str, known: Known) -> bool:
        """Neither gold nor a repeat, nor too much to ask for twice."""
        is_gold = question in self.queries and self.queries.place(question).gold
        return not (is_gold or known.again or known.kind in PLAYED)

    def undo(self, question: str, annotator: str) -> Undoing:
        """As `Queue.undo`."""
        became = self.queue.undo(question, annotator)
        if became == "undone":
            self._mixing.undone(annotator, question)
        return became

    def beat(self, annotator: str, ids: Sequence[str]) -> list[str]:
        """Keep these a while longer; returns those that the annotator still has."""
        return self.queue.beat(annotator, ids) if ids else []

    def give_back(self, question: str, annotator: str, broken: str = "") -> bool:
        """Not this one. What is `broken`, and why, for several is a dead letter; False: it was not leased."""
        return self.queue.give_back(question, annotator, broken=broken)

    # The work behind

    def restore(self) -> None:
        """Put the answers back that the store has lost, from the ledger, and recall who was asked what. To be
        called before anybody answers: what is lost is seen by the store's newest event.
        """
        if event_key(self.queue.last_event()) < event_key(self.ledger.cursor()):
            events = list(self.ledger)
            known = {event.question for event in events if event.question in self.queries}
            self.queue.restore(events, {id: self._publishing.wanted(self.query(id)) for id in known})
        if not self._recalled:
            self._recall()

    def _recall(self) -> None:
        cursor = "0"
        while True:
            events, cursor = self.queue.events(cursor)
            for event in events:
                self._mixing.recall(event, event.kind not in PLAYED)
            if not events:
                break
        self._recalled = True

    def start(self) -> None:
        """Do `run_once` again and again, in a thread."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._work, name="labeling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is being answered until now is in the ledger when it returns, if the store is there."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(redis.RedisError, TutelageError):
            self.ledger.follow(self.queue)
        self.queries.close()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self.run_once()
                fault = ""
            except (redis.RedisError, OSError, TutelageError) as error:  # tried again
                fault = " ".join(str(error).split()) or type(error).__name__
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
                LOG.exception("the labeler's work failed; it goes on")
            if fault and fault != self.fault:
                LOG.error("%s; trying again", fault)
            self.fault = fault
            self._wake.wait(TICK_S)
            self._wake.clear()

    def run_once(self) -> None:
        """Ask what can be asked by now, bring the ledger up to date, take back leases that have ended."""
        with self._working:
            if not self._recovered:
                self._recover()
            self._look_for_losses()
            self._publishing.publish()
            self.ledger.follow(self.queue)
            while self.queue.expire() and not self._stopped.is_set():
                pass
            if fault := self._lost or self._publishing.held_up():
                raise ServiceError(fault)

    def _look_for_losses(self) -> None:
        """A store of somebody else's may come back empty, or without what was latest, while we serve."""
        if self._publishing.has_lost():
            LOG.warning("the store has lost questions; they are asked anew, from %s", self.queries.path)
            self._recover()
        latest = self.ledger.cursor()
        if latest == "0" or self.queue.has_event(latest):
            return
        if event_key(self.queue.last_event()) < event_key(latest):
            LOG.warning("the store has lost answers; they are put back from %s", self.ledger.path)
            self._recover()
        else:  # it has new ones already, and keeps its answers in their order
            self._lost = (
                f"the store has lost answers that {self.ledger.path} has; stop the labeler, empty the store "
                "and start it again: it is filled from the ledger"
            )

    def _recover(self) -> None:
        """After a start or a loss: answers come back from the ledger, the rest from the disk."""
        self.restore()
        self._publishing.recover()
        self._recovered = True


def learned_from(event: Event) -> bool:
    """Whether an answer is one that learners are given: neither to a gold question nor to a repeat."""
    return event.gold is None and not event.again


def _answer(event: Event) -> Answer:
    """One that was undone cannot tell."""
    body = {**event.body, "cannot_tell": True} if event.type == "undo" else event.body
    return answer_of_body(event.question, event.annotator, body)
