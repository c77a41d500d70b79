"""Experts made of experts: those that agree, err, or take their time."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from gymnasium import spaces

from expert_oracle.loading import OracleSpec, SelfDescribing, checked, made_for
from expert_oracle.wrappers import Noisy, Slow, agreed
from tutelage.errors import ConfigError, OracleError

HERE = __file__
OBS = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
POLES = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)


class Constant:
    """Says the same of every state."""

    def __init__(self, value=1.0):
        self.value = np.asarray(value)

    def act(self, obs):
        return np.broadcast_to(self.value, (len(obs), *self.value.shape))


class Nested:
    """Says a tree of actions."""

    def act(self, obs):
        return {"arm": obs[:, :2], "grip": np.ones(len(obs), int)}


def build(word, **arguments):
    return OracleSpec(word, arguments).build()


def constant(value):
    return {"oracle": f"{HERE}:Constant", "arguments": {"value": value}}


def test_the_mean_and_the_majority():
    np.testing.assert_allclose(
        agreed([np.ones((2, 3)), np.full((2, 3), 4.0)], discrete=False), np.full((2, 3), 2.5)
    )
    votes = [np.array([0, 1, 2]), np.array([1, 1, 0]), np.array([1, 2, 1])]
    np.testing.assert_array_equal(agreed(votes, discrete=True), [1, 1, 2])


def test_ensembles():
    word = "expert_oracle.wrappers:Ensemble"
    mean = build(word, oracles=[constant([1.0, 0.0]), constant([2.0, 6.0])])
    np.testing.assert_array_equal(mean.act(OBS)[:2], [[1.5, 3]] * 2)
    most = build(word, oracles=[constant(2), "scripted:cartpole", constant(2)])
    assert (most.act(POLES) == 2).all()
    alike = build(word, oracles=["scripted:pendulum", "scripted:pendulum"])
    np.testing.assert_allclose(alike.act(OBS), build("scripted:pendulum").act(OBS))
    assert isinstance(alike, SelfDescribing)
    assert alike.describe().env_id == "Pendulum-v1"
    trees = build(word, oracles=[f"{HERE}:Nested", f"{HERE}:Nested"]).act(OBS)
    np.testing.assert_allclose(trees["arm"], OBS[:, :2])
    assert trees["grip"].dtype.kind == "i"


def test_gaussian_noise():
    expert, noisy = build("scripted:pendulum"), build("noisy:scripted:pendulum", std=0.3)
    errors = noisy.act(OBS) - expert.act(OBS)
    assert errors.std() == pytest.approx(0.3, rel=0.05)
    assert abs(errors.mean()) < 0.03
    again = build("noisy:scripted:pendulum", std=0.3)
    np.testing.assert_array_equal(noisy.act(OBS), [again.act(OBS), again.act(OBS)][1])
    assert not np.array_equal(
        build("noisy:scripted:pendulum", std=0.3, seed=1).act(OBS) - expert.act(OBS), errors
    )
    space = spaces.Box(-2, 2, (1,))
    assert abs(checked(noisy, spaces.Box(-8, 8, (3,)), space, "noisy").act(OBS)).max() <= 2


def test_random_actions():
    torque = build("noisy:scripted:pendulum", p=0.25).act(OBS)
    other = (torque != build("scripted:pendulum").act(OBS)).mean()
    assert other == pytest.approx(0.25, abs=0.04)
    push = build("noisy:scripted:cartpole", p=0.5).act(POLES)
    assert push.dtype.kind == "i"
    assert (push != build("scripted:cartpole").act(POLES)).mean() == pytest.approx(0.25, abs=0.04)
    assert set(push) == {0, 1}


def test_no_two_actors_or_processes_of_a_service_err_alike():
    def errors(run_seed, actor):
        with made_for(run_seed, actor):
            noisy = build(f"slow:noisy:{HERE}:Constant", seconds=0.0, std=1.0, value=[0.0])
        return noisy.act(OBS)

    everyone = [errors(run_seed, actor) for run_seed in (0, 1) for actor in (0, 1, 2)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        everyone.append(pool.submit(_errors).result(60))
    for i, one in enumerate(everyone):
        for other in everyone[:i]:
            assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.2
    np.testing.assert_array_equal(errors(1, 2), everyone[5])


def _errors():
    return build(f"noisy:{HERE}:Constant", std=1.0, value=[0.0]).act(OBS)


def test_arguments_of_the_expert_inside():
    inner = build(f"noisy:{HERE}:Constant", std=0.0, value=[3.0])
    assert (inner.act(OBS) == 3).all()
    both = build(f"slow:noisy:{HERE}:Constant", seconds=0.0, p=0.0, value=[4.0])
    assert (both.act(OBS) == 4).all()


@pytest.mark.parametrize("distribution", ["constant", "exponential", "lognormal"])
def test_latency(distribution):
    slow = Slow("scripted:pendulum", seconds=0.002, distribution=distribution)
    np.testing.assert_array_equal(slow.act(OBS), build("scripted:pendulum").act(OBS))
    start = time.perf_counter()
    for _ in range(20):
        slow.act(OBS[:1])
    assert time.perf_counter() - start > 0.015
    factors = [slow._factor() for _ in range(4000)]
    assert np.mean(factors) == pytest.approx(1, abs=0.15)
    assert (np.std(factors) == 0) == (distribution == "constant")


@pytest.mark.parametrize(
    ("word", "arguments", "line"),
    [
        ("noisy:scripted:pendulums", {}, "no scripted expert 'pendulums'"),
        ("noisy:scripted:pendulum", {"std": -1}, "noisy: std=-1 must be 0 or more"),
        ("noisy:scripted:pendulum", {"p": 2}, "p=2 between 0 and 1"),
        ("noisy:scripted:pendulum", {"sdt": 2}, "takes no arguments, got sdt"),
        (
            f"noisy:{HERE}:Constant",
            {"p": 0.5},
            "noisy: p needs an expert that describes .*:Constant does not",
        ),
        ("slow:scripted:pendulum", {"distribution": "normal"}, r"did you mean 'lognormal'\?"),
        ("expert_oracle.wrappers:Ensemble", {"oracles": "scripted:pendulum"}, "oracles is a list of experts"),
        (
            "expert_oracle.wrappers:Ensemble",
            {"oracles": [{"word": "x"}]},
            "a member is a word or {oracle: WORD",
        ),
    ],
)
def test_what_is_wrong_is_one_line(word, arguments, line):
    with pytest.raises(ConfigError, match=line) as info:
        build(word, **arguments)
    assert "\n" not in str(info.value)


def test_what_does_not_fit_is_one_line():
    unlike = build("expert_oracle.wrappers:Ensemble", oracles=[constant([1.0]), constant([1.0, 2.0])])
    with pytest.raises(OracleError, match=r"Ensemble: .*Constant do not fit together"):
        unlike.act(OBS)
    with pytest.raises(OracleError, match="answers integers, for which there is p, not std"):
        Noisy("scripted:cartpole", std=0.1).act(POLES)
