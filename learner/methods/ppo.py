"""PPO: reinforcement learning as usual, by the clipped surrogate (Schulman et al., 2017).

Maximises E[min(ρ A, clip(ρ, 1−ε, 1+ε) A)] with advantages by GAE (Schulman et al., 2016). Details that
matter on MuJoCo (Engstrom et al., 2020; Andrychowicz et al., 2021), all here: observations normalised by
running moments, rewards divided by the running standard deviation of the discounted return, advantages
normalised per minibatch, orthogonal weights, small last layer, actions clipped only at the environment.

Departures: log π_old comes with the rollouts, from the runner whose policy drew the actions, so the ratio is
right for rollouts of an older policy too; observation moments are frozen while rollouts are learned from,
but for the first ones; a time limit is bootstrapped from the final observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.losses import approximate_kl, clipped_surrogate, entropy, generalized_advantages, log_prob
from learner.methods._base import Columns, Critic, Method, Policy, each
from tutelage.errors import TrainingError
from tutelage.types import Rollout


@dataclass(frozen=True)
class PPO(Method):
    """Proximal policy optimisation on the environment's own reward."""

    explores = True
    needs_value = True
    training: ClassVar = {"lr": 3e-4, "minibatch_size": 256, "num_epochs": 10, "grad_clip": 0.5}
    ranges: ClassVar = {
        **dict.fromkeys(("gamma", "lambda_", "clip"), (0, 1)),
        **dict.fromkeys(("value_coefficient", "entropy_coefficient", "value_first"), (0, math.inf)),
    }

    gamma: float = 0.99  # discount
    lambda_: float = 0.95  # of GAE
    clip: float = 0.2  # ε of the surrogate
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    normalise_rewards: bool = True
    normalise_advantages: bool = True
    warm_start: str | None = None  # a policy to begin with: a run of bc or dagger, a policy file, a name
    value_first: int = 0  # updates of the value function alone, before the policy changes

    def label(self, rollout: Rollout, critic: Critic) -> Columns:
        if rollout.logp is None:
            origin = rollout.provenance
            raise TrainingError(
                f"the rollout of runner {origin.runner} in round {origin.round} has no log-probabilities of "
                "its actions; PPO learns from rollouts that its policy sampled (explore=True, beta=0)"
            )
        T, B = rollout.shape
        values = critic.values(rollout.obs, leading=(T + 1, B))
        advantages = self.advantages(rollout, critic, values)
        returns = advantages + values[:-1]
        bonus = torch.full_like(advantages, self.entropy_coefficient)
        if critic.updates() < self.value_first:  # a policy that began well is not to unlearn it
            advantages, bonus = torch.zeros_like(advantages), torch.zeros_like(bonus)
        columns = {
            "obs": each(lambda leaf: critic.tensor(leaf[:-1]), rollout.obs),
            "actions": critic.tensor(rollout.actions),
            "logp": critic.tensor(rollout.logp),
            "advantages": advantages,
            "returns": returns,
            "bonus": bonus,
        }
        if rollout.valid is None:
            return each(lambda x: x.flatten(0, 1), columns)
        valid = critic.tensor(rollout.valid)
        return each(lambda x: x[valid], columns)

    def advantages(self, rollout: Rollout, critic: Critic, values: Tensor) -> Tensor:
        """GAE [T, B] from the values [T+1, B] of all observations and those of the final ones."""
        if self.normalise_rewards:
            rewards = critic.scale_rewards(rollout, self.gamma)
        else:
            rewards = critic.tensor(rollout.rewards)
        next_values = values[1:].clone()
        if len(rollout.final_t):
            final = critic.tensor(rollout.final_t).long(), critic.tensor(rollout.final_b).long()
            next_values[final] = critic.values(rollout.final_obs, leading=(len(rollout.final_t),))
        terminated = critic.tensor(rollout.terminated)
        ends = terminated | critic.tensor(rollout.truncated)
        return generalized_advantages(
            rewards, values[:-1], next_values, terminated, ends, gamma=self.gamma, lambda_=self.lambda_
        )

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        params, values = policy.policy_and_value(minibatch["obs"])
        logp = log_prob(params, minibatch["actions"], policy.distribution, policy.nvec)
        log_ratio = logp - minibatch["logp"]
        advantages = minibatch["advantages"]
        if self.normalise_advantages:
            std, mean = torch.std_mean(advantages, correction=0)
            advantages = (advantages - mean) / (std + 1e-8)
        surrogate = clipped_surrogate(log_ratio, advantages, clip=self.clip)
        value_loss = 0.5 * F.mse_loss(values, minibatch["returns"])
        h = entropy(params, policy.distribution, policy.nvec)
        loss = surrogate + self.value_coefficient * value_loss - (minibatch["bonus"] * h).mean()
        return loss, {
            "loss": surrogate.detach(),
            "value_loss": value_loss.detach(),
            "entropy": h.detach().mean(),
            "kl": approximate_kl(log_ratio.detach()),
        }
