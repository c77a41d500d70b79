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
from typing import ClassVar, Literal

import numpy as np

from learner.methods._asking import Asking
from learner.methods._base import Columns, Critic
from learner.methods.ppo import PPO
from learner.reward_learner import RewardSettings
from tutelage.types import Rollout

Terminal = Literal["judged", "ignored", "zero"]


@dataclass(frozen=True)
class Preference(PPO, Asking):
    """PPO on a reward that is learnt from comparisons."""

    ranges: ClassVar = {"members": (1, math.inf), "passes": (1, math.inf), "careless": (0, 1)}

    terminal: Terminal = "judged"  # an end: judged by those who compare, ignored, or worth zero
    members: int = 3  # of the reward ensemble
    careless: float = 0.1  # probability of an answer at random
    reliability: bool = False  # estimate that probability for each annotator
    normalise_model: bool = True  # the learnt reward: mean 0, standard deviation 1, each member
    passes: int = 10  # of a refit over all comparisons
    reward_lr: float = 1e-3
    reward_hiddens: tuple[int, ...] = (64, 64)

    @property
    def past_the_end(self) -> bool:
        return self.terminal == "judged"

    def reward_settings(self) -> RewardSettings:
        return replace(
            super().reward_settings(),
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
