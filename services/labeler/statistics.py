"""What the answers say about those who gave them, kept up event by event.

    statistics = Statistics(queue)
    statistics.report()        # what an operator sees

A new event costs the same however many there were before; a report, what there are annotators.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from expert_oracle import feedback
from services.labeler.agreement import Z_999, Alpha, IntervalAlpha, wilson
from services.labeler.labeling import PLAYED
from services.labeler.queue import Event, Queue

ALIKE = 0.75
"""Agreement from which on two judgements count as the same."""
DURATIONS = 501  # of an annotator: the median is of the latest
LONGEST_S = 3600.0  # an answer that took longer was interrupted
RATE_S, ACTIVE_S = 300.0, 120.0
MIN_GOLD, GOOD_GOLD = 8, 0.7
MIN_SIDED = 20


class Scale(tuple[float, ...]):
    """Numbers that can be more or less alike."""


class Said(NamedTuple):
    """What is kept of an answer, to take it back again."""

    event: str
    judgement: Hashable  # for agreement, a tuple of numbers on a scale; None: none
    right: bool | None  # of a question whose answer was known
    consistent: bool | None  # of a question that was asked again
    first: bool | None  # it went to what was shown first; None: to none or several
    tie: bool
    cannot_tell: bool


@dataclass
class Person:
    """One annotator so far."""

    answers: int = 0
    gold: int = 0
    gold_right: int = 0
    repeats: int = 0
    consistent: int = 0
    sided: int = 0
    left: int = 0
    judged: int = 0  # answers that could have been a tie
    ties: int = 0
    cannot_tell: int = 0
    seen_at: float = 0.0  # of the latest answer, by the store's clock
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=DURATIONS))

    def count(self, said: Said, by: int) -> None:
        self.answers += by
        self.cannot_tell += by * said.cannot_tell
        self.gold += by * (said.right is not None)
        self.gold_right += by * bool(said.right)
        self.repeats += by * (said.consistent is not None)
        self.consistent += by * bool(said.consistent)
        self.sided += by * (said.first is not None)
        self.left += by * bool(said.first)
        self.judged += by * (said.tie or said.first is not None)
        self.ties += by * said.tie

    def figures(self, now: float) -> dict[str, Any]:
        gold_low, gold_high = wilson(self.gold_right, self.gold)
        left_low, left_high = wilson(self.left, self.sided)
        return {
            "answers": self.answers,
            "gold": self.gold,
            "gold_right": self.gold_right,
            "gold_low": gold_low,
            "gold_high": gold_high,
            "repeats": self.repeats,
            "consistent": self.consistent,
            "left_share": _share(self.left, self.sided),
            "left_low": left_low,
            "left_high": left_high,
            "tie_share": _share(self.ties, self.judged),
            "cannot_tell_share": _share(self.cannot_tell, self.answers),
            "median_s": statistics.median(self.seconds) if self.seconds else None,
            "active": now - self.seen_at < ACTIVE_S,
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class Statistics:
    """Of one queue. Thread-safe; `report`, `follow` and `answered` wait for the store."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._following = threading.Lock()  # held while the store is waited for
        self._lock = threading.Lock()  # held for a moment
        self._cursor = self._counted = "0"
        self._said: dict[tuple[str, str], Said] = {}  # by question and annotator
        self._ahead: defaultdict[str, set[str]] = defaultdict(set)  # by annotator: questions not counted yet
        self._people: defaultdict[str, Person] = defaultdict(Person)
        self._alpha: dict[str, Alpha | IntervalAlpha] = {}
        self._times: deque[float] = deque()  # of answers within RATE_S

    def follow(self) -> None:
        """Count what has happened."""
        with self._following:
            while True:
                events, cursor = self._queue.events(self._cursor)
                for event in events:
                    said = self._weighed(event) if event.type == "answer" else None
                    with self._lock:
                        self._count(event, said)
                self._cursor = cursor
                if not events:
                    return

    def expect(self, annotator: str, question: str, event: str) -> None:
        """An answer that was just given: it counts for `known` already."""
        with self._lock:
            if _order(event) > _order(self._counted):
                self._ahead[annotator].add(question)

    def answered(self, annotator: str) -> int:
        """How many answers of this annotator count."""
        self.follow()
        return self.known(annotator)

    def known(self, annotator: str) -> int:
        """As `answered`, as far as is known here: without a look into the store."""
        with self._lock:
            person, ahead = self._people.get(annotator), self._ahead.get(annotator, ())
            return (person.answers if person else 0) + len(ahead)

    # Events

    def _count(self, event: Event, said: Said | None) -> None:
        key, person = (event.question, event.annotator), self._people[event.annotator]
        self._counted = event.id
        if said is None:
            return self._take_back(event, person)
        self._ahead[event.annotator].discard(event.question)
        self._said[key] = said
        person.count(said, 1)
        person.seen_at = _seconds(event.id)
        self._times.append(person.seen_at)
        self._forget(person.seen_at)
        took = event.body.get("answered_at", 0.0) - event.body.get("started_at", 0.0)
        if 0 < took < LONGEST_S:
            person.seconds.append(took)
        if said.judgement is not None:
            self._alpha_of(event.kind, said.judgement).add(event.question, said.judgement)
        return None

    def _alpha_of(self, kind: str, judgement: Hashable) -> Any:
        """Of vectors those of the same length are compared."""
        if isinstance(judgement, Scale):
            size = f" of {len(judgement)}" if len(judgement) > 1 else ""
            return self._alpha.setdefault(f"{kind}{size} (interval)", IntervalAlpha())
        return self._alpha.setdefault(kind, Alpha())

    def _take_back(self, event: Event, person: Person) -> None:
        key = event.question, event.annotator
        said = self._said.get(key)
        if said is None or said.event != event.undoes:
            return
        del self._said[key]
        person.count(said, -1)
        if said.judgement is not None:
            self._alpha_of(event.kind, said.judgement).remove(event.question, said.judgement)

    def _weighed(self, event: Event) -> Said:
        value, unsure = event.body.get("value"), bool(event.body.get("cannot_tell"))
        sides = [] if unsure else event.body.get("side_shown") or []
        best = _best(value, sides)
        first = best[0] == sides[0] if best is not None and len(sides) == 2 and len(best) == 1 else None
        return Said(
            event=event.id,
            judgement=None if unsure or event.again else best or _plain(event.kind, value),
            right=None if event.gold is None else not unsure and _alike(event.kind, value, event.gold),
            consistent=self._consistent(event) if event.again and not unsure else None,
            first=first,
            tie=best is not None and len(best) > 1,
            cannot_tell=unsure,
        )

    def _consistent(self, event: Event) -> bool | None:
        """Whether the answer is that which the annotator gave first; None where there is none any more."""
        before = self._said.get((event.again, event.annotator))
        if before is None or before.cannot_tell:
            return None
        events, _ = self._queue.events(_before(before.event), limit=1)
        if not events or events[0].id != before.event:
            return None
        return _alike(event.kind, event.body.get("value"), events[0].body.get("value"))

    # Figures

    def report(self) -> dict[str, Any]:
        """What an operator sees: the queue, the annotators, agreement, and what wants looking after."""
        self.follow()
        queue, banned, dead = self._queue.counts(), self._queue.banned(), self._queue.dead()
        queue |= {"paused": self._queue.paused(), "draining": self._queue.draining()}
        now = time.time()
        with self._lock:
            people = [
                {"name": name, **person.figures(now), "banned": name in banned}
                for name, person in sorted(self._people.items())
            ]
            alpha = {
                kind: {"alpha": alpha.value(), "questions": alpha.units}
                for kind, alpha in sorted(self._alpha.items())
            }
            alerts = [*_alerts(queue, people), *self._biased()]
            per_minute = self._per_minute(now)
        return {
            "queue": queue,
            "depth": self._queue.depth(),
            "oldest_wait_s": self._queue.oldest_wait_s(),
            "answers_per_minute": per_minute,
            "annotators": people,
            "alpha": alpha,
            "alerts": alerts,
            "dead": [{"id": name, "why": why} for name, why in sorted(dead.items())[:1000]],
        }

    def _per_minute(self, now: float) -> float:
        self._forget(now)
        if not self._times:
            return 0.0
        return 60 * len(self._times) / min(RATE_S, max(60.0, now - self._times[0]))

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - RATE_S:
            self._times.popleft()

    def _biased(self) -> list[str]:
        alerts = []
        for name, person in sorted(self._people.items()):
            low, high = wilson(person.left, person.sided, Z_999)
            if person.sided >= MIN_SIDED and not low <= 0.5 <= high:
                share = person.left / person.sided
                alerts.append(f"{name} chooses the left side in {share:.0%} of {person.sided} comparisons")
        return alerts


