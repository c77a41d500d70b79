"""Numpy policies: the same numbers as torch, the right distributions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from learner import losses
from tutelage.policy import MLPPolicy, distribution_of, log_prob, mode, sample

N = 20_000


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("batch", [1, 64, 300])
def test_forward_equals_torch(activation, normalised, batch):
    torch.manual_seed(0)
    layers = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
    net = nn.Sequential(nn.Linear(17, 64), layers(), nn.Linear(64, 64), layers(), nn.Linear(64, 6))
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    mean, std = torch.randn(17), torch.rand(17) + 0.1
    policy = MLPPolicy(
        weights=[layer.weight.detach().numpy().T for layer in linears],
        biases=[layer.bias.detach().numpy() for layer in linears],
        activation=activation,
        distribution="gaussian",
        log_std=np.linspace(-1, 1, 6, dtype=np.float32),
        **(
            {"obs_mean": mean.numpy(), "obs_std": std.numpy(), "obs_clip": 2.0} if normalised else {}  # type: ignore[arg-type]
        ),
    )
    obs = torch.randn(batch, 17) * 3
    kept = obs.clone()
    x = ((obs - mean) / std).clamp(-2, 2) if normalised else obs
    params = policy(obs.numpy())
    assert params.dtype == np.float32
    np.testing.assert_allclose(params[:, :6], net(x).detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(params[:, 6:], np.broadcast_to(policy.log_std, (batch, 6)))  # type: ignore[arg-type]
    assert torch.equal(obs, kept)


@pytest.mark.parametrize("shape", [(0, 6), (0, 2, 3), (4, 2, 3)])
def test_forward_takes_any_number_of_rows_of_any_shape(shape):
    W, b = np.eye(6, dtype=np.float32), np.zeros(6, np.float32)
    policy = MLPPolicy([W], [b], "tanh", "gaussian", W[0], W[0] + 1, 10.0, log_std=b)
    params = policy(np.ones(shape, np.float32))
    assert params.shape == (shape[0], 12)
    assert mode(params, "gaussian").shape == (shape[0], 6)


def test_a_single_layer_leaves_its_input_alone():
    obs = np.ones((2, 3), np.float32)
    policy = MLPPolicy([np.eye(3, dtype=np.float32)], [np.ones(3, np.float32)], "tanh", "categorical")
    np.testing.assert_array_equal(policy(obs), 2)
    np.testing.assert_array_equal(obs, 1)


def drawn(params, distribution, nvec=()):
    params = np.broadcast_to(np.asarray(params, np.float32), (N, len(params)))
    return sample(params, distribution, np.random.default_rng(0), nvec)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(
    ("distribution", "nvec"),
    [("gaussian", ()), ("categorical", ()), ("multi_categorical", (3, 5)), ("bernoulli", ())],
)
def test_log_probabilities_are_those_of_the_losses(distribution, nvec):
    rng = np.random.default_rng(0)
    params = 3 * rng.standard_normal((50, 8), np.float32)
    actions = sample(params, distribution, rng, nvec)
    expected = losses.log_prob(torch.from_numpy(params), torch.from_numpy(actions), distribution, nvec)
    logp = log_prob(params, actions, distribution, nvec)
    assert logp.shape == (50,)
    np.testing.assert_allclose(logp, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_log_probabilities_of_large_logits_are_finite():
    assert log_prob(np.array([[1e4, 0.0]], np.float32), np.array([1]), "categorical") == -1e4
    assert log_prob(np.array([[1e4, -1e4]], np.float32), np.array([[0, 0]]), "bernoulli") == -1e4


def test_categorical_draws_follow_the_softmax():
    actions = drawn([0.0, 1.0, -1.0], "categorical")
    np.testing.assert_allclose(np.bincount(actions) / N, softmax([0, 1, -1]), atol=0.01)


def test_multi_categorical_draws_follow_each_softmax():
    actions = drawn([0.0, 1.0, 2.0, 0.0, 0.0], "multi_categorical", (2, 3))
    assert actions.shape == (N, 2)
    np.testing.assert_allclose(np.bincount(actions[:, 0]) / N, softmax([0, 1]), atol=0.01)
    np.testing.assert_allclose(np.bincount(actions[:, 1]) / N, softmax([2, 0, 0]), atol=0.01)


def test_bernoulli_draws_follow_the_sigmoid():
    actions = drawn([-1.0, 0.0, 2.0], "bernoulli")
    assert actions.dtype == np.int8
    np.testing.assert_allclose(actions.mean(0), 1 / (1 + np.exp([1, 0, -2])), atol=0.015)


def test_gaussian_draws_have_the_mean_and_deviation():
    actions = drawn([1.0, -1.0, 0.0, -2.0], "gaussian")
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(0), [1, -1], atol=0.03)
    np.testing.assert_allclose(actions.std(0), np.exp([0, -2]), rtol=0.02)


def test_modes_are_the_most_likely_actions():
    np.testing.assert_array_equal(mode(np.array([[3.0, -1.0, 0.0, 0.0]]), "gaussian"), [[3, -1]])
    np.testing.assert_array_equal(mode(np.array([[0.0, 2.0, 1.0]]), "categorical"), [1])
    np.testing.assert_array_equal(
        mode(np.array([[0.0, 2.0, 1.0, 5.0, 0.0]]), "multi_categorical", (2, 3)), [[1, 1]]
    )
    np.testing.assert_array_equal(mode(np.array([[-1.0, 1.0]]), "bernoulli"), [[0, 1]])


def test_no_draw_of_zero_warns():
    with np.errstate(all="raise"):
        for seed in range(20):
            sample(np.zeros((5000, 8), np.float32), "categorical", np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Box(-1, 1, (3,)), ("gaussian", ())),
        (gym.spaces.Discrete(3), ("categorical", ())),
        (gym.spaces.MultiDiscrete([2, 3]), ("multi_categorical", (2, 3))),
        (gym.spaces.MultiBinary(4), ("bernoulli", ())),
    ],
)
def test_distributions_by_space(space, expected):
    assert distribution_of(space) == expected


@pytest.mark.parametrize("space", [gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Text(4)])
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="not supported"):
        distribution_of(space)
