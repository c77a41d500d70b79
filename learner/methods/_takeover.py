"""What the methods share in which the expert takes over by a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, poisson

from learner.losses import log_prob
from learner.methods._base import Columns, Policy, each
from learner.methods.bc import BC
from tutelage.types import TakeoverRule


@dataclass(frozen=True)
class Takeover(BC):
    """DAgger's loop with another rule of who acts; the expert alone acts in the first rounds."""

    rule: ClassVar[str]  # of actors.takeover
    limits: ClassVar[tuple[str, ...]] = ()  # the settings that the rule takes

    expert_rounds: int = 1

    def beta_at(self, i: int) -> float:
        return float(i < self.expert_rounds)

    def rule_at(self, i: int) -> TakeoverRule | None:
        if i < self.expert_rounds:
            return None
        return TakeoverRule(self.rule, {name: getattr(self, name) for name in self.limits})


ENSEMBLE: Mapping[str, Any] = {"log_std_init": -1.0, "members": 5}


def ensemble_loss(policy: Policy, minibatch: Columns) -> tuple[Tensor, dict[str, Tensor]]:
    """−log π_m(a|s), each member m on its own resampling of the minibatch: how often a row counts is drawn
    from a Poisson distribution of mean 1 (online bagging; Oza & Russell, 2001). A sum over the members, so
    that the step of one does not depend on how many there are."""
    params = policy.members(minibatch["obs"])
    gaussian = isinstance(params, tuple)
    M = len(params[0] if gaussian else params)
    actions = minibatch["actions"]
    if gaussian:
        nll = -log_prob(params, actions, policy.distribution, policy.nvec)  # [M, N]
    else:
        repeated = each(lambda x: x.repeat(M, *[1] * (x.ndim - 1)), actions)
        flat = -log_prob(params.flatten(0, 1), repeated, policy.distribution, policy.nvec)
        nll = flat.unflatten(0, (M, -1))
    counts = poisson(nll.new_ones(nll.shape))
    loss = (nll * counts).mean(1).sum()
    return loss, {"loss": nll.detach().mean()}
