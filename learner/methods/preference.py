"""Reinforcement learning from preferences between segments (Christiano et al., 2017).

Somebody compares two stretches of what the policy does; a reward model is fitted so that the preferred one
has the larger return (Bradley–Terry); the policy maximises the model's reward by PPO. The three go on at the
same time: `services.preferences` asks and fits, `learner.reward_model` has the model, and here is what the
policy makes of it.

An end of an episode is a trap: a Bradley–Terry reward has a free offset, which makes ending good or bad at
random. So what is after an end is either judged like all else, or made to play no part (`terminal`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from learner.methods._asking import LearnsReward
from learner.methods._base import Columns, Critic
from learner.methods.ppo import PPO
from tutelage.types import Rollout


@dataclass(frozen=True)
class Preference(PPO, LearnsReward):
    """PPO on a reward that is learnt from comparisons."""

    def label(self, rollout: Rollout, critic: Critic) -> Columns:
        ends_count, relative_to_end = self.ends(critic)
        rewards = critic.learnt_rewards(rollout, relative_to_end=relative_to_end)
        rollout = replace(rollout, rewards=rewards)
        if not ends_count:  # as if the episode went on, somewhere out of sight
            rollout = replace(
                rollout,
                terminated=np.zeros_like(rollout.terminated),
                truncated=rollout.truncated | rollout.terminated,
            )
        return super().label(rollout, critic)
