"""Policy files: what is written acts the same when read, and what is broken says how."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import save_file

from expert_oracle import checkpoint
from expert_oracle.checkpoint import PolicyFile, load_checkpoint, load_policy, save_policy
from tutelage.codec import space_text
from tutelage.errors import ConfigError, OracleError
from tutelage.policy import Distribution, MLPPolicy, mode

LOW, HIGH = np.array([-0.1, -0.2], np.float32), np.array([0.1, 0.2], np.float32)


def policy(outputs=2, distribution: Distribution = "gaussian", **fields):
    rng = np.random.default_rng(0)
    sizes = (5, 8, outputs)
    weights = [rng.normal(size=pair).astype(np.float32) for pair in pairwise(sizes)]
    biases = [rng.normal(size=n).astype(np.float32) for n in sizes[1:]]
    return MLPPolicy(weights, biases, "tanh", distribution, **fields)


GAUSSIAN = policy(
    log_std=np.zeros(2, np.float32),
    obs_mean=np.ones(5, np.float32),
    obs_std=np.full(5, 2, np.float32),
    obs_clip=3.0,
)
OBS = np.random.default_rng(1).normal(size=(64, 5))


def test_a_gaussian_policy_comes_back_and_acts_inside_its_box(tmp_path):
    path = tmp_path / "policy.safetensors"
    metadata = {"return_mean": np.float32(1.5), "command": "tutelage train ppo-hopper"}
    save_policy(path, GAUSSIAN, low=LOW, high=HIGH, env="My/Env-v0", metadata=metadata)
    read = load_policy(path)
    np.testing.assert_array_equal(read.policy(OBS), GAUSSIAN(OBS))
    np.testing.assert_array_equal(read.act(OBS), np.clip(mode(GAUSSIAN(OBS), "gaussian"), LOW, HIGH))
    assert read.metadata == metadata
    assert (read.env, read.describe().env_id) == ("My/Env-v0", "My/Env-v0")
    assert space_text(read.describe().action_space) == "Box(2,)"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("made", "space"),
    [
        (policy(4, "categorical"), "Discrete(4)"),
        (policy(5, "multi_categorical", nvec=(2, np.int64(3))), "MultiDiscrete([2, 3])"),
        (policy(3, "bernoulli"), "MultiBinary(3,)"),
        (policy(4), "Box(2,)"),
    ],
)
def test_every_distribution_comes_back(tmp_path, made, space):
    save_policy(tmp_path / "p.safetensors", made)
    read = load_policy(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(read.act(OBS), mode(made(OBS), made.distribution, made.nvec))
    assert space_text(read.describe().action_space) == space


def test_wrong_observations_are_named(tmp_path):
    with pytest.raises(OracleError, match="takes observations of 5 numbers, got 3"):
        PolicyFile(GAUSSIAN).act(np.zeros((2, 3)))


def env_of(place):
    oracle = load_checkpoint(str(place))
    assert isinstance(oracle, PolicyFile)
    return oracle.env


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no such policy file: .*nothing"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="'hoper' is no file, no folder and no shipped expert"):
        load_checkpoint("hoper")


def test_corrupt_and_foreign_files(tmp_path):
    path = tmp_path / "p.safetensors"
    save_policy(path, GAUSSIAN)
    whole = path.read_bytes()
    for broken in (b"", b"garbage" * 9, whole[:-4], whole[:50]):
        path.write_bytes(broken)
        with pytest.raises(OracleError, match="corrupt or no safetensors file"):
            load_policy(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(OracleError, match=r"not of the format 'tutelage\.policy'"):
        load_policy(path)
    path.write_bytes(whole.replace(b'"format_version":"1"', b'"format_version":"9"'))
    with pytest.raises(OracleError, match="has format version 9; this release reads version 1"):
        load_policy(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"distribution": "cauchy"}, "unknown distribution 'cauchy'"),
        ({"biases": [GAUSSIAN.biases[0], np.zeros(3)]}, r"layer 1 has weights \(8, 2\) and biases \(3,\)"),
        ({"weights": []}, "zip|weights"),
        ({"obs_mean": np.zeros(4)}, r"obs_mean has shape \(4,\), expected \(5,\)"),
        ({"biases": [GAUSSIAN.biases[0], np.full(2, np.nan)]}, "not finite"),
    ],
)
def test_inconsistent_policies_are_named(tmp_path, change, words):
    path = tmp_path / "p.safetensors"
    save_policy(path, replace(GAUSSIAN, **change), low=LOW, high=HIGH)
    with pytest.raises(OracleError, match=words):
        load_policy(path)


def test_a_run_folder_gives_its_best_checkpoint_else_its_newest(tmp_path):
    for name in ("checkpoints/000002", "checkpoints/000010", "checkpoints/best"):
        (tmp_path / name).mkdir(parents=True)
        save_policy(tmp_path / name / "policy.safetensors", GAUSSIAN, env=name)
    assert env_of(tmp_path) == "checkpoints/best"
    (tmp_path / "checkpoints/best/policy.safetensors").unlink()
    assert env_of(tmp_path) == "checkpoints/000010"
    assert env_of(tmp_path / "checkpoints/000002") == "checkpoints/000002"
    with pytest.raises(ConfigError, match="holds no policy"):
        load_checkpoint(str(tmp_path / "checkpoints/best"))


def test_a_shipped_expert_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    save_policy(tmp_path / "walker.safetensors", GAUSSIAN, env="Walker")
    assert env_of("walker") == "Walker"
    with pytest.raises(ConfigError, match=r"did you mean 'walker'\?"):
        load_checkpoint("waker")


def test_policies_that_are_no_mlp_name_their_loader(tmp_path):
    loader = tmp_path / "loader.py"
    loader.write_text("class P:\n def __init__(self, folder): pass\n def act(self, obs): return obs + 1\n")
    (tmp_path / "policy.json").write_text(json.dumps({"loader": f"{loader}:P"}))
    assert load_checkpoint(str(tmp_path)).act(1) == 2
    (tmp_path / "policy.json").write_text("[]")
    with pytest.raises(OracleError, match="is not of the form"):
        load_checkpoint(str(tmp_path))
