"""One scale for rewards of any size: divide by the running standard deviation of the discounted return.

(Engstrom et al., 2020, "reward scaling"; Stable-Baselines3's VecNormalize does the same.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.types import Array, Rollout


class RewardScale:
    """Running moments of the discounted return G_t = r_t + γ G_{t−1}, restarted at each episode's start."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 1e-4, 0.0, 1e-4
        self.carried: dict[int, Array] = {}  # runner -> G [B] at the end of its last rollout

    def update(self, rollout: Rollout, gamma: float) -> float:
        """Take a rollout into account; the standard deviation so far.

        What a learnt reward makes of a row that was spent on a reset is none of the next episode's.
        """
        T, B = rollout.shape
        ends = rollout.terminated | rollout.truncated
        if rollout.valid is not None:
            ends = ends | ~rollout.valid
        running = self.carried.get(rollout.provenance.runner)
        if running is None or len(running) != B:
            running = np.zeros(B)
        returns = np.empty((T, B))
        for t in range(T):
            running = rollout.rewards[t] + gamma * running
            returns[t] = running
            running = running * ~ends[t]
        self.carried[rollout.provenance.runner] = running
        self._merge(returns if rollout.valid is None else returns[rollout.valid])
        return self.std

    def _merge(self, x: Array) -> None:
        n, mean, squares = x.size, float(x.mean()), float(((x - x.mean()) ** 2).sum())
        total, delta = self.count + n, mean - self.mean
        self.squares += squares + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        return max((self.squares / self.count) ** 0.5, 1e-8)

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
