"""DAgger: practise, ask the expert about every visited state, aggregate, refit (Ross et al., 2011).

Algorithm 3.1 of the paper: for i = 1..N let π_i = β_i π* + (1−β_i) π̂_i, sample trajectories of π_i, get
D_i = {(s, π*(s))} of the states visited, D ← D ∪ D_i, train π̂_{i+1} on D; return the best π̂_i on validation.
The cost grows as ε T, not ε T²: the learner is trained on the states that it visits itself.

Differences from the paper: π̂ is refitted from the previous round's weights, not from scratch; rounds here
count from 0, and with `beta: "i == 0"`, the paper's parameter-free choice, the expert acts in round 0 only;
people never act unless β says so, since each step would wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learner.methods.bc import BC
from tutelage.schedules import schedule


@dataclass(frozen=True)
class DAgger(BC):
    """Dataset aggregation under the β-mixture of expert and learner."""

    with_people: ClassVar = {"beta": 0.0}

    beta: float | str = "i == 0"  # a number, linear(15), exponential(0.5), or an expression in the round i

    def beta_at(self, i: int) -> float:
        return schedule(self.beta)(i)
