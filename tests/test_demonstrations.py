"""Demonstrations from files of others and of our own, and a dataset as a file for others."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tree
from safetensors.numpy import save_file

from learner.dataset import Dataset
from learner.demonstrations import export_npz, load_demonstrations
from tutelage.errors import DatasetError
from tutelage.types import Demonstrations


def trajectories(lengths, *, dtype=np.float32) -> dict[str, np.ndarray]:
    """Whole episodes as `imitation` stores them: step t of episode e has observation and action 100 e + t."""
    obs = np.concatenate([100 * e + np.arange(n + 1) for e, n in enumerate(lengths)])
    acts = np.concatenate([100 * e + np.arange(n) for e, n in enumerate(lengths)])
    return {"obs": obs[:, None].astype(dtype), "acts": acts, "indices": np.cumsum(lengths[:-1])}


def save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, allow_pickle=True, **arrays)


@pytest.mark.parametrize("lengths", [[5, 1, 3], [4]])
def test_whole_trajectories_lose_their_last_observations(tmp_path, lengths):
    arrays = trajectories(lengths) | {"terminal": np.ones(len(lengths), np.bool_)}
    save(tmp_path / "demos.npz", arrays)
    demonstrations = load_demonstrations(tmp_path / "demos.npz")
    assert len(demonstrations) == sum(lengths)
    np.testing.assert_array_equal(demonstrations.obs[:, 0], demonstrations.actions)
    assert demonstrations.source == str(tmp_path / "demos.npz")


def test_one_trajectory_needs_no_indices(tmp_path):
    np.savez(tmp_path / "demos.npz", obs=np.arange(4.0), acts=np.arange(3))
    np.testing.assert_array_equal(load_demonstrations(tmp_path / "demos.npz").obs, [0, 1, 2])


def test_flat_transitions(tmp_path):
    np.savez_compressed(tmp_path / "demos.npz", obs=np.ones((6, 2)), acts=np.zeros((6, 3)), rews=np.zeros(6))
    demonstrations = load_demonstrations(str(tmp_path / "demos.npz"))
    assert demonstrations.obs.shape == (6, 2)
    assert demonstrations.actions.shape == (6, 3)


def test_pickled_extras_are_not_opened(tmp_path):
    np.savez(tmp_path / "demos.npz", obs=np.ones(2), acts=np.ones(2), infos=np.array([{}, {}]))
    assert len(load_demonstrations(tmp_path / "demos.npz")) == 2


def test_safetensors(tmp_path):
    save_file(trajectories([2, 3]), tmp_path / "demos.safetensors")
    demonstrations = load_demonstrations(tmp_path / "demos.safetensors")
    np.testing.assert_array_equal(demonstrations.obs[:, 0], demonstrations.actions)
    save_file({"obs": np.ones((3, 1)), "actions": np.ones(3)}, tmp_path / "flat.safetensors")
    assert len(load_demonstrations(tmp_path / "flat.safetensors")) == 3


def test_the_dataset_of_another_run(tmp_path):
    obs = {"joints": np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)}
    dataset = Dataset(tmp_path / "run" / "dataset")
    dataset.append_demonstrations(Demonstrations(obs, np.arange(20), "somebody"), key="a")
    for path in (tmp_path / "run", tmp_path / "run" / "dataset"):
        demonstrations = load_demonstrations(path)
        np.testing.assert_array_equal(demonstrations.obs["joints"], obs["joints"])
        np.testing.assert_array_equal(demonstrations.actions, np.arange(20))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"obs": np.ones(3)}, "has no array 'acts'"),
        ({"observations": np.ones(3), "acts": np.ones(3)}, "has no array 'obs'"),
        ({"obs": np.ones(5), "acts": np.ones(3)}, "5 rows of obs do not go with 3 rows of acts"),
        ({"obs": np.ones(5), "acts": np.ones(3), "indices": np.array([1, 2])}, "each of the 3 episodes"),
        ({"obs": np.ones(5), "acts": np.ones(3), "indices": np.array([7])}, "5 rows of obs do not go with"),
        ({"obs": np.ones(3), "acts": np.float32(1)}, "acts must have one row per transition"),
        ({"obs": np.ones(0), "acts": np.ones(0)}, "holds no transitions"),
        ({"obs": np.array([{}, {}]), "acts": np.ones(2)}, "not a readable .npz file"),
        ({"obs": np.ones(2), "obs.a": np.ones(2), "acts": np.ones(2)}, "both an array and a tree"),
        (
            {"obs.a": np.ones(2), "obs.b": np.ones(3), "acts": np.ones(2)},
            "obs must have one row per transition",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, arrays, message):
    save(tmp_path / "demos.npz", arrays)
    with pytest.raises(DatasetError, match=message):
        load_demonstrations(tmp_path / "demos.npz")


@pytest.mark.parametrize("name", ["demos.npz", "demos.safetensors"])
def test_garbage_is_refused(tmp_path, name):
    for content in (b"", b"garbage" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match="not a readable"):
            load_demonstrations(tmp_path / name)


def test_paths_that_hold_none_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="no such file or folder"):
        load_demonstrations(tmp_path / "nowhere.npz")
    with pytest.raises(DatasetError, match="neither a dataset nor a run"):
        load_demonstrations(tmp_path)
    (tmp_path / "demos.csv").write_text("1,2")
    with pytest.raises(DatasetError, match=r"not '\.csv'"):
        load_demonstrations(tmp_path / "demos.csv")


def mixed(rows: int) -> Demonstrations:
    """Observations that are a tree with a tuple, an image and a flag; actions that are a dict."""
    rng = np.random.default_rng(rows)
    obs = {
        "camera": rng.integers(0, 255, (rows, 4, 4, 3), np.uint8),
        "body": {"joints": rng.normal(size=(rows, 3)).astype(np.float32), "touch": rng.random(rows) < 0.5},
        "two": (rng.integers(0, 9, rows), rng.random((rows, 2), np.float32)),
    }
    return Demonstrations(obs, {"arm": rng.random((rows, 2), np.float32)}, "somebody")


def test_an_exported_dataset_loads_as_demonstrations(tmp_path):
    dataset = Dataset(tmp_path / "dataset")
    parts = [mixed(5), mixed(8)]
    for i, part in enumerate(parts):
        dataset.append_demonstrations(part, key=str(i))
    export_npz(dataset, tmp_path / "out.npz")
    loaded = load_demonstrations(tmp_path / "out.npz")
    for name in ("obs", "actions"):
        expected = tree.map_structure(
            lambda *leaves: np.concatenate(leaves), *(getattr(p, name) for p in parts)
        )
        tree.map_structure(np.testing.assert_array_equal, getattr(loaded, name), expected)
    with np.load(tmp_path / "out.npz") as file:
        assert {"by_expert", "beta", "version", "round", "runner", "reward", "executed.arm"} <= set(
            file.files
        )
        assert file["by_expert"].dtype == np.bool_
        assert file["by_expert"].all()


def test_a_failed_export_leaves_nothing(tmp_path):
    dataset = Dataset(tmp_path / "dataset")
    with pytest.raises(DatasetError, match="is empty"):
        export_npz(dataset, tmp_path / "out.npz")
    dataset.append_demonstrations(mixed(2000), key="a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"cannot write .*out\.npz: File too large"):
            export_npz(dataset, tmp_path / "out.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_published_demonstrations(experts):
    for name, rows, shape in (("demos-cartpole", 26_964, ()), ("demos-hopper", 2_000, (3,))):
        demonstrations = load_demonstrations(experts / f"{name}.npz")
        assert len(demonstrations) == rows
        assert demonstrations.actions.shape[1:] == shape
