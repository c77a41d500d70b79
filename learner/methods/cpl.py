"""CPL: a policy from preferences without a reward between them (Hejna et al., 2024, "Contrastive Preference
Learning: Learning from Human Feedback without RL").

People judge by regret, not by return: the better segment is the one whose actions are nearer to the best ones
(Knox et al., 2022). In maximum-entropy RL the optimal advantage is α log π*(a|s), so a preference is a
statement about the policy itself, and learning is supervised (eq. 5 with the bias λ of section 3.2):

    P(A before B) = e^{S(A)} / (e^{S(A)} + e^{λ S(B)}),   S = Σ_t γ^t α log π(a_t|s_t)

No RL, no reward, no value function: rollouts are there to be asked about. Unlike the paper's, which learns
from a fixed set, this policy acts, and is asked about what it did; the paper's behaviour cloning of all
segments is the term `cloning`, which keeps the policy near what has been judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learner.losses import log_prob
from learner.methods._asking import Asking
from learner.methods._base import Columns, Policy, each
from learner.pairs import BY_MODEL
from tutelage.errors import ConfigError


@dataclass(frozen=True)
class CPL(Asking):
    """Contrastive preference learning."""

    learns_from = "comparisons"
    explores = True
    training: ClassVar = {"lr": 3e-4, "minibatch_size": 64, "num_epochs": 10, "grad_clip": 0.5}
    model: ClassVar = {"log_std_init": -0.5}
    ranges: ClassVar = {
        **dict.fromkeys(("alpha", "cloning"), (0, math.inf)),
        **dict.fromkeys(("conservative", "gamma"), (0, 1)),
    }

    schedule: str = "hyperbolic"
    across_time: bool = True
    alpha: float = 0.1  # α, temperature
    conservative: float = 0.5  # λ, below 1: the policy stays near the preferred actions that were seen
    gamma: float = 1.0  # discount within a segment
    cloning: float = 0.01  # weight of −log π of all actions

    fits_reward: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, needing in (("pairs", BY_MODEL), ("schedule", ("accuracy",))):
            if getattr(self, name) in needing:
                raise ConfigError(f"method.{name}: {getattr(self, name)} needs a reward model; cpl has none")

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        weights, played = minibatch["weights"], ~minibatch["ended"]  # [n, K], [n, K, L]
        flat = each(lambda x: x.flatten(0, 2), minibatch["obs"])
        params = policy.policy(flat)
        logp = log_prob(params, minibatch["actions"].flatten(0, 2), policy.distribution, policy.nvec)
        logp = logp.unflatten(0, played.shape) * played
        discount = self.gamma ** torch.arange(played.shape[-1], device=logp.device)
        scores = self.alpha * (discount * logp).sum(-1)
        # option k against the others, which count λ: −Σ_k w_k log (e^{S_k} / (e^{S_k} + Σ_{j≠k} e^{λ S_j}))
        own = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
        against = torch.where(own, scores[:, :, None], self.conservative * scores[:, None, :])
        contrast = -(weights * (scores - against.logsumexp(-1))).sum(-1).mean()
        cloning = -(logp.sum() / played.sum())
        decided = weights.max(-1).values > weights.mean(-1) + 1e-6
        right = (scores.argmax(-1) == weights.argmax(-1)) & decided
        accuracy = right.sum() / decided.sum().clamp(min=1)
        loss = contrast + self.cloning * cloning
        return loss, {"loss": contrast.detach(), "nll": cloning.detach(), "accuracy": accuracy}
