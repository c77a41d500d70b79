"""CPL: its loss by hand, ties, and answers by regret make the preferred actions likely."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from learner.methods.cpl import CPL
from learner.nets import PolicyModule
from tests.test_learner import make_learner, rollouts

OBS = Box(-np.inf, np.inf, (3,), np.float32)


class Known:
    """A policy of two actions, the second with probability p = obs[0]."""

    distribution = "categorical"
    nvec = ()

    def policy(self, obs):
        return torch.stack([1 - obs[:, 0], obs[:, 0]], dim=-1).log()


def minibatch(p, actions, weights, ended=None) -> dict[str, Any]:
    actions = torch.tensor(actions)
    return {
        "obs": torch.tensor(p)[..., None],
        "actions": actions,
        "weights": torch.tensor(weights),
        "ended": torch.zeros(actions.shape, dtype=torch.bool) if ended is None else torch.tensor(ended),
    }


def loss(method, rows):
    value, figures = method.loss(Known(), rows)
    return float(value), {name: float(figure) for name, figure in figures.items()}


def test_the_loss_by_hand():
    """Steps of log π = log .8, log .6 | log .3, and one after the end, which does not count."""
    one = minibatch(
        [[[0.8, 0.4], [0.3, 0.9]]], [[[1, 0], [1, 1]]], [[1.0, 0.0]], [[[False] * 2, [False, True]]]
    )
    method = CPL(alpha=0.5, conservative=0.25, gamma=0.5, cloning=0.1)
    a, b = 0.5 * (np.log(0.8) + 0.5 * np.log(0.6)), 0.5 * np.log(0.3)
    contrast = -np.log(np.exp(a) / (np.exp(a) + np.exp(0.25 * b)))
    cloning = -np.log([0.8, 0.6, 0.3]).mean()
    value, figures = loss(method, one)
    assert value == pytest.approx(contrast + 0.1 * cloning, rel=1e-5)
    assert figures == pytest.approx({"loss": contrast, "nll": cloning, "accuracy": 1.0}, rel=1e-5)
    other = {**one, "weights": torch.tensor([[0.0, 1.0]])}
    assert loss(method, other)[0] == pytest.approx(
        -np.log(np.exp(b) / (np.exp(b) + np.exp(0.25 * a))) + 0.1 * cloning, rel=1e-5
    )


def test_where_all_answers_were_taken_back_nothing_is_learnt(tmp_path):
    learner = make_learner(tmp_path, "cpl", settings={"ask_until": 100})
    before = [p.clone() for p in learner.policy.pi.parameters()]
    figures = learner.update(rollouts(oracle=None), key="0", seed=0, env_steps=256)
    assert figures == {"minibatches": 0}
    torch.testing.assert_close(before, [*learner.policy.pi.parameters()])


def test_ties_do_not_count_as_right():
    p, actions = [[[0.8], [0.3]]] * 3, [[[1], [1]]] * 3
    assert loss(CPL(), minibatch(p, actions, [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))[1]["accuracy"] == 0.5
    assert loss(CPL(), minibatch(p, actions, [[0.5, 0.5]] * 3))[1]["accuracy"] == 0


def test_answers_by_regret_make_the_preferred_actions_likely():
    rng, method = np.random.default_rng(0), CPL()
    torch.manual_seed(0)
    module = PolicyModule(
        observation_space=OBS,
        action_space=Discrete(2),
        model_config={"value": False, "fcnet_hiddens": [32], "fcnet_activation": "relu"},
    )
    obs = rng.standard_normal((200, 2, 5, 3), np.float32)
    actions = rng.integers(0, 2, (200, 2, 5))
    best = (obs[..., 0] > 0).astype(int)
    wrong = (actions != best).sum(-1)
    weights = np.where(wrong[:, :1] == wrong[:, 1:], 0.5, np.eye(2)[wrong.argmin(-1)])
    rows = {
        "obs": torch.from_numpy(obs),
        "actions": torch.from_numpy(actions),
        "weights": torch.from_numpy(weights.astype(np.float32)),
        "ended": torch.zeros(200, 2, 5, dtype=torch.bool),
    }
    fresh = rng.standard_normal((500, 3), np.float32)

    def p_best():
        p = module.policy(torch.from_numpy(fresh)).softmax(-1).detach().numpy()  # type: ignore[union-attr]
        return p[np.arange(500), (fresh[:, 0] > 0).astype(int)].mean()

    assert p_best() == pytest.approx(0.5, abs=0.05)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        method.loss(module, rows)[0].backward()
        optimiser.step()
    assert p_best() > 0.75
