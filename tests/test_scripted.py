"""Scripted experts are as good as they say."""

from typing import Literal, get_args

import gymnasium as gym
import numpy as np
import pytest

from expert_oracle.scripted import SCRIPTED
from tutelage import codec
from tutelage.errors import OracleError

What = Literal["action", "observation"]


def mean_return(env_id, oracle, episodes=20):
    """Undiscounted return over `episodes` episodes, one seed each."""
    mode = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
    envs = gym.make_vec(env_id, episodes, vectorization_mode="sync", vector_kwargs=mode)
    obs, _ = envs.reset(seed=[9_000 + i for i in range(episodes)])  # pyright: ignore[reportArgumentType]
    returns, alive = np.zeros(episodes), np.ones(episodes, bool)
    while alive.any():
        actions = oracle.act(obs).astype(envs.single_action_space.dtype)
        obs, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards * alive
        done = terminated | truncated
        alive &= ~done
        if done.any():
            obs, _ = envs.reset(options={"reset_mask": done})
    envs.close()
    return returns.mean()


@pytest.mark.parametrize(
    ("name", "bar"),
    [("cartpole", 500), ("lunarlander", 200), ("mountaincar", -110), ("acrobot", -100), ("pendulum", -200)],
)
def test_scripted_experts_reach_their_bar(name, bar):
    assert mean_return(SCRIPTED[name].env_id, SCRIPTED[name]) >= bar


@pytest.mark.parametrize("name", SCRIPTED)
def test_they_know_their_spaces_and_take_any_number_of_states(name):
    expert = SCRIPTED[name]
    description = expert.describe()
    with gym.make(expert.env_id) as env:
        for what in get_args(What):
            theirs, ours = getattr(description, f"{what}_space"), getattr(env, f"{what}_space")
            assert codec.space_difference(theirs, codec.describe_space(ours), what) is None
        obs = np.stack([env.observation_space.sample() for _ in range(7)])
        actions = expert.act(obs)
        assert all(env.action_space.contains(action.astype(env.action_space.dtype)) for action in actions)
    np.testing.assert_array_equal(actions, np.concatenate([expert.act(row[None]) for row in obs]))
    assert len(expert.act(obs[:0])) == 0
    assert description.name == f"scripted:{name}"


def test_the_wrong_observations_are_named():
    with pytest.raises(OracleError, match=r"for CartPole-v1 takes .* shape \(N, 4\), got \(3, 8\)"):
        SCRIPTED["cartpole"].act(np.zeros((3, 8)))
