"""Scripted teachers who compare segments by a reward the learner does not see (B-Pref; Lee et al., 2021).

    teacher = Teacher(**TEACHERS["mistake"], seed=1)
    answers = teacher.label([query, ...])        # a Labeler: queries of kind "comparison" over Segments

One model has them all (section 4.1 of the paper): the probability of preferring segment k is

    P(k) ∝ exp(β Σ_t γ^(L−1−t) r_k(t))

with rationality β (infinite: the better one, always) and myopia γ; then with probability ε the answer is
flipped. A pair in which neither is worth `skip` is not judged, and one that differs by less than `equal` is a
tie. Those two are shares of what a segment was worth so far, as the paper's thresholds adapt to the agent: of
the mean return over the least one, since returns below 0 have no share of their own. Besides, `drift` turns a
teacher's mind as answers go by: what it adds to its returns is a random walk.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage import plugins
from tutelage.errors import ConfigError
from tutelage.plugins import did_you_mean
from tutelage.protocols import Labeler
from tutelage.types import Answer, Array, Query, Segment, Tree

TEACHERS: Mapping[str, Mapping[str, float]] = {
    "oracle": {},
    "stochastic": {"rationality": 1.0},
    "mistake": {"mistake": 0.1},
    "skip": {"skip": 0.1},
    "equal": {"equal": 0.1},
    "myopic": {"discount": 0.9},
}
"""The six of the paper, with its settings."""
NAMES = (*TEACHERS, "drifting", "adversarial")
DRIFT = 0.05
"""Of `drifting`: a step of its walk, as a share of the mean worth."""
Reward = Callable[[Tree, Array], Array]
"""From the observations [L, ...] and actions [L, ...] of a segment to rewards [L]."""


class NoRewards(ValueError):
    """A segment came without what it was to be judged by."""


class Teacher:
    """Somebody who judges segments by their rewards. A `Labeler`."""

    def __init__(
        self,
        *,
        rationality: float = math.inf,  # β, per unit of return
        discount: float = 1.0,  # γ < 1: the end of a segment counts more
        mistake: float = 0.0,  # ε, probability of the opposite answer
        skip: float = 0.0,  # share of the mean worth that the better one has to have
        equal: float = 0.0,  # share of the mean worth below which a difference is none
        drift: float = 0.0,  # standard deviation of a step of the walk, as a share of the mean worth
        reward: str | Reward | None = None,  # to judge by, a function or its word; None: the environment's
        expert: str = "",  # an expert's word: judge by how near the actions are to what it would do
        name: str = "synthetic",
        seed: int | Sequence[int] = 0,
    ) -> None:
        for what, value, most in (("discount", discount, 1.0), ("mistake", mistake, 1.0)):
            if not 0 <= value <= most:
                raise ConfigError(f"teacher: {what}={value} is not from 0 to {most:g}")
        for what, value in (("rationality", rationality), ("skip", skip), ("equal", equal), ("drift", drift)):
            if not value >= 0:
                raise ConfigError(f"teacher: {what}={value} is not 0 or more")
        self.rationality, self.discount, self.mistake = rationality, discount, mistake
        self.skip, self.equal, self.drift = skip, equal, drift
        self.reward: Reward | None = plugins.load(reward) if isinstance(reward, str) else reward
        if expert:
            if reward is not None:
                raise ConfigError(
                    "teacher: it judges by `reward` or by `expert`, not by both; reward=null for the expert"
                )
            self.reward = regret(expert)
        self.name = name
        self._rng = np.random.default_rng(seed)
        self._seen = 0  # segments
        self._mean = 0.0  # of their returns
        self._least = math.inf
        self._turned: dict[int, float] = {}  # option -> what the walk adds to its return

    def label(self, queries: Sequence[Query]) -> list[Answer]:
        """An answer to each. Raises NoRewards for options without rewards."""
        return [self.answer(query) for query in queries]

    def answer(self, query: Query) -> Answer:
        """Weights [K] over the options that sum to 1, or cannot tell."""
        began = time.time()
        weights = self.weights([self._judge(query, segment) for segment in query.options])
        K = len(query.options)
        uniform = np.full(K, 1 / K, np.float32)
        return Answer(
            query_id=query.id,
            value=uniform if weights is None else weights,
            annotator=self.name,
            started_at=began,
            answered_at=time.time(),
            side_shown=tuple(range(K)),
            cannot_tell=weights is None,
        )

    def _judge(self, query: Query, segment: Segment) -> Array:
        """Rewards [L] of a segment; 0 after its end."""
        if self.reward is not None:
            rewards = np.asarray(self.reward(segment.obs, segment.actions), np.float64)
            if rewards.shape != segment.ended.shape:
                raise ConfigError(
                    f"teacher: its reward gives shape {rewards.shape} for {len(segment.ended)} steps"
                )
            rewards = np.where(segment.ended, 0.0, rewards)
            if not np.isfinite(rewards).all():
                raise ConfigError(f"teacher: its reward is {rewards[~np.isfinite(rewards)][0]} for some step")
            return rewards
        if segment.rewards is None:
            raise NoRewards(f"query {query.id}: a teacher judges by rewards, and a segment has none")
        return np.asarray(segment.rewards, np.float64)

    def weights(self, rewards: Sequence[Array]) -> Array | None:
        """Weights [K] float32 of segments by their rewards, each [L]; None: it cannot tell."""
        sums = np.array([reward.sum() for reward in rewards])
        self._note(sums)
        if self.skip and sums.max() - self._least < self.skip * self._worth:
            return None
        values = np.array([self._valued(reward) for reward in rewards])
        if (self.equal and np.ptp(sums) < self.equal * self._worth) or np.ptp(values) == 0:
            return np.full(len(sums), 1 / len(sums), np.float32)
        chosen = self._choose(values + self._mood(len(sums)))
        if self._rng.random() < self.mistake:
            others = np.delete(np.arange(len(sums)), chosen)
            chosen = int(self._rng.choice(others))
        return np.eye(len(sums), dtype=np.float32)[chosen]

    def _note(self, returns: Array) -> None:
        self._seen += len(returns)
        self._mean += float((returns - self._mean).sum()) / self._seen
        self._least = min(self._least, float(returns.min()))

    @property
    def _worth(self) -> float:
        """The mean return of the segments over the least."""
        return self._mean - self._least

    def _valued(self, rewards: Array) -> float:
        """Σ_t γ^(L−1−t) r(t)."""
        return float(rewards @ self.discount ** np.arange(len(rewards) - 1, -1, -1))

    def _mood(self, options: int) -> Array:
        """What the walk adds to each option [K]: a leaning to one side that comes and goes."""
        if not self.drift:
            return np.zeros(options)
        for k in range(options):
            step = self._rng.normal(0.0, self.drift * self._worth)
            self._turned[k] = self._turned.get(k, 0.0) + step
        return np.array([self._turned[k] for k in range(options)])

    def _choose(self, values: Array) -> int:
        if math.isinf(self.rationality):
            return int(self._rng.choice(np.flatnonzero(values == values.max())))
        noise = self._rng.gumbel(size=len(values))  # argmax(β v + Gumbel) is a draw from the softmax
        return int((self.rationality * values + noise).argmax())


def regret(expert: str) -> Reward:
    """What people seem to judge by (Knox et al., 2022): not what was gained but what was done wrong.

    A proxy of it: minus the squared distance of an action to the expert's, as if every direction cost as much
    in every state; for whole numbers minus 1 where they differ.
    """
    from expert_oracle.loading import OracleSpec  # which imports torch for some

    oracle = OracleSpec(expert).build()

    def judge(obs: Tree, actions: Array) -> Array:
        best = np.asarray(oracle.act(obs))
        if best.dtype.kind in "iu":
            return -(best != actions).reshape(len(best), -1).any(1).astype(np.float64)
        return -np.square(best - actions).reshape(len(best), -1).sum(1).astype(np.float64)

    return judge


@dataclass(frozen=True)
class Adversary:
    """Says the opposite of what it thinks."""

    labeler: Labeler

    def label(self, queries: Sequence[Query]) -> list[Answer]:
        return [_opposite(answer) for answer in self.labeler.label(queries)]


def _opposite(answer: Answer) -> Answer:
    if answer.cannot_tell:
        return answer
    turned = answer.value.max() + answer.value.min() - answer.value
    return replace(answer, value=(turned / turned.sum()).astype(np.float32))


def synthetic(kind: str = "oracle", **settings: Any) -> Labeler:
    """One of the paper's teachers by name, `drifting` or `adversarial`, with other settings besides.

    Raises ConfigError for a name or a setting that is not known.
    """
    if kind not in NAMES:
        raise ConfigError(f"there is no teacher {kind!r}{did_you_mean(kind, NAMES)}")
    known = list(inspect.signature(Teacher).parameters)
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(f"teacher: it has no {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    given = {"name": kind, **TEACHERS.get(kind, {}), **settings}
    if kind == "drifting":
        given = {"drift": DRIFT, **given}
    return Adversary(Teacher(**given)) if kind == "adversarial" else Teacher(**given)
