"""ThriftyDAgger: the expert is called where a state is novel or risky, as often as a budget allows
(Hoque et al., 2021, "ThriftyDAgger: Budget-Aware Novelty and Risk Gating for Interactive Imitation
Learning").

Novelty is the variance of an ensemble's actions. Risk is a critic's discounted probability of failure,
F(s, a) = E[γ^k] for k steps until the episode fails, fitted by temporal differences to the newest
transitions, labelled or not; the paper has it as 1 − the probability of success, which fits tasks with a
goal. The expert is called above the (1 − `budget`) quantiles of both over the states that were visited
lately, and hands back when the novice's action is as near to its own as it is on average in D, and the risk
is below its median (section 4.3). In the paper that is all, and the budget one of calls: what an expert who
stays for many steps attends is several times as much. Here it is not called, either, while it has attended
`budget` of the steps. Only the expert's own steps are labelled. It alone acts in round 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.methods._base import Columns, Policy
from learner.methods._takeover import ENSEMBLE, EnsembleTakeover
from tutelage.errors import ConfigError

Failure = Literal["terminated", "punished"]


@dataclass(frozen=True)
class ThriftyDAgger(EnsembleTakeover):
    """DAgger that calls the expert for a share of the steps."""

    rule: ClassVar = "thrifty"
    limits: ClassVar = ("budget",)
    model: ClassVar = {**ENSEMBLE, "risk": True}
    ranges: ClassVar = {"budget": (0, 1), "gamma": (0, 1)}
    recent_rows: ClassVar = 50_000

    budget: float = 0.3  # share of the steps, after the first rounds, that the expert attends
    gamma: float = 0.97  # discount of failures to come
    failure: Failure = "terminated"  # punished: by a negative reward at the end

    def __post_init__(self) -> None:
        if self.failure not in get_args(Failure):
            raise ConfigError(
                f"method.failure: {self.failure!r} is not one of {', '.join(get_args(Failure))}"
            )

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        nll, figures = super().loss(policy, minibatch)
        if "recent" not in minibatch:  # a resumed run before it has collected
            return nll, figures
        risk = self.risk_loss(policy, minibatch["recent"])
        return nll + risk, {**figures, "risk_loss": risk.detach()}

    def risk_loss(self, policy: Policy, recent: Columns) -> Tensor:
        """Cross-entropy of F(s, a) and its target: 1 at a failure, 0 at another end, else γ F(s', π(s'))."""
        ended = recent["terminated"]
        failed = ended if self.failure == "terminated" else ended & (recent["reward"] < 0)
        with torch.no_grad():
            to_come = policy.risk(recent["next_obs"], policy.actions(recent["next_obs"]))
            target = torch.where(ended, failed.float(), self.gamma * to_come)
        return F.binary_cross_entropy_with_logits(
            policy.risk_logits(recent["obs"], recent["actions"]), target
        )

    def settle(self, policy: Policy, sample: Columns) -> None:
        visited = sample["recent"]["obs"]
        doubt, risk = policy.doubt(visited), policy.risk(visited, policy.actions(visited))
        apart = policy.difference(policy.actions(sample["obs"]), sample["actions"])
        policy.set_limits(
            doubt=doubt.quantile(1 - self.budget),
            risk=risk.quantile(1 - self.budget),
            difference=apart.mean(),
            calm=risk.median(),
        )
