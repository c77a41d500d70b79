"""The newest transitions, labelled or not: what critics learn from beside the dataset, or alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tree
from numpy.lib.format import open_memmap

from tutelage.types import Array, Rollout, Tree


class Recent:
    """A ring of the last `capacity` transitions, in memory: a resumed run fills it anew. Or in files that are
    mapped, with which a resumed run goes on from what its checkpoint knows; of what was added after that,
    only rows that took the place of older ones are left.

    recent.go_on(added)                 # as `recent.added` was
    recent.add(rollout)
    batch = recent.sample(256, rng)     # obs, actions, next_obs, terminated, reward, by_expert [256, ...]
    """

    def __init__(self, capacity: int, folder: Path | None = None) -> None:
        self.capacity, self.folder = capacity, folder
        self._rows: Tree = {}
        self.added = 0  # rows, ever

    def __len__(self) -> int:
        return min(self.added, self.capacity) if self._rows else 0

    def go_on(self, added: int) -> None:
        """Count on so many rows in the files, from the next ones on; none if they are not there."""
        self.added = added

    def add(self, rollout: Rollout) -> None:
        """Take the valid steps of a rollout; where there is no room, in place of the oldest."""
        new = transitions(rollout)
        rows = len(new["reward"])
        if not self._rows:
            self._open(new)
        kept = np.arange(max(0, rows - self.capacity), rows)
        slots = (self.added + kept) % self.capacity
        for stored, x in zip(tree.flatten(self._rows), tree.flatten(new), strict=True):
            stored[slots] = x[kept]
        self.added += rows

    def sample(self, rows: int, rng: np.random.Generator) -> dict[str, Tree]:
        """Rows drawn uniformly with replacement. Raises ValueError where there are none."""
        chosen = rng.integers(len(self), size=rows)
        return {name: tree.map_structure(lambda x: x[chosen], value) for name, value in self._rows.items()}

    def _open(self, like: Tree) -> None:
        """Room for rows like these; in the folder, what is there already if it is of the same kind."""
        leaves = tree.flatten(like)
        shapes = [((self.capacity, *x.shape[1:]), x.dtype) for x in leaves]
        if self.folder is None:
            arrays, self.added = [np.empty(*shape) for shape in shapes], 0
        else:
            files = [self.folder / f"{i}.npy" for i in range(len(leaves))]
            arrays = reopened(files, shapes)
            if arrays is None:
                self.added = 0
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                arrays = [
                    open_memmap(file, "w+", dtype, shape)  # sparse: what is not written takes no room
                    for file, (shape, dtype) in zip(files, shapes, strict=True)
                ]
        self._rows = tree.unflatten_as(like, arrays)


def reopened(files: list[Path], shapes: list[tuple[tuple[int, ...], np.dtype]]) -> list[Array] | None:
    """Mapped arrays of these shapes; None where they are missing or of others."""
    if not all(file.is_file() for file in files):
        return None
    arrays = [open_memmap(file, "r+") for file in files]
    fitting = [(array.shape, array.dtype) for array in arrays] == shapes
    return list[Array](arrays) if fitting else None


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
