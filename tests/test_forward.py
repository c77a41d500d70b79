"""From a module to actions: in numpy where there is an export, in torch otherwise."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from actors.environments import make_env
from actors.forward import actor, forward_of, random_actor
from tutelage.policy import MLPPolicy
from tutelage.types import EnvRecipe


class Module(nn.Module):
    """What is asked of a torch RLModule; with `export` also its numpy form."""

    def __init__(self, export):
        super().__init__()
        self.export = export
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 2))

    def _forward(self, batch):
        return {"action_dist_inputs": self.net(batch["obs"])}

    def policy_arrays(self) -> MLPPolicy | None:
        if not self.export:
            return None
        linears = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        weights = [layer.weight.detach().numpy().T.copy() for layer in linears]
        biases = [layer.bias.detach().numpy().copy() for layer in linears]
        return MLPPolicy(weights, biases, "tanh", "categorical")


class TreeModule(nn.Module):
    """Takes a nested observation and has no numpy form."""

    def _forward(self, batch):
        left, right = batch["obs"]["pair"]
        return {"action_dist_inputs": left + right.float() + batch["obs"]["x"]}


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_numpy_and_torch_agree(batch):
    torch.manual_seed(0)
    module = Module(export=True)
    exported = forward_of(module)
    assert isinstance(exported, MLPPolicy)
    module.export = False
    plain = forward_of(module)
    obs = np.random.default_rng(0).standard_normal((batch, 4), np.float32)
    np.testing.assert_allclose(exported(obs), plain(obs), atol=1e-5)


def test_nested_observations_reach_the_module():
    obs = {"pair": (np.ones((3, 2), np.float32), np.ones((3, 2), np.uint8)), "x": np.ones((3, 2), np.float32)}
    np.testing.assert_array_equal(forward_of(TreeModule())(obs), 3)


def test_a_forward_keeps_the_weights_it_was_made_with():
    module = Module(export=True)
    forward = forward_of(module)
    obs = np.ones((2, 4), np.float32)
    before = forward(obs)
    with torch.no_grad():
        module.get_parameter("net.3.weight").zero_()
    np.testing.assert_array_equal(forward(obs), before)
    assert not np.array_equal(forward_of(module)(obs), before)


def test_exploring_draws_and_not_exploring_takes_the_most_likely():
    space = gym.spaces.Discrete(2)
    obs = np.zeros((1000, 4), np.float32)

    def forward(obs):
        return np.broadcast_to(np.array([0.0, 1.0], np.float32), (len(obs), 2))

    assert (actor(forward, space, explore=False)(obs) == 1).all()
    draws = [actor(forward, space, explore=True, rng=np.random.default_rng(s))(obs) for s in (0, 0, 1)]
    assert draws[0].mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.05)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3),
        gym.spaces.Box(-1, 1, (2,)),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(2),
    ],
)
def test_random_actions_are_the_spaces_and_repeatable(space):
    obs = {"a": np.zeros((5, 2)), "b": np.zeros(5)}
    actions = random_actor(space, 3)(obs)
    assert len(actions) == 5
    assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(actions, random_actor(space, 3)(obs))
    assert make_env(EnvRecipe("CartPole-v1")).action_space is not space
