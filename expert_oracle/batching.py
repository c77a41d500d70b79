"""Dynamic batching: questions that wait for an expert are joined into one forward."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree

from expert_oracle.metrics import Figures
from tutelage import codec
from tutelage.errors import OracleError, Unreachable, show_traceback
from tutelage.protocols import Oracle
from tutelage.types import Tree, check_leading

QUICK_S = 0.001
"""A forward that takes less may run on the event loop."""
SLOW_S = 0.1
"""An expert that once held up the event loop for so long does not run there again."""
QUICK_RUN = 32
"""Quick answers before the first one on the event loop; one that is not costs half of them."""
MAX_WAITING_BYTES = 4 * codec.MAX_BYTES
MOST_ROWS = 65_536
"""One question may have so many rows even where fewer may wait."""
IN_A_ROW = 8
"""Questions of a batch that fail alone one after the other: then it may be the expert that is at fault."""
MOST_FAILURES = 64
"""Calls that may fail for one batch."""


class Busy(Exception):
    """Too much waits for the expert already."""


class Late(ValueError):
    """Nobody waits for this answer any more."""


@dataclass(slots=True, eq=False)
class Question:
    """Observations that wait for the expert."""

    obs: Tree  # [N, ...]
    N: int
    size: int  # bytes
    signature: tuple[Any, ...]  # structure, dtypes and shapes: only the same can share a forward
    answer: asyncio.Future[Tree]
    batcher: Batcher  # where it waits
    expires_at: float  # seconds of the loop's clock
    timer: asyncio.TimerHandle | None = None
    begun: bool = False
    left: bool = False  # begun, and nobody waits for it at the moment

    def withdraw(self) -> None:
        """Spare the expert a question that it has not begun, and to try again for one that it has."""
        if self.begun:
            self.left = True
        else:
            self.batcher.remove(self)
            self.answer.cancel()

    def resume(self) -> None:
        """Somebody is back who waits for it."""
        self.left = False


@dataclass(eq=False)
class Quickness:
    """Whether an expert may answer on the event loop, where nothing else happens meanwhile."""

    never: bool
    run: int = 0
    rows: int = 0  # of the largest question that it was quick with

    def covers(self, rows: int) -> bool:
        return not self.never and self.run >= QUICK_RUN and rows <= self.rows

    def note(self, seconds: float, rows: int, *, answered: bool) -> None:
        """One slow answer may just have lost its core; a large question says nothing of smaller ones."""
        if seconds < QUICK_S and answered and rows:
            self.run, self.rows = min(self.run + 1, 2 * QUICK_RUN), max(self.rows, rows)
        elif seconds >= QUICK_S and rows <= self.rows:
            self.run, self.rows = max(0, self.run - QUICK_RUN // 2), max(0, rows - 1)


class Batcher:
    """Joins waiting questions into one call of the expert, made in a thread so that the service stays alive,
    but for an expert so quick that the way there and back would take longer than its answer.

    While one forward runs, questions gather for the next; `max_delay_s` makes even the first one wait
    for company, which pays where the expert is slow and its callers are many. More than `max_waiting` rows
    do not wait: a question on top of them is refused. Without `at_once` nothing runs on the event loop.
    """

    def __init__(
        self,
        oracle: Oracle,
        *,
        max_batch: int,
        max_delay_s: float = 0.0,
        max_waiting: int = 65_536,
        at_once: bool = True,
        figures: Figures | None = None,
    ) -> None:
        self._oracle = oracle
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_waiting = max_waiting
        self.most_rows = max(max_waiting, MOST_ROWS)
        self.figures = figures or Figures()
        self._waiting: OrderedDict[Question, None] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "expert")
        self._full = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._calling = False  # the expert is at work in the thread
        self._quickness = Quickness(never=not at_once or max_delay_s > 0)

    def at_once(self, obs: Tree, N: int) -> Tree | None:
        """The expert's actions [N, ...] if it is free and quick enough to give them now."""
        if self._running or not self._quickness.covers(N):
            return None
        start, answered = time.perf_counter(), False
        try:
            actions = _act(self._oracle, obs)
            answered = True
            return actions
        finally:
            seconds = time.perf_counter() - start
            self._note(seconds, N, answered=answered)
            self._quickness.never = seconds > SLOW_S

    def _note(self, seconds: float, rows: int, *, answered: bool) -> None:
        self._quickness.note(seconds, rows, answered=answered)
        self.figures.forward_s.observe(seconds)
        self.figures.batch_rows.observe(rows)

    def ask(self, obs: Tree, timeout_s: float = 0.0) -> Question:
        """A question whose answer will be the expert's actions [N, ...], or what it raised.

        Raises Busy where too much waits, and ValueError for malformed observations.
        """
        loop = asyncio.get_running_loop()
        N, signature = signature_of(obs)
        size = sum(leaf.nbytes for leaf in tree.flatten(obs))
        self._check_room(N, size)
        expires_at = loop.time() + timeout_s if timeout_s > 0 else math.inf
        question = Question(obs, N, size, signature, loop.create_future(), self, expires_at)
        if expires_at < math.inf:
            question.timer = loop.call_at(expires_at, self._expire, question)
        self._count(question, 1)
        self._waiting[question] = None
        if self.figures.waiting_rows >= self._max_batch:
            self._full.set()
        if not self._running:
            self._running = asyncio.create_task(self._run())
        return question

    def _check_room(self, N: int, size: int) -> None:
        """Raise Busy where too much waits; with nothing waiting there is room for anything."""
        rows, held = self.figures.waiting_rows, self.figures.waiting_bytes
        if rows and (rows + N > self._max_waiting or held + size > MAX_WAITING_BYTES):
            raise Busy(f"{rows:,} states wait for the expert already")

    def _count(self, question: Question, sign: int) -> None:
        self.figures.waiting_rows += sign * question.N
        self.figures.waiting_bytes += sign * question.size

    def remove(self, question: Question) -> None:
        """It waits no more, if it did."""
        if question in self._waiting:
            del self._waiting[question]
            self._count(question, -1)
            if question.timer is not None:
                question.timer.cancel()

    def _expire(self, question: Question) -> None:
        self.remove(question)
        if not question.answer.done():
            question.answer.set_exception(Late("not begun within the time that the request allows"))

    def _timed(self, questions: Sequence[Question], rows: int) -> dict[int, Tree | Exception]:
        start, self._calling = time.perf_counter(), True
        answers = _forward(self._oracle, questions)
        self._calling = False
        answered = not any(isinstance(answer, Exception) for answer in answers.values())
        self._note(time.perf_counter() - start, rows, answered=answered)
        return answers

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._max_delay_s > 0:
                    await self._gather()
                questions = self._take(asyncio.get_running_loop().time())
                if questions:
                    await self._answer(questions)
        finally:
            self._running = None

    async def _answer(self, questions: Sequence[Question]) -> None:
        loop, rows = asyncio.get_running_loop(), sum(question.N for question in questions)
        try:
            answers = await loop.run_in_executor(self._thread, self._timed, questions, rows)
        except Exception as error:  # of ours: the next batch may fare better
            answers = dict.fromkeys(range(len(questions)), error)
        for place, answer in answers.items():
            _settle(questions[place].answer, answer)

    async def _gather(self) -> None:
        """Wait until there is a full batch, at most the delay."""
        if self.figures.waiting_rows < self._max_batch:
            self._full.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._max_delay_s)

    def _take(self, now: float) -> list[Question]:
        """The oldest question, and those behind it that fit into the same batch."""
        questions: list[Question] = []
        rows = 0
        while self._waiting:
            question = next(iter(self._waiting))
            if question.expires_at < now:
                self._expire(question)
                continue
            if questions and not self._fits(question, questions[0], rows):
                break
            self.remove(question)
            question.begun = True
            questions.append(question)
            rows += question.N
        return questions

    def _fits(self, question: Question, first: Question, rows: int) -> bool:
        return question.signature == first.signature and rows + question.N <= self._max_batch

    def close(self) -> bool:
        """Whether the expert is left in mid-call, which nothing can break off."""
        if self._running:
            self._running.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        return self._calling


