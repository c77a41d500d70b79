"""Environments from recipes, one and many."""

import importlib.util
import warnings

import gymnasium as gym
import numpy as np
import pytest
import tree

from actors import environments
from actors.environments import columns, concatenated, leaf_spaces, make_env, make_vector, put, rows, to_env
from tutelage.errors import ConfigError
from tutelage.types import EnvRecipe

COUNTING = EnvRecipe("tests.environments_for_tests:Counting-v0")


def spaces_recipe(action_space, observation_space=None):
    kwargs = {"action_space": action_space, "observation_space": observation_space}
    return EnvRecipe("tests.environments_for_tests:Spaces-v0", kwargs=kwargs)


def stepped(recipe, steps, num_envs=3):
    """Observations [T+1, B], rewards, ends and ended slots under action 0; resets are seeded by 100 + t."""
    envs = make_vector(recipe, num_envs)
    obs = columns(envs.observation_space, steps + 1, num_envs)
    rewards = np.zeros((steps, num_envs), np.float32)
    terminated, truncated = np.zeros((2, steps, num_envs), bool)
    envs.reset(range(num_envs), list(range(num_envs)), rows(obs, 0))
    ended = []
    for t in range(steps):
        actions = np.zeros(num_envs, np.int64)
        over = envs.step(actions, rows(obs, t + 1), rewards[t], terminated[t], truncated[t])
        ended.append(list(over))
        if over and not envs.autoreset:
            envs.reset(over, [100 + t] * len(over), rows(obs, t + 1))
    envs.close()
    return obs, rewards, terminated, truncated, ended


def test_an_unknown_id_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"'Hoper-v5' does not exist; did you mean 'Hopper-v5'\?"):
        make_env(EnvRecipe("Hoper-v5"))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (EnvRecipe("no_such_module:Some-v0"), "no_such_module"),
        (EnvRecipe("CartPole-v1", kwargs={"gravityy": 1}), "gravityy"),
        (EnvRecipe("HalfCheetah-v5", backend="vector_entry_point"), "HalfCheetah-v5"),
        (EnvRecipe("CartPole-v1", backend="threads"), "threads"),  # type: ignore[arg-type]
        (spaces_recipe(gym.spaces.Text(3)), "Text"),
        (spaces_recipe(gym.spaces.Box(-1, 1, (2, 2))), "not supported"),
        (spaces_recipe(gym.spaces.Box(0, 5, (2,), np.int32)), "whole numbers"),
        (spaces_recipe(gym.spaces.Discrete(3, start=1)), "count from 0"),
        (spaces_recipe(gym.spaces.Discrete(3), gym.spaces.Sequence(gym.spaces.Discrete(2))), "Sequence"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(recipe, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_vector(recipe, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v5"])
def test_envpool_steps_every_environment_by_its_own_action_and_repeats_by_its_seed(env_id):
    pytest.importorskip("envpool", reason="envpool is not installed: install tutelage[envpool]")
    envs = make_vector(EnvRecipe(env_id, backend="envpool"), 3)
    low, high = (0, 1) if envs.action_space.shape == () else (-np.ones(6), np.ones(6))
    actions = np.array([low, high, low], envs.action_space.dtype)
    shown = []
    for first in (5, 5, 6):
        obs = columns(envs.observation_space, 12, 3)
        envs.reset(range(3), [first, 1, 2], obs[0])
        rewards, terminated, truncated = np.zeros((11, 3)), np.zeros((11, 3), bool), np.zeros((11, 3), bool)
        for t in range(11):
            ended = envs.step(actions, obs[t + 1], rewards[t], terminated[t], truncated[t])
            assert ended == np.flatnonzero(terminated[t] | truncated[t]).tolist()
        shown.append(obs)
    envs.close()
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0][0], shown[2][0])
    pushed = shown[0][5] - shown[0][0]
    assert np.abs(pushed[0] - pushed[2]).max() < np.abs(pushed[0] - pushed[1]).max()
    assert "envpool" in envs.recipe.versions
    if env_id == "CartPole-v1":
        t, b = np.argwhere(terminated)[0]
        assert (rewards[t + 1, b], np.abs(shown[2][t + 2, b]).max() <= 0.05) == (0, True)


def test_envpool_is_asked_for_by_its_name():
    if importlib.util.find_spec("envpool"):
        pytest.skip("envpool is installed")
    with pytest.raises(ConfigError, match=r"install tutelage\[envpool\]"):
        make_vector(EnvRecipe("CartPole-v1", backend="envpool"), 2)


def test_recipes_are_completed_with_versions():
    recipe = make_vector(EnvRecipe("LunarLander-v3"), 1).recipe
    assert set(recipe.versions) == {"gymnasium", "numpy", "box2d"}
    assert recipe.versions["gymnasium"] == gym.__version__
    assert set(make_vector(COUNTING, 1).recipe.versions) == {"gymnasium", "numpy"}


def test_columns_hold_every_leaf_and_no_64_bit_floats():
    space = make_env(COUNTING).observation_space
    obs = columns(space, 7, 2)
    assert obs["steps"].dtype == np.float32
    assert obs["image"].shape == (7, 2, 4, 4, 3)
    assert obs["phase"][0].shape == (7, 2)
    assert len(leaf_spaces(space)) == len(tree.flatten(obs)) == 4


def test_rows_and_put_are_inverse_on_trees():
    space = make_env(COUNTING).observation_space
    samples = [space.sample() for _ in range(3)]
    obs = columns(space, 3)
    for i, sample in enumerate(samples):
        put(obs, i, sample)
    again = concatenated([rows(obs, slice(2)), rows(obs, slice(2, 3))])
    tree.map_structure(np.testing.assert_array_equal, again, obs)
    np.testing.assert_array_equal(rows(obs, 1)["image"], samples[1]["image"])


def test_box_actions_are_clipped_and_cast_and_others_left_alone():
    box = gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 0.5]), dtype=np.float64)
    sent = to_env(box, np.array([[-3, 3], [0.5, 0.25]], np.float32))
    np.testing.assert_array_equal(sent, [[-1, 0.5], [0.5, 0.25]])
    assert sent.dtype == np.float64
    actions = np.array([1, 0])
    assert to_env(gym.spaces.Discrete(2), actions) is actions


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_ended_environments_are_reset_alone_and_by_their_seed(backend):
    recipe = EnvRecipe(COUNTING.id, kwargs={"length": 2}, backend=backend)
    obs, _, terminated, truncated, ended = stepped(recipe, 4)
    assert ended == [[], [0, 1, 2], [], [0, 1, 2]]
    assert not truncated.any()
    np.testing.assert_array_equal(terminated[1], True)
    np.testing.assert_array_equal(obs["steps"][:, 0, 0], [0, 1, 0, 1, 0])
    fresh = make_env(recipe).reset(seed=101)[0]
    np.testing.assert_array_equal(obs["steps"][2, 1], fresh["steps"].astype(np.float32))


