"""Replay and the self-test for it; `cut` is tested beside the collector, too."""

import numpy as np
import pytest

from actors.collect import Collector
from actors.forward import random_actor
from actors.replay import cut, is_reproducible, replay
from tutelage.types import EnvRecipe


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("CartPole-v1", True),
        ("LunarLander-v3", True),
        ("HalfCheetah-v5", True),
        ("Hopper-v5", True),
        ("BipedalWalker-v3", False),
    ],
)
def test_the_self_test_knows_who_remembers(env, expected):
    assert is_reproducible(EnvRecipe(env)) is expected


def test_vectorised_environments_are_not_reproducible():
    assert not is_reproducible(EnvRecipe("CartPole-v1", backend="vector_entry_point"))


@pytest.mark.parametrize("env", ["Hopper-v5", "LunarLander-v3"])
def test_episodes_over_several_rollouts_are_replayed_bit_for_bit(env):
    recipe = EnvRecipe(env)
    collector = Collector(recipe, 3)
    act = random_actor(collector.envs.action_space, 0)
    rollouts = [collector.collect(lambda obs: act(obs) * np.int64(1), 40) for _ in range(5)]
    last = len(rollouts) - 1
    for entry in range(len(rollouts[last].episodes)):
        whole = cut(rollouts, last, entry)
        again = replay(recipe, whole.seed, whole.actions)
        assert again.obs.tobytes() == whole.obs.tobytes()
        assert again.rewards.tobytes() == whole.rewards.tobytes()
        assert (again.terminated, again.truncated) == (whole.terminated, whole.truncated)


def test_an_episode_without_its_beginning_is_refused():
    collector = Collector(EnvRecipe("HalfCheetah-v5"), 1, reproducible=True)
    act = random_actor(collector.envs.action_space, 0)
    first, second, third = (collector.collect(act, 5) for _ in range(3))
    assert len(cut([first, second, third], 2, 0).rewards) == 15
    with pytest.raises(ValueError, match="begins before"):
        cut([second, third], 1, 0)
    with pytest.raises(ValueError, match="not consecutive"):
        cut([first, third], 1, 0)


def test_a_replay_stops_where_the_episode_ends():
    replayed = replay(EnvRecipe("CartPole-v1"), 3, np.ones(100, np.int64))
    assert replayed.terminated
    assert len(replayed.actions) == len(replayed.rewards) == len(replayed.obs) - 1 < 20
