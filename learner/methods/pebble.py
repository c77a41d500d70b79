"""PEBBLE: preferences with few labels, off-policy (Lee, Smith & Abbeel, 2021, "PEBBLE: Feedback-Efficient
Interactive Reinforcement Learning via Relabeling Experience and Unsupervised Pre-training").

Three things over `preference`:

1. Before anybody is asked, the policy explores by itself, with the novelty of a state for a reward: the
   distance to its k-th nearest neighbour among what was collected, a particle estimate of the entropy of the
   states (section 4.1; log(1 + distance) as in Liu & Abbeel, 2021, and 1,024 neighbours drawn anew for each
   update instead of all). The first questions are then about things that differ.
2. The policy learns by SAC from all that was ever collected.
3. Rewards are what the newest model makes of them, whenever a transition is drawn (section 4.3).

Where the reward begins, the critics begin anew, as in the authors' programs, and so does Adam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from learner.methods._asking import LearnsReward
from learner.methods._base import Critic, Policy
from learner.methods.sac import SAC
from learner.reward_learner import RewardSettings
from tutelage.errors import ConfigError
from tutelage.types import Tree


@dataclass(frozen=True)
class Pebble(SAC, LearnsReward):
    """SAC on a reward that is learnt from comparisons, after exploring by itself."""

    begins_without_reward: ClassVar = True
    ranges: ClassVar = {"explore_steps": (0, math.inf), "neighbour": (1, math.inf)}

    explore_steps: int = 9_000  # environment steps before the first question
    neighbour: int = 5  # the k of the k-th nearest one

    def reward_settings(self) -> RewardSettings:
        settings = super().reward_settings()
        if self.explore_steps >= settings.ask_until:
            raise ConfigError(
                f"method.explore_steps: {self.explore_steps} steps without a question leave none of the "
                f"{settings.ask_until} by which all are to be asked; set it to less or stop.env_steps to more"
            )
        return replace(settings, ask_from=self.explore_steps)

    def relabelled(self, columns: dict[str, Tree], critic: Critic) -> dict[str, Tree]:
        if not critic.has_reward():
            novelty = np.log1p(critic.novelty(columns["obs"], k=self.neighbour))
            return {**columns, "reward": (novelty / max(float(novelty.std()), 1e-6)).astype(np.float32)}
        ends_count, relative_to_end = self.ends(critic)
        rewards = critic.mean_rewards(columns["obs"], columns["actions"], relative_to_end=relative_to_end)
        return {**columns, "reward": rewards, "terminated": columns["terminated"] & ends_count}

    def reward_begins(self, policy: Policy) -> None:
        policy.critics.begin_anew()
