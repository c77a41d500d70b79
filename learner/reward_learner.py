"""The reward's side of learning from preferences: what to ask, when, and what follows from the answers.

reward = RewardLearner(settings, observation_space, action_space, run / "preferences", seed=0)
reward.observe(rollouts)
answers = labeler.label(reward.ask(env_steps))
reward.hear(answers)
figures = reward.fit()               # refitted if answers were new
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from safetensors import SafetensorError
from safetensors.torch import load_file

from learner.comparisons import Comparisons
from learner.pairs import BY_MODEL, NOTHING, choose, looks, probabilities
from learner.reliability import reliabilities
from learner.reward_model import MINIBATCH, Fitting, RewardModel
from learner.segments import SegmentPool
from tutelage.errors import TrainingError
from tutelage.types import Answer, Array, Query, Rollout, Segment, Tree

KIND = "comparison"
FIRST_PASSES = 5  # times as many when there was no reward before
LEAST_MINIBATCHES = 100  # of a refit, all passes together: a handful of answers needs many
MOST_ANSWERS = 100_000  # that a refit goes through: many need few passes
PER_ROLLOUT = 0.25  # segments cut of a rollout, as a share of the candidates
PATIENCE = 1_000  # episodes in which there was nothing to ask about
TARGET = 0.75  # accuracy at which the schedule `accuracy` asks as often as `constant`
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda x: x,
    "hyperbolic": lambda x: math.log1p(9 * x) / math.log(10),  # a rate of 1 / (1 + 9x)
    "sqrt": math.sqrt,  # a rate of 1 / √x
    "accuracy": lambda x: x,  # constant, but more where answers are a surprise: all may never be asked
}
"""Share of the questions, after the first ones, asked at a share x of the steps."""


@dataclass(frozen=True)
class RewardSettings:
    """How to ask and fit. Made by: methods. Eaten by: the reward learner."""

    comparisons: int
    first_share: float
    schedule: str
    ask_until: int
    batch: int
    segment_length: int
    options: int
    pairs: str
    across_time: bool
    candidates: int
    past_the_end: bool
    task: str
    ask_from: int = 0  # env steps before which nothing is asked
    fits: bool = True  # a reward to the answers
    members: int = 3
    careless: float = 0.1
    reliability: bool = False
    normalise: bool = True
    passes: int = 10
    lr: float = 1e-3
    hiddens: tuple[int, ...] = (64, 64)
    conv_filters: Any = None  # for images, as of the policy


class RewardLearner:
    """A reward model, the comparisons that it is fitted to, and the segments to ask about next."""

    def __init__(
        self,
        settings: RewardSettings,
        observation_space: gym.Space,
        action_space: gym.Space,
        folder: Path,
        *,
        seed: int = 0,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.comparisons = Comparisons(folder)
        self.pool = SegmentPool(
            length=settings.segment_length,
            per_rollout=math.ceil(PER_ROLLOUT * settings.candidates),
            capacity=settings.candidates,
            past_the_end=settings.past_the_end,
            seed=seed,
        )
        self.model = make_model(settings, observation_space, action_space, seed)
        self.fitted = 0  # answers that the model knows
        self._fitted_to = -1  # of all that ever came
        self._credit = float(self.comparisons.asked)  # questions that may have been asked by now
        self._counted_to = 0  # env steps up to which that holds
        self._looked = NOTHING
        self.figures: dict[str, float] = {}

    @property
    def first(self) -> int:
        """Answers without which there is no reward."""
        return max(1, round(self.settings.first_share * self.settings.comparisons))

    @property
    def ready(self) -> bool:
        """Whether the model is worth learning from."""
        return self.fitted > 0

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        """Cut segments out of them."""
        for rollout in rollouts:
            self.pool.add(rollout)

    # Asking

    def ask(self, env_steps: int) -> list[Query]:
        """As many questions as are due at this step, on the disk.

        Raises TrainingError where no episode is as long as a segment, DatasetError for a full disk.
        """
        n = self._due(env_steps)
        if not n:
            return []
        pool, rng = self.pool, np.random.default_rng([self.seed, 13, self.comparisons.asked])
        of = pool.across_time if self.settings.across_time else pool.newest
        segments = of(self.settings.candidates)
        way = self.settings.pairs
        if way in BY_MODEL and not self.ready:
            way = "uniform"
        if not segments and pool.episodes >= PATIENCE:
            raise TrainingError(
                f"method.segment_length: the longest of {pool.episodes} episodes had {pool.longest} steps, "
                f"and no segment of {self.settings.segment_length} could be cut to ask about; set it to less"
            )
        options, asked = self.settings.options, self._looks() if way == "k_centre" else NOTHING
        groups = choose(way, segments, n, model=self.model, rng=rng, options=options, asked=asked)
        if self.ready and self.settings.fits and len(groups):
            self.figures["reward_disagreement"] = self._disagreement(
                [segments[k] for k in groups[:, :2].flat]
            )
        queries = [
            Query(
                id=f"c{self.comparisons.asked + i:06d}-{uuid.uuid4().hex[:8]}",
                kind=KIND,
                options=[segments[k] for k in group],
                context={"task": self.settings.task} if self.settings.task else {},
            )
            for i, group in enumerate(groups)
        ]
        self.comparisons.ask(queries)
        return queries

    def _disagreement(self, segments: Sequence[Segment]) -> float:
        """How far the members' probabilities are apart, as a standard deviation, in pairs of neighbours."""
        pairs = np.arange(len(segments)).reshape(-1, 2)
        return float(probabilities(pairs, segments, self.model).std(0).mean())

    def _looks(self) -> Array:
        """What the first two segments of all questions so far look like [Q, 2, D]."""
        if len(self._looked) < self.comparisons.asked:
            (obs, actions), known = self.comparisons.segments(), len(self._looked)
            obs = tree.map_structure(lambda x: x[known:, :2], obs)
            new = looks(obs, actions[known:, :2], axis=2)
            self._looked = np.concatenate([self._looked, new]) if len(self._looked) else new
        return self._looked

    def _due(self, env_steps: int) -> int:
        """Questions to ask now: the first ones at once, then by the schedule, `batch` at a time."""
        one, asked = self.settings, self.comparisons.asked
        if env_steps < one.ask_from:
            return 0
        if asked < self.first and not self.ready:
            return self.first - asked
        if self._nobody_could_tell():
            return max(0, min(self.first, one.comparisons - asked))
        self._earn(env_steps)
        due = int(min(self._credit, one.comparisons) + 1e-6) - asked
        return due if due > 0 and due >= min(one.batch, one.comparisons - asked) else 0

    def _nobody_could_tell(self) -> bool:
        """All first questions are answered, and there is nothing to learn from."""
        said = self.comparisons
        return not self.ready and not len(said) and said.asked > 0 and not said.unanswered

    def _earn(self, env_steps: int) -> None:
        """Let the questions of the steps since the last time be asked.

        They are a share of those that are left, of the steps that are left, so that all are asked in time
        also where a run was extended, by steps or by questions, or cut off before its first checkpoint.
        """
        one, share = self.settings, SCHEDULES[self.settings.schedule]
        steps = max(1, one.ask_until - one.ask_from)
        before, now = (min(1.0, max(0, x - one.ask_from) / steps) for x in (self._counted_to, env_steps))
        self._credit = max(self._credit, min(self.first, self.comparisons.asked))
        left = max(0.0, one.comparisons - self._credit)
        more = left if now >= 1 else left * max(0.0, share(now) - share(before)) / (1 - share(before))
        if one.schedule == "accuracy":
            wrong = 1 - self.figures.get("reward_accuracy", TARGET)
            more *= float(np.clip(wrong / (1 - TARGET), 0.25, 2.0))
        self._credit += more
        self._counted_to = max(env_steps, self._counted_to)

    # Answers

    def hear(self, answers: Iterable[Answer]) -> None:
        """Keep answers, on the disk. Raises TrainingError for one that is no weights of its options."""
        self.comparisons.hear(answers)

    def fit(self) -> dict[str, float]:
        """Refit to all comparisons if there are new ones, and enough for a first time.

        Returns the newest figures: `comparisons`, `asked`, `unanswered`, `first_unasked`, and `reward_*` once
        there is a model.
        """
        said = self.comparisons
        answers, heard = len(said), said.heard
        counts = {
            "comparisons": float(said.answered),
            "asked": float(said.asked),
            "unanswered": float(said.unanswered),
            "first_unasked": float(max(0, self.first - said.asked, self._nobody_could_tell())),
        }
        enough = self.ready or said.asked - said.unanswered >= self.first
        if heard == self._fitted_to or not answers or not enough:
            self.figures |= counts
            return dict(self.figures)
        if not self.settings.fits:
            self.fitted, self._fitted_to = answers, heard
            self.figures |= counts
            return dict(self.figures)
        one = self.settings
        compared = said.compared()
        if one.reliability:
            careless = reliabilities(compared, said.annotators(), self.model if self.ready else None)
            compared = replace(compared, careless=careless)
        if self.ready and (new := said.new_since(self._fitted_to)):  # before they are learnt from
            accuracy = self.model.test(Fitting(new, one.members, self.seed, held_out=True))[1]
            if np.isfinite(accuracy):
                counts["reward_accuracy"] = accuracy
        passes = max(one.passes, math.ceil(LEAST_MINIBATCHES / max(1, round(answers / MINIBATCH))))
        passes *= 1 if self.ready else FIRST_PASSES
        passes = max(1, min(passes, MOST_ANSWERS // answers))
        found = self.model.fit(compared, passes=passes, seed=answers)
        self.fitted, self._fitted_to = answers, heard
        self.figures |= counts | {
            f"reward_{name}": value for name, value in found.items() if name != "accuracy"
        }
        return dict(self.figures)

    # Checkpoints

    def get_state(self) -> dict[str, Any]:
        return {
            "model": self.model.get_state(),
            "fitted": self.fitted,
            "fitted_to": self._fitted_to,
            "credit": self._credit,
            "counted_to": self._counted_to,
            "figures": dict(self.figures),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.model.set_state(state["model"])
        self.fitted, self.figures = state["fitted"], dict(state["figures"])
        self._fitted_to = state["fitted_to"]
        self._credit, self._counted_to = state["credit"], state["counted_to"]


def make_model(
    settings: RewardSettings, observation_space: gym.Space, action_space: gym.Space, seed: int
) -> RewardModel:
    """A reward model as the settings want it."""
    return RewardModel(
        observation_space,
        action_space,
        members=settings.members,
        hiddens=settings.hiddens,
        conv_filters=settings.conv_filters,
        lr=settings.lr,
        careless=settings.careless,
        normalise=settings.normalise,
        seed=seed,
    )


def load_reward(
    path: Path, settings: RewardSettings, observation_space: gym.Space, action_space: gym.Space, *, seed: int
) -> RewardModel:
    """The reward model whose weights are in a safetensors file. Raises TrainingError for others."""
    model = make_model(settings, observation_space, action_space, seed)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise TrainingError(f"{path} is no reward model of this run: {str(error).splitlines()[0]}") from None
    return model


def predicted(model: RewardModel, rollout: Rollout, *, relative_to_end: bool) -> Array:
    """The ensemble's mean reward [T, B] float32 of a rollout's steps."""
    T, B = rollout.shape
    obs = tree.map_structure(lambda x: x[:-1].reshape(T * B, *x.shape[2:]), rollout.obs)
    actions = rollout.actions.reshape(T * B, *rollout.actions.shape[2:])
    return mean_rewards(model, obs, actions, relative_to_end=relative_to_end).reshape(T, B)


def mean_rewards(model: RewardModel, obs: Tree, actions: Array, *, relative_to_end: bool) -> Array:
    """The ensemble's mean reward [N] float32 of observations and actions [N, ...]."""
    obs = tree.map_structure(torch.tensor, obs)
    rewards = model.rewards(obs, torch.tensor(actions), relative_to_end=relative_to_end)
    return rewards.mean(0).numpy().astype(np.float32)
