"""SafeDAgger: the expert acts, and is asked, only where a classifier says that the novice would err
(Zhang & Cho, 2017, "Query-Efficient Imitation Learning for End-to-End Simulated Driving").

Beside the policy π a safety policy c(s) is trained to predict whether ‖π(s) − π*(s)‖² > τ, which needs no
expert when it is used. Differences from the paper: c is fitted along with π to the same minibatches, its
targets being π's errors at that moment; a share of D, chosen by the observation itself, is kept from π, as
the paper's D_safe, so that c sees errors that π was not trained to avoid. The expert alone acts in round 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import tree
from torch import Tensor
from torch.nn import functional as F

from learner.losses import log_prob
from learner.methods._base import Columns, Policy
from learner.methods._takeover import Takeover
from tutelage.types import Tree


@dataclass(frozen=True)
class SafeDAgger(Takeover):
    """DAgger that asks where a learnt safety policy expects an error."""

    rule: ClassVar = "safe"
    model: ClassVar = {"log_std_init": -1.0, "danger": True}
    ranges: ClassVar = {"tau": (0, math.inf), "held_out": (0, 0.9)}

    tau: float = 0.01  # an error: the mean squared difference of action components, in half ranges
    held_out: float = 0.1  # share of D that only the safety policy learns from

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        obs, actions = minibatch["obs"], minibatch["actions"]
        held_out = fractions(obs) < self.held_out
        params = policy.policy(obs)
        nll = -log_prob(params, actions, policy.distribution, policy.nvec)
        nll = (nll * ~held_out).sum() / (~held_out).sum().clamp(min=1)
        errs = (policy.difference(policy.actions(obs).detach(), actions) > self.tau).float()
        safety = F.binary_cross_entropy_with_logits(policy.danger_logits(obs), errs)
        figures = {"loss": nll.detach(), "safety_loss": safety.detach(), "errors": errs.mean()}
        return self.with_bonus(nll + safety, params, policy, figures)


def fractions(obs: Tree) -> Tensor:
    """A number in [0, 1) for each observation [N], as good as random and always the same."""
    flat = torch.cat([leaf.reshape(len(leaf), -1).double() for leaf in tree.flatten(obs)], dim=1)
    weights = torch.sin(torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device))
    return (1e4 * torch.sin(flat @ weights + 1)).remainder(1)
