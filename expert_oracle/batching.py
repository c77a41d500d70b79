"""Dynamic batching: questions that wait for an expert are joined into one forward."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree

from tutelage.protocols import Oracle
from tutelage.types import Tree, check_leading

QUICK_S = 0.001
"""A forward that takes less runs on the event loop."""


@dataclass(frozen=True)
class Question:
    """Observations that wait for the expert."""

    obs: Tree  # [N, ...]
    N: int
    signature: tuple[Any, ...]  # structure, dtypes and shapes: only the same can share a forward
    answer: asyncio.Future[Tree]


class Batcher:
    """Joins waiting questions into one call of the expert, made in a thread so that the service stays alive,
    but for an expert so quick that the way there and back would take longer than its answer.

    While one forward runs, questions gather for the next; `max_delay_s` makes even the first one wait
    for company, which pays where the expert is slow and its callers are many.
    """

    def __init__(self, oracle: Oracle, *, max_batch: int, max_delay_s: float) -> None:
        self._oracle = oracle
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._waiting: deque[Question] = deque()
        self._thread = ThreadPoolExecutor(1, "expert")
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_s, self._last_rows = math.inf, 1  # what the last forward took, and for how many

    def ask(self, obs: Tree) -> asyncio.Future[Tree]:
        """The expert's actions [N, ...], or OracleError. Raises ValueError for malformed observations."""
        answer: asyncio.Future[Tree] = asyncio.get_running_loop().create_future()
        N, signature = _signature(obs)
        if self._is_quick(N) and not self._busy():
            _settle(answer, self._timed([obs], N)[0])
            return answer
        self._waiting.append(Question(obs, N, signature, answer))
        if self._rows() >= self._max_batch:
            self._full.set()
        if not self._busy():
            self._task = asyncio.create_task(self._run())
        return answer

    def _is_quick(self, N: int) -> bool:
        """A forward for N rows is likely to take less than the way to the thread and back is worth."""
        return self._max_delay_s == 0 and self._last_s * max(1.0, N / self._last_rows) < QUICK_S

    def _busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def _timed(self, batch: Sequence[Tree], rows: int) -> list[Tree | Exception]:
        start = time.perf_counter()
        answers = _forward(self._oracle, batch)
        self._last_s, self._last_rows = time.perf_counter() - start, max(rows, 1)
        return answers

    def _rows(self) -> int:
        return sum(question.N for question in self._waiting)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self._max_delay_s > 0:
                await self._gather()
            questions = self._take()
            batch, rows = [question.obs for question in questions], sum(question.N for question in questions)
            answers = await loop.run_in_executor(self._thread, self._timed, batch, rows)
            for question, answer in zip(questions, answers, strict=True):
                _settle(question.answer, answer)

    async def _gather(self) -> None:
        """Wait until there is a full batch, at most the delay."""
        if self._rows() < self._max_batch:
            self._full.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._max_delay_s)

    def _take(self) -> list[Question]:
        """The oldest question and those right behind it that fit into the same batch."""
        questions = [self._waiting.popleft()]
        rows = questions[0].N
        while self._waiting and self._waiting[0].signature == questions[0].signature:
            rows += self._waiting[0].N
            if rows > self._max_batch:
                break
            questions.append(self._waiting.popleft())
        return questions

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _signature(obs: Tree) -> tuple[int, tuple[Any, ...]]:
    """The number N of observations, and what they have in common with others of the same kind."""
    if isinstance(obs, np.ndarray) and obs.ndim > 0:
        return len(obs), (obs.dtype, obs.shape[1:])
    leaves = tree.flatten_with_path(obs)
    if not leaves or leaves[0][1].ndim == 0:
        raise ValueError("obs: expected arrays with a leading axis N")
    N = len(leaves[0][1])
    check_leading("obs", obs, N)
    return N, tuple((path, leaf.dtype, leaf.shape[1:]) for path, leaf in leaves)


def _forward(oracle: Oracle, batch: Sequence[Tree]) -> list[Tree | Exception]:
    """An answer or an error for each question, with one call for all; if that fails, one call for each."""
    try:
        if len(batch) == 1:
            return [_act(oracle, batch[0])]
        ends = np.cumsum([len(tree.flatten(obs)[0]) for obs in batch])[:-1]
        actions = _act(oracle, tree.map_structure(lambda *leaves: np.concatenate(leaves), *batch))
        starts = [0, *ends.tolist()]
        stops: list[int | None] = [*ends.tolist(), None]
        return [_rows(actions, start, stop) for start, stop in zip(starts, stops, strict=True)]
    except Exception as error:
        if len(batch) == 1:
            return [error]
        return [answer for obs in batch for answer in _forward(oracle, [obs])]


def _act(oracle: Oracle, obs: Tree) -> Tree:
    actions, N = oracle.act(obs), len(obs if isinstance(obs, np.ndarray) else tree.flatten(obs)[0])
    if isinstance(actions, np.ndarray) and actions.shape[:1] == (N,):
        return actions  # the common case, without the cost of walking trees
    actions = tree.map_structure(np.asarray, actions)
    check_leading("the expert's actions", actions, N)
    return actions


def _rows(actions: Tree, start: int, stop: int | None) -> Tree:
    return tree.map_structure(lambda leaf: leaf[start:stop], actions)


def _settle(future: asyncio.Future[Tree], answer: Tree | Exception) -> None:
    if future.cancelled():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
