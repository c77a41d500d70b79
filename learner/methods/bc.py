"""Behaviour cloning: imitate the expert in the states that the expert visits (Pomerleau, 1989).

Minimises −log π(a|s) over demonstrations. Its cost grows with the square of the horizon: where the clone errs
with probability ε a step, J(π) ≤ J(π*) + ε T² (Ross & Bagnell, 2010), since an error leads to states that no
demonstration shows.

The demonstrations come from files (`demonstrations`), from the expert itself, which then acts in every step
(β = 1), or from both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from learner.losses import Params, entropy, log_prob
from learner.methods._base import Columns, Method, Policy


@dataclass(frozen=True)
class BC(Method):
    """Behaviour cloning of demonstrations or of an expert that acts."""

    learns_from = "dataset"
    asks = True
    training: ClassVar = {"lr": 3e-3, "minibatch_size": 128, "num_epochs": 8}
    model: ClassVar = {"log_std_init": -1.0}
    ranges: ClassVar = {"anneal_to": (0, 1), "entropy_coefficient": (0, math.inf)}

    demonstrations: str | None = None  # a file, a folder of them, or a run to start from
    anneal_to: float = (
        0.1  # share of the learning rate at each fit's end, that validation sees a settled policy
    )
    entropy_coefficient: float = 0.0  # bonus for random policies; 1e-3 keeps a gaussian from collapsing

    def beta_at(self, i: int) -> float:
        return 1.0

    def lr_share(self, progress: float) -> float:
        return 1 - (1 - self.anneal_to) * progress

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        params = policy.policy(minibatch["obs"])
        nll = -log_prob(params, minibatch["actions"], policy.distribution, policy.nvec).mean()
        return self.with_bonus(nll, params, policy, {"loss": nll.detach()})

    def with_bonus(
        self, loss: Tensor, params: Params, policy: Policy, figures: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss minus the bonus for entropy, and what is reported."""
        if not self.entropy_coefficient:
            return loss, figures
        h = entropy(params, policy.distribution, policy.nvec).mean()
        return loss - self.entropy_coefficient * h, {**figures, "entropy": h.detach()}
