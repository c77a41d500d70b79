"""What the methods share in which the expert takes over by a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, poisson

from learner.losses import Params, log_prob
from learner.methods._base import Columns, Policy
from learner.methods.bc import BC
from tutelage.types import TakeoverRule


@dataclass(frozen=True)
class Takeover(BC):
    """DAgger's loop with another rule of who acts; the expert alone acts in the first rounds."""

    rule: ClassVar[str]  # of actors.takeover
    limits: ClassVar[tuple[str, ...]] = ()  # the settings that the rule takes

    ranges: ClassVar = {"expert_rounds": (1, math.inf)}

    expert_rounds: int = 1

    def beta_at(self, i: int) -> float:
        return float(i < self.expert_rounds)

    def rule_at(self, i: int) -> TakeoverRule | None:
        if i < self.expert_rounds:
            return None
        return TakeoverRule(self.rule, {name: getattr(self, name) for name in self.limits})


ENSEMBLE: Mapping[str, Any] = {"log_std_init": -1.0, "members": 5}


@dataclass(frozen=True)
class EnsembleTakeover(Takeover):
    """The same with a novice of several members."""

    model: ClassVar = ENSEMBLE

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        """−log π_m(a|s), each member m on its own resampling of the minibatch: how often a row counts is
        drawn from a Poisson distribution of mean 1 (online bagging; Oza & Russell, 2001). A sum over the
        members, so that the step of one does not depend on how many there are."""
        params = policy.members(minibatch["obs"])
        nll = member_losses(params, minibatch["actions"], policy)
        counts = poisson(torch.ones_like(nll))
        loss = (nll * counts).mean(1).sum()
        return self.with_bonus(loss, params, policy, {"loss": nll.detach().mean()})


def member_losses(params: Params, actions: Tensor, policy: Policy) -> Tensor:
    """−log π_m(a|s) [M, N] of `actions` [N, ...] under the parameters of M members."""
    if isinstance(params, tuple):
        return -log_prob(params, actions, policy.distribution, policy.nvec)
    repeated = actions.repeat(len(params), *[1] * (actions.ndim - 1))
    flat = -log_prob(params.flatten(0, 1), repeated, policy.distribution, policy.nvec)
    return flat.unflatten(0, (len(params), -1))
