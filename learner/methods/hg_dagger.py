"""HG-DAgger: whoever watches takes over when it has to be, and hands back at will (Kelly, Sidrane,
Driggs-Campbell & Kochenderfer, 2019, "HG-DAgger: Interactive Imitation Learning with Human Experts").

A gate that is the human's own, not a coin's (β), lets people feel in control, so that their actions are
worth imitating: D gets the states in which the expert acted, and only those. The expert watches every step;
it has to know how to take over (`tutelage.protocols.Supervisor`). Like the paper's, the novice is an
ensemble; the paper's threshold of doubt, which says in which states not to let it alone, is not computed. The
expert alone acts in round 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learner.methods._takeover import EnsembleTakeover


@dataclass(frozen=True)
class HGDAgger(EnsembleTakeover):
    """DAgger with a person's own gate."""

    rule: ClassVar = "human_gated"
    needs_supervisor: ClassVar = True