def signature_of(obs: Tree) -> tuple[int, tuple[Any, ...]]:
    """The number N of observations, and what they have in common with others of the same kind."""
    if isinstance(obs, np.ndarray) and obs.ndim > 0:
        return len(obs), (obs.dtype, obs.shape[1:])
    leaves = tree.flatten_with_path(obs)
    if not leaves or leaves[0][1].ndim == 0:
        raise ValueError("obs: expected arrays with a leading axis N")
    N = len(leaves[0][1])
    check_leading("obs", obs, N)
    return N, tuple((path, leaf.dtype, leaf.shape[1:]) for path, leaf in leaves)


def _forward(oracle: Oracle, questions: Sequence[Question]) -> dict[int, Tree | Exception]:
    """By place an answer or an error for each question, with one call for all that somebody waits for.

    Where one fails, either half of it has one: a guilty question among n costs 2 log2(n) + 1 calls. An outage
    is no question's fault: all that are left have its error. After `IN_A_ROW` or `MOST_FAILURES` what was not
    tried alone is to be asked again, and so is a question that was left and that somebody is back for.
    """
    answers: dict[int, Tree | Exception] = {}
    groups: list[Sequence[int]] = [range(len(questions))]  # the next one to try is the last
    failures = in_a_row = 0
    while groups:
        both = groups.pop()
        group = [place for place in both if not questions[place].left]
        answers.update((place, Busy("begun, and left")) for place in both if questions[place].left)
        if not group:
            continue
        try:
            actions = _joined(oracle, [questions[place].obs for place in group])
            answers.update(zip(group, actions, strict=True))
            in_a_row = 0
        except Exception as error:
            half, failures = len(group) // 2, failures + 1
            groups += [group[half:], group[:half]] if half else []
            if _is_outage(error):
                return answers | dict.fromkeys(_all([group, *groups]), error)
            if not half:
                answers[group[0]] = error
                in_a_row += 1
            if in_a_row == IN_A_ROW or failures == MOST_FAILURES:
                untried = Busy(f"the expert failed for others: {error}")
                return answers | dict.fromkeys(_all(groups), untried)
    return answers