def test_one_of_several_can_be_reset():
    envs = make_vector(COUNTING, 2)
    obs = columns(envs.observation_space, 2)
    envs.reset([0, 1], [0, 1], obs)
    envs.step(np.array([0, 0]), obs, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    envs.reset([1], [7], obs)
    np.testing.assert_array_equal(obs["steps"][:, 0], [1, 0])


def test_sync_and_async_show_the_same():
    sync = stepped(EnvRecipe("CartPole-v1"), 40, 2)
    asynchronous = stepped(EnvRecipe("CartPole-v1", backend="async"), 40, 2)
    for a, b in zip(sync[:-1], asynchronous[:-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert sync[-1] == asynchronous[-1]
    assert any(sync[-1])


def test_vectorised_environments_reset_by_themselves_a_step_later():
    obs, rewards, terminated, _, ended = stepped(
        EnvRecipe("CartPole-v1", backend="vector_entry_point"), 40, 5
    )
    t, b = np.argwhere(terminated)[0]
    assert b in ended[t]
    assert rewards[t + 1, b] == 0
    assert np.abs(obs[t + 2, b]).max() <= 0.05


def test_mujoco_warns_once_of_what_matters_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environments._say_once.cache_clear()
    envs = [make_env(EnvRecipe("HalfCheetah-v5")) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for env in [*envs, *envs]:
            env.reset(seed=0)
            env.unwrapped.data.qvel[:] = np.nan  # type: ignore[attr-defined]
            env.step(env.action_space.sample())
    assert [str(warning.message)[:12] for warning in caught] == ["MuJoCo: Nan,"]
    assert not list(tmp_path.iterdir())
