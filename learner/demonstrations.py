"""Demonstrations from files: npz, safetensors, the dataset of another run.

A file holds `obs` and `acts`, equally long, or whole trajectories as the `imitation` library stores them:
`obs` has one row more per episode, and `indices` says where `acts` is split into episodes. Nested
observations are `obs.joints`, `obs.camera`; where the words are 0, 1, ... they are parts of a tuple.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tree
from safetensors import SafetensorError
from safetensors.numpy import load_file

from learner.dataset import Dataset
from tutelage.errors import DatasetError
from tutelage.plugins import did_you_mean
from tutelage.types import Array, Demonstrations, Tree

ACTION_NAMES = ("acts", "actions")


def load_demonstrations(path: Path | str) -> Demonstrations:
    """Demonstrations from a .npz or .safetensors file, a dataset's folder or a run's.

    Raises DatasetError that says what the file lacks.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _from_dataset(path)
    if not path.is_file():
        raise DatasetError(f"no demonstrations in {path}: no such file or folder")
    match path.suffix:
        case ".npz":
            arrays = _npz(path)
        case ".safetensors":
            arrays = _safetensors(path)
        case suffix:
            raise DatasetError(
                f"{path}: demonstrations are .npz, .safetensors or a dataset's folder, not {suffix!r}"
            )
    return _from_arrays(path, arrays)


def _from_dataset(path: Path) -> Demonstrations:
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    dataset = Dataset(folder, writable=False)
    if not len(dataset):
        raise DatasetError(f"no demonstrations in {path}: neither a dataset nor a run that has one")
    rows = dataset.take(np.arange(len(dataset)))
    return Demonstrations(rows["obs"], rows["actions"], source=str(path))


def _npz(path: Path) -> dict[str, Array]:
    """The arrays that matter; others, which may be pickles, are not opened."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if _matters(name)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not a readable .npz file: {error}") from error


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        return {name: array for name, array in load_file(path).items() if _matters(name)}
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a readable .safetensors file: {error}") from error


def _matters(name: str) -> bool:
    return name.split(".")[0] in ("obs", "indices", *ACTION_NAMES)


def _from_arrays(path: Path, arrays: Mapping[str, Array]) -> Demonstrations:
    obs = _nested(path, "obs", arrays)
    actions = _nested(path, next((name for name in ACTION_NAMES if _parts(name, arrays)), "acts"), arrays)
    N = _rows(path, "acts", actions)
    obs = _without_last(path, obs, N, arrays.get("indices"))
    if not N:
        raise DatasetError(f"{path}: holds no transitions")
    return Demonstrations(obs, actions, source=str(path))


def _parts(column: str, arrays: Mapping[str, Array]) -> list[str]:
    return [name for name in arrays if name.split(".")[0] == column]


def _nested(path: Path, column: str, arrays: Mapping[str, Array]) -> Tree:
    """The tree that names like `obs.a` and `obs.b.0` spell; the array itself where there is just `obs`."""
    if not _parts(column, arrays):
        raise DatasetError(f"{path}: has no array {column!r}{did_you_mean(column, arrays)}")
    root: dict[str, Any] = {}
    for name in _parts(column, arrays):
        *above, last = name.split(".")
        node = root
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise DatasetError(f"{path}: {name!r} is both an array and a tree of arrays")
        node[last] = arrays[name]
    return _with_tuples(root)[column]


def _with_tuples(node: Tree) -> Tree:
    if not isinstance(node, dict):
        return node
    numbered = [str(i) for i in range(len(node))]
    if set(node) == set(numbered):
        return tuple(_with_tuples(node[i]) for i in numbered)
    return {name: _with_tuples(value) for name, value in node.items()}


def _rows(path: Path, name: str, value: Tree) -> int:
    shapes = [leaf.shape for leaf in tree.flatten(value)]
    lengths = {shape[0] for shape in shapes if shape}
    if len(lengths) != 1 or not all(shapes):
        raise DatasetError(f"{path}: {name} must have one row per transition, got shapes {shapes}")
    return lengths.pop()


def _without_last(path: Path, obs: Tree, N: int, indices: Array | None) -> Tree:
    """Observations in which an action was taken: without the last of each episode where those are there."""
    rows = _rows(path, "obs", obs)
    if rows == N:
        return obs
    ends = np.array([*(indices if indices is not None else []), N], np.int64)
    if rows != N + len(ends) or (np.diff(ends, prepend=0) < 0).any():
        raise DatasetError(
            f"{path}: {rows:,} rows of obs do not go with {N:,} rows of acts: expected as many, "
            f"or one more for each of the {len(ends)} episodes that `indices` marks"
        )
    last = ends + np.arange(len(ends))
    return tree.map_structure(lambda leaf: np.delete(leaf, last, axis=0), obs)
