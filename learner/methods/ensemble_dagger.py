"""EnsembleDAgger: the novice acts where its members agree and are near the expert (Menda, Driggs-Campbell &
Kochenderfer, 2019, "EnsembleDAgger: A Bayesian Approach to Safe Imitation Learning").

Algorithm 2 of the paper: with the mean action of an ensemble of policies, its variance (doubt) and the
distance to the expert's action (discrepancy), the novice acts if the discrepancy is at most τ and the doubt
at most χ, otherwise the expert. All visited states are labelled, so no labels are saved: what is gained is
that the novice practises without leaving what it knows. The expert alone acts in round 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from learner.methods._takeover import EnsembleTakeover


@dataclass(frozen=True)
class EnsembleDAgger(EnsembleTakeover):
    """DAgger with a novice that acts only where it is sure and right."""

    rule: ClassVar = "doubtful"
    limits: ClassVar = ("discrepancy", "doubt")
    ranges: ClassVar = {"discrepancy": (0, math.inf), "doubt": (0, math.inf)}

    discrepancy: float = 0.1  # τ, mean squared difference of action components, in half ranges
    doubt: float = 0.02  # χ, mean variance of action components over the members, in half ranges
