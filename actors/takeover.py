"""Rules by which an expert takes over, beside the β-mixture: names for `SampleRequest.rule`.

What a novice thinks of itself (doubt, danger, risk) comes from the module that acts, whose weights and limits
travel with each request; the methods that train it are in `learner.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from actors.mixture import Controller, Turn
from tutelage.errors import OracleError
from tutelage.policy import difference
from tutelage.protocols import Supervisor
from tutelage.types import Array, TakeoverRule


@dataclass
class Safe:
    """SafeDAgger: the expert acts where a classifier says that the novice would err (Zhang & Cho, 2017).

    Only those states are labelled.
    """

    action_space: gym.Space
    watches: bool = False

    def __call__(self, turn: Turn) -> Array:
        return turn.judge("danger", turn.obs) > 0.5


@dataclass
class Doubtful:
    """EnsembleDAgger: the novice acts only where it is near the expert and its members agree (Menda et al.,
    2019, algorithm 2). Every state is labelled: the discrepancy rule needs the expert's action.
    """

    action_space: gym.Space
    discrepancy: float  # τ
    doubt: float  # χ
    watches: bool = False

    def __call__(self, turn: Turn) -> Array:
        actions = turn.ask(np.ones(len(turn.began), bool))
        far = difference(turn.novice, actions, self.action_space) > self.discrepancy
        return far | (turn.judge("doubt", turn.obs) > self.doubt)


@dataclass
class Thrifty:
    """ThriftyDAgger: the expert is called where the state is novel or the novice at risk, within a budget,
    and hands back when the novice would do about the same and is out of risk (Hoque et al., 2021, section 4).

    The limits are quantiles that the learner sets. Only what the expert does is labelled.
    """

    action_space: gym.Space
    watches: bool = False
    _by_expert: Array | None = field(default=None, repr=False)  # [B] bool

    def __call__(self, turn: Turn) -> Array:
        limits = turn.judge.limits()
        risk = turn.judge("risk", turn.obs, turn.novice)
        takes = (turn.judge("doubt", turn.obs) > limits["doubt"]) | (risk > limits["risk"])
        if self._by_expert is not None:
            held = self._by_expert & ~turn.began
            near = difference(turn.novice, turn.ask(held), self.action_space) < limits["difference"]
            takes = np.where(held, ~near | (risk > limits["calm"]), takes)
        self._by_expert = takes
        return takes


@dataclass
class HumanGated:
    """HG-DAgger: whoever watches takes over and hands back at will (Kelly et al., 2019).

    Only what the expert does is labelled.
    """

    action_space: gym.Space
    watches: bool = True

    def __call__(self, turn: Turn) -> Array:
        if not isinstance(turn.oracle, Supervisor):
            raise OracleError("this expert does not take over by itself; one that does is watching:WORD")
        return turn.oracle.takes_over(turn.obs, turn.novice, turn.began)


RULES: Mapping[str, type] = {
    "safe": Safe,
    "doubtful": Doubtful,
    "thrifty": Thrifty,
    "human_gated": HumanGated,
}


def controller_of(rule: TakeoverRule, action_space: gym.Space) -> Controller:
    """The controller that the rule names."""
    return RULES[rule.name](action_space, **rule.settings)
