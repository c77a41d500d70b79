"""Demonstrations from files: npz, safetensors, the dataset of another run, folders of what people corrected.

A file holds `obs` and `acts`, equally long, or whole trajectories as the `imitation` library stores them:
`obs` has one row more per episode, and `indices` says where `acts` is split into episodes. Nested
observations are `obs.joints`, `obs.camera`; where the words are 0, 1, ... they are parts of a tuple. Where
there is `by_expert`, as in episodes that a policy and a person shared, only the rows where it holds count.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
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
BY_EXPERT = "by_expert"
CORRECTIONS = Path("labeler") / "corrections"  # of a run: what people did where they took over


def load_demonstrations(path: Path | str) -> Demonstrations:
    """Demonstrations from a .npz or .safetensors file, a folder of them, a dataset's folder or a run's.

    A run's are those of its dataset and of its corrections. Raises DatasetError that says what a file lacks.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _from_folder(path)
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


def _from_folder(path: Path) -> Demonstrations:
    parts = [load_demonstrations(file) for file in files_in(path)]
    if (dataset := dataset_in(path)) is not None:
        rows = dataset.take(np.arange(len(dataset)))
        parts.insert(0, Demonstrations(rows["obs"], rows["actions"], source=str(path)))
    if not parts:
        raise DatasetError(
            f"no demonstrations in {path}: neither a dataset nor a run that has one, nor files of them"
        )
    return parts[0] if len(parts) == 1 else _joined(path, parts)


def dataset_in(path: Path) -> Dataset | None:
    """The dataset that a folder is or has, if there is anything in it."""
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    dataset = Dataset(folder, writable=False)
    return dataset if len(dataset) else None


def files_in(path: Path) -> list[Path]:
    """The files of a folder, or of a run's corrections."""
    folder = path / CORRECTIONS if (path / CORRECTIONS).is_dir() else path
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in (".npz", ".safetensors") and not file.name.startswith(".")
    )


def _joined(path: Path, parts: Sequence[Demonstrations]) -> Demonstrations:
    def join(*leaves: Array) -> Array:
        return np.concatenate(leaves)

    try:
        obs = tree.map_structure(join, *(part.obs for part in parts))
        actions = tree.map_structure(join, *(part.actions for part in parts))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: its demonstrations are of different shapes: {error}") from None
    return Demonstrations(obs, actions, source=str(path))


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
    return name.split(".")[0] in ("obs", "indices", BY_EXPERT, *ACTION_NAMES)


def _from_arrays(path: Path, arrays: Mapping[str, Array]) -> Demonstrations:
    obs = _nested(path, "obs", arrays)
    actions = _nested(path, next((name for name in ACTION_NAMES if _parts(name, arrays)), "acts"), arrays)
    N = _rows(path, "acts", actions)
    obs = _without_last(path, obs, N, arrays.get("indices"))
    if BY_EXPERT in arrays:
        mine = _mask(path, arrays[BY_EXPERT], N)
        obs = tree.map_structure(lambda leaf: leaf[mine], obs)
        actions = tree.map_structure(lambda leaf: leaf[mine], actions)
        N = int(mine.sum())
    if not N:
        raise DatasetError(f"{path}: holds no transitions")
    return Demonstrations(obs, actions, source=str(path))


def _mask(path: Path, by_expert: Array, N: int) -> Array:
    if by_expert.dtype != np.bool_ or by_expert.shape != (N,):
        raise DatasetError(
            f"{path}: by_expert must be {N:,} booleans, one for each row of acts, got {by_expert.dtype} "
            f"{by_expert.shape}"
        )
    return by_expert


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
