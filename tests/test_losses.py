from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from learner.losses import (
    approximate_kl,
    clipped_surrogate,
    entropy,
    generalized_advantages,
    log_prob,
)

NVEC = (3, 2, 4)


def reference(distribution, params) -> Any:
    match distribution:
        case "gaussian":
            mean, log_std = params.chunk(2, dim=-1)
            return Independent(Normal(mean, log_std.exp()), 1)
        case "categorical":
            return Categorical(logits=params)
        case "bernoulli":
            return Independent(Bernoulli(logits=params), 1)


@pytest.mark.parametrize("distribution", ["gaussian", "categorical", "bernoulli"])
def test_log_prob_and_entropy_are_those_of_torch_distributions(distribution):
    torch.manual_seed(0)
    params = torch.randn(50, 6)
    expected = reference(distribution, params)
    actions = expected.sample()
    torch.testing.assert_close(log_prob(params, actions, distribution), expected.log_prob(actions))
    torch.testing.assert_close(entropy(params, distribution), expected.entropy())


def test_a_log_std_of_all_states_is_as_one_in_each():
    torch.manual_seed(0)
    mean, log_std, actions = torch.randn(50, 3), torch.randn(3), torch.randn(50, 3)
    joined = torch.cat([mean, log_std.expand_as(mean)], dim=-1)
    torch.testing.assert_close(
        log_prob((mean, log_std), actions, "gaussian"), log_prob(joined, actions, "gaussian")
    )
    torch.testing.assert_close(entropy((mean, log_std), "gaussian"), entropy(joined, "gaussian")[0])


def test_multi_categorical_is_the_product_of_its_components():
    torch.manual_seed(0)
    params = torch.randn(20, sum(NVEC))
    parts = [Categorical(logits=logits) for logits in params.split(list(NVEC), dim=-1)]
    actions = torch.stack([part.sample() for part in parts], dim=-1)
    expected = sum(part.log_prob(actions[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(log_prob(params, actions, "multi_categorical", NVEC), expected)
    torch.testing.assert_close(
        entropy(params, "multi_categorical", NVEC), sum(part.entropy() for part in parts)
    )


def naive_advantages(rewards, values, next_values, terminated, ends, gamma, lambda_):
    T, B = rewards.shape
    result = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                alive = 0.0 if terminated[k, b] else 1.0
                delta = rewards[k, b] + gamma * alive * next_values[k, b] - values[k, b]
                total += weight * delta
                weight *= gamma * lambda_
                if ends[k, b]:
                    break
            result[t, b] = total
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_advantages_are_the_sum_of_the_paper(seed, gamma, lambda_):
    rng = np.random.default_rng(seed)
    shape = (12, 3)
    terminated, truncated = rng.random(shape) < 0.1, rng.random(shape) < 0.1
    rewards, values, next_values = rng.normal(size=(3, *shape))
    arguments = [rewards, values, next_values, terminated, terminated | truncated]
    tensors: Any = [torch.from_numpy(array) for array in arguments]
    ours = generalized_advantages(*tensors, gamma=gamma, lambda_=lambda_)
    expected = naive_advantages(*list(arguments), gamma=gamma, lambda_=lambda_)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


def test_a_time_limit_is_bootstrapped_and_a_terminal_state_is_not():
    one = torch.ones(1, 1)
    ended = torch.ones(1, 1, dtype=torch.bool)
    arguments = {"gamma": 0.5, "lambda_": 0.9}
    cut = generalized_advantages(one, one, 10 * one, ~ended, ended, **arguments)
    over = generalized_advantages(one, one, 10 * one, ended, ended, **arguments)
    assert cut.item() == pytest.approx(1 + 0.5 * 10 - 1)
    assert over.item() == pytest.approx(1 - 1)


def test_surrogate_pulls_towards_good_actions_only_inside_the_clip():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    log_ratio = torch.tensor([1.0, 1.3, 1.0, 0.7]).log().requires_grad_()
    clipped_surrogate(log_ratio, advantages, clip=0.2).backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[0] < 0 < log_ratio.grad[2]
    assert log_ratio.grad[1] == log_ratio.grad[3] == 0


def test_surrogate_is_the_minimum_of_the_paper():
    torch.manual_seed(0)
    log_ratio, advantages = 0.5 * torch.randn(500), torch.randn(500)
    ratio = log_ratio.exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    torch.testing.assert_close(clipped_surrogate(log_ratio, advantages, clip=0.2), expected)


def test_approximate_kl_is_zero_for_equal_policies_and_positive_otherwise():
    assert approximate_kl(torch.zeros(2)) == 0
    assert approximate_kl(torch.tensor([0.3, -0.3])) > 0
