"""Reinforcement learning from preferences between segments (Christiano et al., 2017).

Somebody compares two stretches of what the policy does; a reward model is fitted so that the preferred one
has the larger return (Bradley–Terry); the policy maximises the model's reward by PPO. The three go on at the
same time: `services.preferences` asks and fits, `learner.reward_model` has the model, and here is what the
policy makes of it.

An end of an episode is a trap: a Bradley–Terry reward has a free offset, which makes ending good or bad at
random. So what is after an end is either judged like all else, or made to play no part (`terminal`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from learner.methods._base import Columns, Critic
from learner.methods.ppo import PPO
from learner.pairs import WAYS
from learner.reward_learner import SCHEDULES, RewardSettings
from tutelage.errors import ConfigError
from tutelage.types import Rollout

Terminal = Literal["judged", "ignored", "zero"]


@dataclass(frozen=True)
class Preference(PPO):
    """PPO on a reward that is learnt from comparisons."""

    needs_labeler: ClassVar = True
    ranges: ClassVar = {
        **PPO.ranges,
        **dict.fromkeys(("comparisons", "segment_length", "members", "batch", "passes"), (1, math.inf)),
        **dict.fromkeys(("candidates",), (2, math.inf)),
        **dict.fromkeys(("first_share", "careless"), (0, 1)),
        "options": (2, 9),
    }

    comparisons: int = 700  # to ask for in all
    first_share: float = 0.25  # of them, asked and answered before the policy learns
    schedule: str = "hyperbolic"  # of the others: constant, hyperbolic, sqrt or accuracy
    ask_until: int | None = None  # env steps by which all are asked; None: those of stop.env_steps
    batch: int = 10  # comparisons asked at a time
    segment_length: int = 50  # steps
    options: int = 2  # segments to choose the best of
    pairs: str = "disagreement"  # uniform, disagreement, entropy, k_centre or same_start
    across_time: bool = False  # segments of all that was collected, not only of the newest
    candidates: int = 400  # segments among which pairs are chosen
    terminal: Terminal = "judged"  # an end: judged by those who compare, ignored, or worth zero
    task: str = ""  # what people are told to judge by
    members: int = 3  # of the reward ensemble
    careless: float = 0.1  # probability of an answer at random
    reliability: bool = False  # estimate that probability for each annotator
    normalise_model: bool = True  # the learnt reward: mean 0, standard deviation 1, each member
    passes: int = 10  # of a refit over all comparisons
    reward_lr: float = 1e-3
    reward_hiddens: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("pairs", WAYS), ("terminal", get_args(Terminal))):
            if getattr(self, name) not in known:
                raise ConfigError(f"method.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")

    def reward_settings(self) -> RewardSettings:
        """What asks and fits needs to know."""
        if self.ask_until is None:
            raise ConfigError("method.ask_until: set it, or stop.env_steps, to spread the questions over")
        return RewardSettings(
            comparisons=self.comparisons,
            first_share=self.first_share,
            schedule=self.schedule,
            ask_until=self.ask_until,
            batch=self.batch,
            segment_length=self.segment_length,
            options=self.options,
            pairs=self.pairs,
            across_time=self.across_time,
            candidates=self.candidates,
            past_the_end=self.terminal == "judged",
            task=self.task,
            members=self.members,
            careless=self.careless,
            reliability=self.reliability,
            normalise=self.normalise_model,
            passes=self.passes,
            lr=self.reward_lr,
            hiddens=tuple(self.reward_hiddens),
        )

    def label(self, rollout: Rollout, critic: Critic) -> Columns:
        ends_count = self.terminal == "zero"
        if self.terminal == "judged":
            ends_count = critic.ends_are_judged()
        rewards = critic.learnt_rewards(rollout, relative_to_end=ends_count and self.terminal == "judged")
        rollout = replace(rollout, rewards=rewards)
        if not ends_count:  # as if the episode went on, somewhere out of sight
            rollout = replace(
                rollout,
                terminated=np.zeros_like(rollout.terminated),
                truncated=rollout.truncated | rollout.terminated,
            )
        return super().label(rollout, critic)
