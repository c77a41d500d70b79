"""Rules by which an expert takes over, beside the β-mixture: names for `SampleRequest.rule`.

What a novice thinks of itself (doubt, danger, risk) comes from the module that acts, whose weights and limits
travel with each request; the methods that train it are in `learner.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from actors.mixture import Controller, Turn
from tutelage.policy import difference, unit_of
from tutelage.protocols import Supervisor
from tutelage.types import Array, TakeoverRule


@dataclass
class Safe:
    """SafeDAgger: the expert acts where a classifier says that the novice would err (Zhang & Cho, 2017).

    Only those states are labelled.
    """

    unit: Array | None  # of differences between actions
    watches: bool = False

    def __call__(self, turn: Turn) -> Array:
        return turn.judge.danger(turn.obs) > 0.5


@dataclass
class Doubtful:
    """EnsembleDAgger: the novice acts only where it is near the expert and its members agree (Menda et al.,
    2019, algorithm 2). Every state is labelled: the discrepancy rule needs the expert's action.
    """

    unit: Array | None
    discrepancy: float  # τ
    doubt: float  # χ
    watches: bool = False

    def __call__(self, turn: Turn) -> Array:
        actions = turn.ask(np.ones(len(turn.began), bool))
        far = difference(turn.novice, actions, self.unit) > self.discrepancy
        return far | (turn.judge.doubt(turn.obs) > self.doubt)


@dataclass
class Thrifty:
    """ThriftyDAgger: the expert is called where the state is novel or the novice at risk, within a budget,
    and hands back when the novice would do about the same and is out of risk (Hoque et al., 2021, section 4).

    The limits are quantiles that the learner sets. The step in which the expert hands back is still its own.
    Only what it does is labelled. Nobody calls while it has attended `budget` of all steps; where more call
    than are left, the riskiest are heard. Who has it keeps it, so at most the calls under way are too many.
    """

    unit: Array | None
    budget: float  # share of the steps that the expert attends
    watches: bool = False
    _holds: Array | None = field(default=None, repr=False)  # [B] bool, the expert has been called
    _left: float = field(default=0.0, repr=False)  # steps that it may attend

    def __call__(self, turn: Turn) -> Array:
        limits = turn.judge.limits()
        risk = turn.judge.risk(turn.obs, turn.novice)
        held = np.zeros(len(risk), bool) if self._holds is None else self._holds & ~turn.began
        self._left += self.budget * len(risk) - held.sum()
        wants = (turn.judge.doubt(turn.obs) > limits["doubt"]) | (risk > limits["risk"])
        calls = _first(wants & ~held, risk, math.ceil(self._left))
        self._left -= calls.sum()
        near = difference(turn.novice, turn.ask(held), self.unit) <= limits["difference"]
        self._holds = np.where(held, ~near | (risk > limits["calm"]), calls)
        return held | calls


def _first(mask: Array, risk: Array, most: int) -> Array:
    """Of `mask` [B] the `most` with the greatest risk."""
    order = np.argsort(np.where(mask, -risk, np.inf), kind="stable")
    kept = np.zeros(len(mask), bool)
    kept[order[: max(most, 0)]] = True
    return kept & mask


@dataclass
class HumanGated:
    """HG-DAgger: whoever watches takes over and hands back at will (Kelly et al., 2019).

    Only what the expert does is labelled.
    """

    unit: Array | None
    watches: bool = True

    def __call__(self, turn: Turn) -> Array:
        assert isinstance(turn.oracle, Supervisor)
        return turn.oracle.takes_over(turn.obs, turn.novice, turn.began)


RULES: Mapping[str, type] = {
    "safe": Safe,
    "doubtful": Doubtful,
    "thrifty": Thrifty,
    "human_gated": HumanGated,
}


def controller_of(rule: TakeoverRule, action_space: gym.Space) -> Controller:
    """The controller that the rule names."""
    return RULES[rule.name](unit_of(action_space), **rule.settings)
