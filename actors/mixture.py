"""The β-mixture: the expert acts with probability β, the novice otherwise (Ross, Gordon & Bagnell, 2011)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from tutelage.types import Array, Tree


class Controller(Protocol):
    """A rule by which the expert takes over. Asked once a vector step.

        by_expert = controller(obs_t, novice_actions_t, began_t, rng)
        actions_t = np.where(by_expert, expert_actions_t, novice_actions_t)

    `obs` [B, ...], `novice_actions` [B, ...], `began` [B] bool: this is the first step of an episode.
    Returns a mask [B] bool: the expert acts.
    """

    def __call__(self, obs: Tree, novice_actions: Array, began: Array, rng: np.random.Generator) -> Array: ...


@dataclass
class Mixture:
    """π_i = β_i π* + (1 − β_i) π̂_i, drawn per step as in the paper, or once per episode."""

    beta: float = 0.0
    per: Literal["step", "episode"] = "step"
    _by_expert: Array | None = field(default=None, repr=False)  # [B] bool, the last draw

    def __call__(self, obs: Tree, novice_actions: Array, began: Array, rng: np.random.Generator) -> Array:
        drawn = rng.random(len(began)) < self.beta
        if self.per == "episode" and self._by_expert is not None:
            drawn = np.where(began, drawn, self._by_expert)
        self._by_expert = drawn
        return drawn
