"""What becomes of a question to the service: it is checked, put to the expert, answered or refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tree

from expert_oracle.batching import Batcher, Busy, Late, Question, signature_of
from expert_oracle.metrics import Figures, fault
from tutelage import codec
from tutelage.errors import OracleError, TutelageError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import Array, Tree

MAX_ERROR = 1000
"""Characters of an error that are sent."""
MAX_SIGNATURES = 256


@dataclass(eq=False)
class Asked:
    """A question that waits for the expert; `reply` is there before any callback on its answer is called."""

    id: int
    question: Question
    reply: pb.ActReply | None = None
    owner: object = None  # the stream or call that asked it last


@dataclass(eq=False)
class Desk:
    """Takes questions for one expert, in few steps: between two of them the processor's caches go cold."""

    batcher: Batcher
    observation_space: pb.Space | None  # None: not known, and not checked
    figures: Figures
    _fitting: set[Any] = field(default_factory=set)  # signatures of observations of that space

    def take(
        self, request: pb.ActRequest, keep: Callable[[Asked], object] | None = None
    ) -> pb.ActReply | Asked:
        """The reply, or what it will come from; then `keep` is called once it has come, or never will."""
        start = time.perf_counter()
        try:
            obs, N = self._observations(request)
            actions = self.batcher.at_once(obs, N)
            if actions is None:
                question = self.batcher.ask(obs, request.timeout_s)
                return self._waiting(Asked(request.id, question), start, keep)
            return self._answered(request.id, actions, start)
        except Exception as error:
            return self._refused(request.id, error)

    def _waiting(self, asked: Asked, start: float, keep: Callable[[Asked], object] | None) -> Asked:
        def conclude(answer: asyncio.Future[Tree]) -> None:
            if not answer.cancelled():
                asked.reply = self._concluded(asked.id, answer, start)
            if keep is not None:
                keep(asked)

        asked.question.answer.add_done_callback(conclude)
        return asked

    def _concluded(self, request_id: int, answer: asyncio.Future[Tree], start: float) -> pb.ActReply:
        try:
            return self._answered(request_id, answer.result(), start)
        except Exception as error:
            return self._refused(request_id, error)

    def _observations(self, request: pb.ActRequest) -> tuple[Tree, int]:
        """Observations [N, ...] that fit the space and hold no NaN, and N; or ValueError."""
        obs = codec.decode(request.obs, "obs")
        N, signature = signature_of(obs)
        self._check_rows(obs, N)
        self.figures.rows += N
        if signature not in self._fitting:
            self._check(obs, signature)
        for leaf in (obs,) if type(obs) is np.ndarray else tree.flatten(obs):
            if leaf.dtype.kind == "f" and leaf.size:
                least = np.minimum.reduce(leaf, None)  # NaN exactly where one is among them
                if least != least:
                    raise ValueError(f"obs: NaN in {_bad_rows(leaf)} of {N} states")
        return obs, N

    def _check_rows(self, obs: Tree, N: int) -> None:
        """Raise ValueError for more rows than anybody asks for; empty ones cost nothing to send."""
        most = self.batcher.most_rows
        if most < N:
            raise ValueError(f"obs: {N:,} states in one question, more than {most:,}")
        if N and not (obs.size if type(obs) is np.ndarray else any(leaf.size for leaf in tree.flatten(obs))):
            raise ValueError(f"obs: {N:,} states that hold nothing")

    def _check(self, obs: Tree, signature: Any) -> None:
        """Raise ValueError unless this kind of observations fits the space."""
        if self.observation_space is not None:
            codec.check_batch(obs, self.observation_space, "obs")
        if len(self._fitting) < MAX_SIGNATURES:
            self._fitting.add(signature)

    def _answered(self, request_id: int, actions: Tree, start: float) -> pb.ActReply:
        reply = pb.ActReply(id=request_id)
        try:
            codec.encode_into(reply.actions, actions, "the expert's actions")
        except ValueError as error:
            raise OracleError(str(error)) from None
        self.figures.latency_s.observe(time.perf_counter() - start)
        return reply

    def _refused(self, request_id: int, error: Exception) -> pb.ActReply:
        text = _in_one_line(error)
        if isinstance(error, Busy):
            self.figures.refusals["busy"] += 1
            return pb.ActReply(id=request_id, busy=text)
        self.figures.refusals[_reason(error)] += 1
        if not isinstance(error, ValueError):
            fault("expert failed", error=text)
        return pb.ActReply(id=request_id, error=text)


def _reason(error: Exception) -> str:
    if isinstance(error, Late):
        return "late"
    return "malformed" if isinstance(error, ValueError) else "failed"


def _bad_rows(array: Array) -> int:
    return int(np.isnan(array).reshape(len(array), -1).any(1).sum())


def _in_one_line(error: BaseException) -> str:
    kind = "" if isinstance(error, ValueError | TutelageError | Busy) else f"{type(error).__name__}: "
    text = " ".join(f"{kind}{error}".split())
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 3] + "..."
