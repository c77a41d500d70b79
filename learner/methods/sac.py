"""Soft actor-critic (Haarnoja et al., 2018, "Soft Actor-Critic Algorithms and Applications").

Every transition is learnt from again and again: fewer environment steps than PPO takes, and more computing
for each. Two critics fit the soft value of an action,

    Q(s, a) ← r + γ (min_i Q'_i(s', a') − α log π(a'|s')),   a' ~ π(·|s')

and the policy, the tanh of a gaussian within the bounds of the action space, descends
α log π(a|s) − min_i Q_i(s, a). The weight α is learnt so that the entropy stays near −1 per component.

All three descend at once, in one step of one optimiser: the critics' gradient comes from their own loss
alone, the policy's from its own. The usual order is critics first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learner.losses import squashed_sample
from learner.methods._base import Columns, Policy, Replaying


@dataclass(frozen=True)
class SAC(Replaying):
    """Off-policy reinforcement learning on the environment's reward."""

    training: ClassVar = {"lr": 3e-4, "minibatch_size": 256, "grad_clip": None}
    model: ClassVar = {"critics": True, "fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
    ranges: ClassVar = {**dict.fromkeys(("gamma", "target_rate"), (0, 1)), "initial_alpha": (1e-6, math.inf)}

    gamma: float = 0.99  # discount
    target_rate: float = 0.005  # share of the way that the target critics go in an update
    initial_alpha: float = 1.0  # weight of the entropy, which is learnt
    target_entropy: float | None = None  # in nats; None: −1 per component of an action

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        critics, noise = policy.critics, minibatch["noise"]
        alpha = self.initial_alpha * critics.log_alpha.exp()
        obs, taken, following = minibatch["obs"], minibatch["actions"], minibatch["next_obs"]
        with torch.no_grad():
            chosen, logp = squashed_sample(policy.policy(following), noise[:, 1])
            soft = critics.target(following, chosen).min(0).values - alpha * logp
            target = minibatch["reward"] + self.gamma * minibatch["goes_on"] * soft
        values = critics(obs, taken)
        critic_loss = 0.5 * (values - target).square().mean(-1).sum()
        chosen, logp = squashed_sample(policy.policy(obs), noise[:, 0])
        best = critics.frozen(obs, chosen).min(0).values
        actor_loss = (alpha.detach() * logp - best).mean()
        goal = -float(taken.shape[-1]) if self.target_entropy is None else self.target_entropy
        alpha_loss = -critics.log_alpha * (logp.detach().mean() + goal)
        return critic_loss + actor_loss + alpha_loss, {
            "loss": actor_loss.detach(),
            "value_loss": critic_loss.detach(),
            "entropy": -logp.detach().mean(),
            "alpha": alpha.detach(),
            "value": values.detach().mean(),
        }

    @torch.no_grad()
    def stepped(self, policy: Policy) -> None:
        policy.critics.follow(self.target_rate)
