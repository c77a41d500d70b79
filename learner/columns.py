"""Trees of rows as named columns: observations `{"joints": ...}` are the column `obs.joints`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tree

from learner.blocks import with_tuples
from tutelage.errors import DatasetError
from tutelage.types import Array, Demonstrations, Rollout, Tree


def rows_of_rollout(rollout: Rollout) -> dict[str, Tree]:
    """Columns of the labelled steps of a rollout, row after row."""
    origin = rollout.provenance
    if rollout.expert_actions is None:
        raise DatasetError(
            f"the rollout of runner {origin.runner} in round {origin.round} has no expert actions; "
            "ask for them with SampleRequest(label=True)"
        )
    labelled = rollout.labelled()
    keep = slice(None) if labelled.all() else labelled.reshape(-1)
    by_expert = rollout.by_expert if rollout.by_expert is not None else np.zeros(rollout.shape, np.bool_)
    steps = {
        "obs": tree.map_structure(lambda leaf: leaf[:-1], rollout.obs),
        "actions": rollout.expert_actions,
        "executed": rollout.actions,
        "by_expert": by_expert,
        "reward": rollout.rewards,
    }
    rows = {
        name: tree.map_structure(lambda leaf: _flatten(leaf)[keep], value) for name, value in steps.items()
    }
    N = int(labelled.sum())
    return rows | _provenance(
        N, beta=origin.beta, version=origin.version, round=origin.round, runner=origin.runner
    )


def _flatten(array: Array) -> Array:
    """[T, B, ...] as [T B, ...]."""
    return array.reshape(-1, *array.shape[2:])


def rows_of_demonstrations(demonstrations: Demonstrations) -> dict[str, Tree]:
    """Columns of demonstrations, which belong to no round, policy or runner (-1)."""
    N = len(demonstrations)
    return {
        "obs": demonstrations.obs,
        "actions": demonstrations.actions,
        "executed": demonstrations.actions,
        "by_expert": np.ones(N, np.bool_),
        "reward": np.full(N, np.nan, np.float32),
        **_provenance(N, beta=1.0, version=-1, round=-1, runner=-1),
    }


def _provenance(N: int, *, beta: float, version: int, round: int, runner: int) -> dict[str, Array]:
    return {
        "beta": np.full(N, beta, np.float32),
        "version": np.full(N, version, np.int64),
        "round": np.full(N, round, np.int32),
        "runner": np.full(N, runner, np.int32),
    }


def structure_of(rows: Mapping[str, Tree]) -> dict[str, Tree]:
    """The same trees with names of columns in place of arrays."""
    names = {column: _named(column, value) for column, value in rows.items()}
    found = [name for column in names.values() for name in leaves(column)]
    if len(set(found)) < len(found) or not all(_has_words(value) for value in rows.values()):
        raise DatasetError(f"keys of observations and actions must be distinct words, got {sorted(found)}")
    return names


def _has_words(value: Tree) -> bool:
    """Whether all keys of dicts are strings, which is what JSON gives back."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_words(leaf) for key, leaf in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_words, value))


def _named(column: str, value: Tree) -> Tree:
    names = tree.map_structure_with_path(lambda path, _: _name(column, path), value)
    return with_tuples(names)


def _name(column: str, path: Sequence[str | int]) -> str:
    return ".".join([column, *map(str, path)])


def leaves(structure: Tree) -> list[str]:
    """Names of the columns that make up a tree."""
    return tree.flatten(structure)


def joined(structure: Mapping[str, Tree], parts: Sequence[Mapping[str, Tree]]) -> dict[str, Array]:
    """Leaves of all parts, one after the other, by the name of their column, in the form that is stored."""
    flat = [_flat(structure, part) for part in parts]
    return {name: _stored_form(name, [part[name] for part in flat]) for name in flat[0]}


def _flat(structure: Mapping[str, Tree], rows: Mapping[str, Tree]) -> dict[str, Array]:
    for column, names in structure.items():
        if _named(column, rows[column]) != names:
            raise DatasetError(f"{column}: rollouts of one append differ in their leaves")
    return {
        _name(column, path): array
        for column in structure
        for path, array in tree.flatten_with_path(rows[column])
    }


def _stored_form(name: str, arrays: Sequence[Array]) -> Array:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise DatasetError(f"{name}: rollouts of one append have rows of different shapes {sorted(shapes)}")
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name}: values of type {array.dtype} cannot be stored; numbers and booleans can")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32 if wide else array.dtype.newbyteorder("="))
    if name.split(".")[0] in ("obs", "actions") and not np.isfinite(array).all():
        bad = (~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum()
        raise DatasetError(f"{name}: {bad:,} of {len(array):,} rows are not finite numbers")
    return array
