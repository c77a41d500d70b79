"""The β-mixture: the expert acts with probability β, the novice otherwise (Ross, Gordon & Bagnell, 2011).

It is one rule of who acts; others are in `actors.takeover`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from actors.forward import Judge
from tutelage.protocols import Oracle
from tutelage.types import Array, Tree


@dataclass(frozen=True)
class Turn:
    """What is known before a vector step, and who can be asked."""

    obs: Tree  # [B, ...]
    novice: Array  # [B, ...] what the novice would do
    began: Array  # [B] bool, this is the first step of an episode
    rng: np.random.Generator
    ask: Callable[[Array], Array]
    """Of a mask [B] bool: what the expert would do [B, ...] there. Its answers are labels; other rows hold
    nothing of meaning."""
    judge: Judge  # what the novice thinks of itself
    oracle: Oracle


class Controller(Protocol):
    """A rule by which the expert takes over. Asked once a vector step for a mask [B] bool: the expert acts.

    It sees the same B environments in every call and may remember what it said. Whoever acts by its word is
    asked, if it has not been.
    """

    watches: bool
    """The expert has to see every step, also those in which it is not asked."""

    def __call__(self, turn: Turn) -> Array: ...


@dataclass
class Mixture:
    """π_i = β_i π* + (1 − β_i) π̂_i, drawn per step as in the paper, or once per episode. All is labelled."""

    beta: float = 0.0
    per: Literal["step", "episode"] = "step"
    watches: bool = False
    _by_expert: Array | None = field(default=None, repr=False)  # [B] bool, the last draw

    def __call__(self, turn: Turn) -> Array:
        turn.ask(np.ones(len(turn.began), bool))
        drawn = turn.rng.random(len(turn.began)) < self.beta
        if self.per == "episode" and self._by_expert is not None:
            drawn = np.where(turn.began, drawn, self._by_expert)
        self._by_expert = drawn
        return drawn