def _alerts(queue: Mapping[str, Any], people: list[dict[str, Any]]) -> list[str]:
    alerts = []
    active = sum(person["active"] for person in people)
    if active and not queue["open"] and not queue["paused"]:
        alerts.append("no question is open: those who answer will soon have nothing to do")
    for person in people:
        if person["gold"] >= MIN_GOLD and person["gold_right"] < GOOD_GOLD * person["gold"]:
            alerts.append(
                f"{person['name']} answers {person['gold_right']} of {person['gold']} known questions right"
            )
    if queue["dead"]:
        alerts.append(f"questions that nobody could answer: {queue['dead']}")
    return alerts


def _best(value: Any, sides: Any) -> tuple[int, ...] | None:
    """The options that a judgement over several puts first; None for an answer of another form."""
    if len(sides) < 2 or not isinstance(value, list) or len(value) != len(sides):
        return None
    if not all(isinstance(weight, int | float) for weight in value):
        return None
    return tuple(k for k, weight in enumerate(value) if weight == max(value))


def _plain(kind: str, value: Any) -> Hashable:
    """A key that was pressed, or numbers on a scale; others are not compared."""
    if isinstance(value, int | float):
        return float(value)
    if kind in PLAYED or not isinstance(value, list) or not value:
        return None
    return Scale(value) if all(isinstance(number, int | float) for number in value) else None


def _alike(kind: str, one: Any, other: Any) -> bool:
    try:
        return feedback.kind(kind).agree(np.asarray(one), np.asarray(other)) >= ALIKE
    except (ValueError, TypeError, IndexError):  # a known answer of another form
        return False


def _order(event: str) -> tuple[int, int]:
    ms, _, number = event.partition("-")
    return int(ms), int(number or 0)


def _before(event: str) -> str:
    ms, number = _order(event)
    return f"{ms}-{number - 1}" if number else f"{ms - 1}-{2**64 - 1}"


def _seconds(event: str) -> float:
    return _order(event)[0] / 1000
