import numpy as np
import pytest

from actors.forward import Judge
from actors.mixture import Mixture, Turn
from expert_oracle.loading import FunctionOracle

EXPERT = FunctionOracle(lambda obs: np.ones(len(obs)))


def draws(mixture, steps, began=lambda t: np.zeros(1000, bool)):
    rng = np.random.default_rng(0)
    obs, actions = np.zeros((1000, 2)), np.zeros(1000)

    def turn(t):
        return Turn(obs, actions, began(t), rng, lambda mask: EXPERT.act(obs), Judge(None), EXPERT)

    return np.array([mixture(turn(t)) for t in range(steps)])


def test_each_step_and_environment_draws_by_itself():
    by_expert = draws(Mixture(beta=0.3), 100)
    assert by_expert.mean() == pytest.approx(0.3, abs=0.01)
    assert np.corrcoef(by_expert[:-1].ravel(), by_expert[1:].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_per_episode_draws_hold_until_the_next_episode():
    by_expert = draws(Mixture(beta=0.5, per="episode"), 20, lambda t: np.full(1000, t % 10 == 0))
    np.testing.assert_array_equal(by_expert[:10], np.broadcast_to(by_expert[0], (10, 1000)))
    np.testing.assert_array_equal(by_expert[10:], np.broadcast_to(by_expert[10], (10, 1000)))
    assert (by_expert[0] != by_expert[10]).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("per", ["step", "episode"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_the_range_are_certain(per, beta):
    assert (draws(Mixture(beta=beta, per=per), 20) == beta).all()
