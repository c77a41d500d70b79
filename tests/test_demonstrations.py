"""Demonstrations from files of others and of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from learner.dataset import Dataset
from learner.demonstrations import load_demonstrations
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


def test_published_demonstrations(experts):
    for name, rows, shape in (("demos-cartpole", 26_964, ()), ("demos-hopper", 2_000, (3,))):
        demonstrations = load_demonstrations(experts / f"{name}.npz")
        assert len(demonstrations) == rows
        assert demonstrations.actions.shape[1:] == shape


def test_of_episodes_that_were_shared_only_the_experts_steps_count(tmp_path):
    arrays = trajectories([4]) | {"by_expert": np.array([False, True, True, False])}
    save_file(arrays, tmp_path / "shared.safetensors")
    demonstrations = load_demonstrations(tmp_path / "shared.safetensors")
    np.testing.assert_array_equal(demonstrations.actions, [1, 2])
    np.testing.assert_array_equal(demonstrations.obs[:, 0], [1, 2])
    save(tmp_path / "none.npz", arrays | {"by_expert": np.zeros(4, np.bool_)})
    with pytest.raises(DatasetError, match="holds no transitions"):
        load_demonstrations(tmp_path / "none.npz")
    for wrong in (np.ones(5, np.bool_), np.ones(4)):
        save(tmp_path / "wrong.npz", arrays | {"by_expert": wrong})
        with pytest.raises(DatasetError, match="by_expert must be 4 booleans"):
            load_demonstrations(tmp_path / "wrong.npz")


def test_a_folder_of_files_and_a_run_with_corrections(tmp_path):
    corrections = tmp_path / "run" / "labeler" / "corrections"
    corrections.mkdir(parents=True)
    save_file(trajectories([2]), corrections / "a.safetensors")
    save(corrections / "b.npz", trajectories([3]))
    (corrections / ".c.safetensors.tmp").write_bytes(b"torn")
    (corrections / "notes.txt").write_text("not one of them")
    assert len(load_demonstrations(corrections)) == len(load_demonstrations(tmp_path / "run")) == 5
    obs = np.full((4, 1), 7.0, np.float32)
    dataset = Dataset(tmp_path / "run" / "dataset")
    dataset.append_demonstrations(Demonstrations(obs, np.full(4, 7), "somebody"), key="a")
    together = load_demonstrations(tmp_path / "run")
    np.testing.assert_array_equal(together.actions, [7, 7, 7, 7, 0, 1, 0, 1, 2])
    np.testing.assert_array_equal(together.obs[:, 0], together.actions)
    save(corrections / "d.npz", {"obs": np.ones((2, 5)), "acts": np.ones(2)})
    with pytest.raises(DatasetError, match="of different shapes"):
        load_demonstrations(corrections)
