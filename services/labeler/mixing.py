"""What annotators are asked besides: questions with a known answer, and their own once more.

Both measure the annotator and are not learned from. Which of an annotator's answers bring them about is drawn
by a function of question and annotator, so that it is the same whatever the order, and after a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.labeler.draws import Draws
from services.labeler.queue import Event, Question, Queue
from services.labeler.shown import Shown

AFTER = 20
"""Answers to other questions before one is asked again."""
URGENT = 1e12
"""The priority of what is asked again."""


@dataclass(frozen=True)
class Repeat:
    """A question that its annotator is to be asked again. Made and eaten by: `Mixing`."""

    id: str
    after: int  # answers of the annotator


@dataclass
class _Annotator:
    answers: int = 0
    gold_due: int = 1  # everybody begins with one
    repeats: list[Repeat] = field(default_factory=list)
    had: set[str] = field(default_factory=set)  # gold


class Mixing:
    """Thread-safe.

    repeats: share of an annotator's questions that it is asked again later
    gold: share of questions beside which an annotator is asked one with a known answer
    """

    def __init__(self, queue: Queue, shown: Shown, draws: Draws, *, repeats: float, gold: float) -> None:
        self._queue, self._shown, self._draws = queue, shown, draws
        self._repeats, self._gold_share = repeats, gold
        self._annotators: dict[str, _Annotator] = {}
        self._gold: dict[str, str] = {}  # id -> kind
        self._lock = threading.Lock()

    def add_gold(self, id: str, kind: str) -> None:
        with self._lock:
            self._gold[id] = kind

    def recall(self, event: Event, is_ordinary: bool) -> None:
        """Something that happened before this process began."""
        if event.type == "undo":
            self.undone(event.annotator, event.question)
        elif event.gold is not None:
            self._had(event.annotator, event.question)
        elif event.again:
            self.undone(event.annotator, event.again)  # it has been asked
        elif is_ordinary:
            self.answered(event.annotator, event.question)

    def answered(self, annotator: str, question: str) -> None:
        """An ordinary question was."""
        with self._lock:
            who = self._of(annotator)
            who.answers += 1
            if self._draws.share("repeat", question, annotator) < self._repeats:
                who.repeats.append(Repeat(question, who.answers + AFTER))
            if self._draws.share("gold", question, annotator) < self._gold_share:
                who.gold_due += 1

    def undone(self, annotator: str, question: str) -> None:
        """It is not to be asked again."""
        with self._lock:
            who = self._of(annotator)
            who.repeats = [repeat for repeat in who.repeats if repeat.id != question]

    def mix_in(self, annotator: str, kinds: Sequence[str]) -> None:
        """Give the annotator what it is to be asked again, and gold, among the rest."""
        for first in self._repeats_due(annotator):
            known = self._shown.with_body(first)
            if known is None:  # its clips are on their way
                continue
            if known.body is not None:
                # A name that says nothing, and no other annotator's.
                id = self._draws.digest("again", first, annotator).hex()[:24]
                more = Question(id, known.kind, known.body, URGENT, only=[annotator], again=first)
                self._queue.submit([more])
            self.undone(annotator, first)
        for id in self._gold_for(annotator, kinds):
            lent = self._queue.lend(id, annotator)
            if lent in ("lent", "had"):
                self._had(annotator, id)
            if lent in ("lent", "refused"):
                break

    def _repeats_due(self, annotator: str) -> list[str]:
        """The questions whose time to be asked again has come, until they are `undone`."""
        with self._lock:
            who = self._of(annotator)
            return [repeat.id for repeat in who.repeats if repeat.after <= who.answers]

    def _gold_for(self, annotator: str, kinds: Sequence[str]) -> list[str]:
        """Gold questions that it may not have had, in an order of its own; none where none is due."""
        with self._lock:
            who = self._of(annotator)
            if not who.gold_due:
                return []
            new = [
                id for id, kind in self._gold.items() if id not in who.had and (not kinds or kind in kinds)
            ]
        return sorted(new, key=lambda id: self._draws.share("gold", id, annotator))

    def _had(self, annotator: str, gold: str) -> None:
        """The annotator has it, or had it."""
        with self._lock:
            who = self._of(annotator)
            who.had.add(gold)
            who.gold_due = max(0, who.gold_due - 1)

    def _of(self, annotator: str) -> _Annotator:
        return self._annotators.setdefault(annotator, _Annotator())