def _all(groups: Iterable[Sequence[int]]) -> list[int]:
    return [place for group in groups for place in group]


def _joined(oracle: Oracle, batch: Sequence[Tree]) -> list[Tree]:
    """An answer for each question, with one call for all."""
    if len(batch) == 1:
        return [_act(oracle, batch[0])]
    ends = np.cumsum([len(tree.flatten(obs)[0]) for obs in batch])[:-1].tolist()
    actions = _act(oracle, tree.map_structure(lambda *leaves: np.concatenate(leaves), *batch))
    return [_rows(actions, start, stop) for start, stop in zip([0, *ends], [*ends, None], strict=True)]


def _is_outage(error: BaseException | None) -> bool:
    """The expert's own source of answers cannot be reached; each call may have waited long to find out."""
    while error is not None:
        if isinstance(error, Unreachable | TimeoutError | ConnectionError):
            return True
        error = error.__cause__
    return False


def _act(oracle: Oracle, obs: Tree) -> Tree:
    """The expert's actions [N, ...]; OracleError for whatever else it does, be it to end the process."""
    N = len(obs if isinstance(obs, np.ndarray) else tree.flatten(obs)[0])
    try:
        actions = oracle.act(obs)
        if isinstance(actions, np.ndarray) and actions.shape[:1] == (N,):
            return actions  # the common case, without the cost of walking trees
        actions = tree.map_structure(np.asarray, actions)
    except OracleError:
        raise
    except BaseException as error:
        show_traceback()
        raise OracleError(f"{type(error).__name__}: {error}") from error
    try:
        check_leading("the expert's actions", actions, N)
    except ValueError as error:
        raise OracleError(str(error)) from None
    return actions


def _rows(actions: Tree, start: int, stop: int | None) -> Tree:
    return tree.map_structure(lambda leaf: leaf[start:stop], actions)


def _settle(future: asyncio.Future[Tree], answer: Tree | Exception) -> None:
    if future.done():  # nobody waits any more
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
