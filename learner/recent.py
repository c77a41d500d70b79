"""The newest transitions, labelled or not: what critics learn from beside the dataset."""

from __future__ import annotations

import numpy as np
import tree

from tutelage.types import Array, Rollout, Tree


class Recent:
    """A ring of the last `capacity` transitions, in memory only: a resumed run fills it anew.

    recent.add(rollout)
    batch = recent.sample(256, rng)     # obs, actions, next_obs, terminated, reward, by_expert [256, ...]
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: Tree = {}
        self._added = 0  # ever

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, rollout: Rollout) -> None:
        """Take the valid steps of a rollout; where there is no room, in place of the oldest."""
        new = transitions(rollout)
        rows = len(new["reward"])
        if not self._rows:
            self._rows = tree.map_structure(lambda x: np.empty((self.capacity, *x.shape[1:]), x.dtype), new)
        kept = np.arange(max(0, rows - self.capacity), rows)
        slots = (self._added + kept) % self.capacity
        for stored, x in zip(tree.flatten(self._rows), tree.flatten(new), strict=True):
            stored[slots] = x[kept]
        self._added += rows

    def sample(self, rows: int, rng: np.random.Generator) -> dict[str, Tree]:
        """Rows drawn uniformly with replacement. Raises ValueError where there are none."""
        chosen = rng.integers(len(self), size=rows)
        return {name: tree.map_structure(lambda x: x[chosen], value) for name, value in self._rows.items()}


def transitions(rollout: Rollout) -> dict[str, Tree]:
    """(s, a, s', terminated, reward, by_expert) of the valid steps [N, ...], a as executed."""
    T, B = rollout.shape
    final = rollout.final_t, rollout.final_b

    def successors(leaf: Array, final_leaf: Array) -> Array:
        following = leaf[1:].copy()
        following[final] = final_leaf
        return following

    columns = {
        "obs": tree.map_structure(lambda leaf: leaf[:-1], rollout.obs),
        "actions": rollout.actions,
        "next_obs": tree.map_structure(successors, rollout.obs, rollout.final_obs),
        "terminated": rollout.terminated,
        "reward": rollout.rewards,
        "by_expert": np.zeros((T, B), bool) if rollout.by_expert is None else rollout.by_expert,
    }
    valid = slice(None) if rollout.valid is None else rollout.valid.reshape(-1)
    return {
        name: tree.map_structure(lambda x: x.reshape(T * B, *x.shape[2:])[valid], value)
        for name, value in columns.items()
    }
