"""The rollout runner, called as RLlib and the trainer call it; most of it without Ray."""

import threading
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from actors.env_runner import RolloutRunner
from tutelage.errors import OracleError
from tutelage.types import EnvRecipe, Failure, Rollout, SampleRequest


class Linear(TorchRLModule):
    """One layer."""

    def setup(self):
        self.layer = torch.nn.Linear(self.observation_space.shape[0], self.action_space.n)

    def _forward(self, batch, **kwargs):
        return {"action_dist_inputs": self.layer(batch["obs"])}


class Always:
    """An expert with one answer; waits for `gate`, fails when `broken`."""

    def __init__(self, answer=1):
        self.answer, self.gate, self.broken, self.threads = answer, threading.Event(), False, set()
        self.gate.set()

    def act(self, obs):
        self.gate.wait(10)
        self.threads.add(threading.current_thread())
        if self.broken:
            raise OracleError("nobody there")
        return np.full(len(obs), self.answer)


@dataclass
class Given:
    """A spec of an expert that is there already."""

    expert: Always
    oracle: str = "given"
    built: int = 0

    def build(self, env=None):
        self.built += 1
        return self.expert


class Config(AlgorithmConfig):
    def __init__(self, expert=None, **settings):
        super().__init__()
        self.env = "CartPole-v1"
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 4
        self.rollout_fragment_length = 10
        self.oracle_spec = None if expert is None else Given(expert)
        self.label_batch = 16
        self.mixture_per = "step"
        self.in_halves = False
        self.max_unlabelled = 1
        self.seed = 5
        self.drawn = 0
        for name, value in settings.items():
            setattr(self, name, value)

    def env_recipe(self):
        return EnvRecipe(self.env)

    def drawn_if_not_replayed(self):
        return self.drawn

    def get_default_rl_module_spec(self):
        return RLModuleSpec(module_class=Linear)

    def __deepcopy__(self, memo):
        return self  # experts with locks in them are shared, not copied


def runner(expert=None, index=0, **settings) -> Any:
    return RolloutRunner(config=Config(expert, **settings), worker_index=index)


def weights(action):
    """A policy that always takes `action`."""
    state = {"layer.weight": np.zeros((2, 4), np.float32), "layer.bias": np.zeros(2, np.float32)}
    state["layer.bias"][action] = 50
    return state


def ask(runner, **request) -> list[Any]:
    return runner.sample(request=SampleRequest(**{"round": 0, **request}))


@pytest.mark.parametrize("action", [0, 1])
def test_weights_come_with_the_request(action):
    r = runner()
    (rollout,) = ask(r, weights=weights(action), version=3)
    assert rollout.shape == (10, 4)
    np.testing.assert_array_equal(rollout.actions, action)
    assert rollout.provenance.version == 3
    (rollout,) = ask(r, weights={DEFAULT_MODULE_ID: weights(1 - action)})
    np.testing.assert_array_equal(rollout.actions, 1 - action)
    (rollout,) = ask(r)
    np.testing.assert_array_equal(rollout.actions, 1 - action)


def test_explore_draws_and_not_exploring_does_not():
    r = runner()
    request = SampleRequest(round=0, weights={**weights(1), "layer.bias": np.array([0, 0.1], np.float32)})
    (greedy,) = r.sample(request=request, explore=False)
    (drawn,) = r.sample(request=request, explore=True)
    np.testing.assert_array_equal(greedy.actions, 1)
    assert 0.2 < drawn.actions.mean() < 0.8
    (random,) = r.sample(random_actions=True)
    assert 0.2 < random.actions.mean() < 0.8


def test_drawn_actions_come_with_their_log_probabilities():
    r = runner(Always())
    log_odds = np.log([0.2, 0.8]).astype(np.float32)
    request = SampleRequest(round=0, weights={**weights(1), "layer.bias": log_odds}, version=1)
    (drawn,) = r.sample(request=request, explore=True)
    assert drawn.logp.dtype == np.float32
    np.testing.assert_allclose(drawn.logp, log_odds[drawn.actions], rtol=1e-5)
    (again,) = r.sample(explore=True)
    np.testing.assert_allclose(again.logp, log_odds[again.actions], rtol=1e-5)


def test_actions_that_no_policy_drew_have_no_log_probabilities():
    r = runner(Always())
    assert ask(r)[0].logp is not None  # RLlib's configs explore unless told otherwise
    assert r.sample(explore=False)[0].logp is None
    assert r.sample(random_actions=True)[0].logp is None
    assert ask(r, beta=0.5)[0].logp is None


def test_labels_are_there_when_waited_for():
    r = runner(Always(0))
    (rollout,) = ask(r, weights=weights(1), label=True, wait=True)
    np.testing.assert_array_equal(rollout.expert_actions, 0)
    np.testing.assert_array_equal(rollout.actions, 1)
    assert r.config.oracle_spec.built == 1


def test_the_expert_is_not_made_before_it_is_asked():
    r = runner(Always())
    ask(r)
    assert r.config.oracle_spec.built == 0


def test_labels_arrive_while_the_next_rollouts_are_collected():
    expert = Always()
    r = runner(expert, max_unlabelled=2)
    expert.gate.clear()
    assert ask(r, label=True, wait=False, version=1) == []
    assert ask(r, label=True, wait=False, version=2) == []
    threading.Timer(0.2, expert.gate.set).start()
    arrived = ask(r, label=True, wait=False, version=3)  # waits: no more than two may be without labels
    arrived += ask(r, label=True, wait=True, version=4)
    assert [rollout.provenance.version for rollout in arrived] == [1, 2, 3, 4]
    assert all(rollout.labels() == 40 for rollout in arrived)


def test_one_thread_at_a_time_asks_the_expert():
    expert = Always()
    r = runner(expert, max_unlabelled=5)
    expert.gate.clear()
    ask(r, label=True, wait=False)
    threading.Timer(0.2, expert.gate.set).start()
    results = ask(r, label=True, wait=False, beta=0.5)
    assert len(results) == 2
    assert all(result.labels() == 40 for result in results)
    assert results[0].by_expert is None
    assert len(expert.threads) == 2


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_an_expert_that_fails_is_returned_and_the_runner_lives_on(beta):
    expert = Always()
    r = runner(expert, index=2)
    expert.broken = True
    assert ask(r, label=True, beta=beta) == [Failure("nobody there", 2)]
    expert.broken = False
    (rollout,) = ask(r, label=True, beta=beta)
    assert isinstance(rollout, Rollout)
    assert rollout.labels() == 40


def test_a_failure_does_not_hide_labels_that_have_arrived():
    expert = Always()
    r = runner(expert, max_unlabelled=5)
    expert.gate.clear()
    ask(r, label=True, wait=False)
    expert.gate.set()
    r._wait_for_labels()
    expert.broken = True
    rollout, failure = ask(r, label=True, wait=True)
    assert (rollout.labels(), failure.error) == (40, "nobody there")


def test_answers_that_do_not_fit_are_a_failure_too():
    (failure,) = ask(runner(Always(7)), label=True)
    assert "actions outside Discrete(2)" in failure.error


def test_without_an_expert_the_setting_is_named():
    (failure,) = ask(runner(), label=True)
    assert "expert.oracle" in failure.error


def test_what_is_wrong_with_the_program_is_not_caught():
    with pytest.raises(AttributeError):
        ask(runner(), weights=3)


def test_evaluation_is_apart_from_collecting():
    r = runner(Always(1))
    ask(r, weights=weights(0))
    before = r.collector._obs.copy()
    returns, lengths = r.evaluate([1, 2, 3, 4, 5])
    np.testing.assert_array_equal(returns, lengths)
    assert 8 <= returns.mean() <= 11  # always left falls over at once
    np.testing.assert_array_equal(r.collector._obs, before)
    np.testing.assert_array_equal(r.evaluate([3, 1])[0], returns[[2, 0]])
    right = r.evaluate([1, 2], weights=weights(1))[0]
    np.testing.assert_array_equal(r.evaluate([1, 2], policy="oracle")[0], right)
    assert r.evaluate(range(20), policy="random")[0].mean() > 12


def test_evaluation_raises_what_the_expert_raises():
    expert = Always()
    expert.broken = True
    with pytest.raises(OracleError, match="nobody there"):
        runner(expert).evaluate([1], policy="oracle")


def test_sampling_as_rllib_asks_for_it():
    r = runner()
    (some,) = r.sample(num_timesteps=25.0)
    assert some.env_steps() == 28
    episodes = r.sample(num_episodes=6)
    assert sum(int(rollout.episodes.done.sum()) for rollout in episodes) >= 6
    np.testing.assert_array_equal(episodes[0].episodes.offset, 0)
    (fresh,) = r.sample(force_reset=True)
    np.testing.assert_array_equal(fresh.episodes.offset, 0)
    assert fresh.agent_steps() == 40


def test_metrics_have_the_names_that_algorithms_read():
    r = runner()
    rollouts = [rollout for _ in range(5) for rollout in r.sample(random_actions=True)]
    finished = np.concatenate([rollout.finished_returns() for rollout in rollouts])
    metrics = {name: stats.peek() for name, stats in r.get_metrics().items() if hasattr(stats, "peek")}
    assert metrics["num_env_steps_sampled"] == metrics["num_env_steps_sampled_lifetime"] == 200
    assert metrics["num_episodes"] == len(finished)
    assert metrics["episode_return_mean"] == pytest.approx(finished.mean())


def test_states_are_saved_and_newer_ones_taken():
    r = runner()
    r.set_state({COMPONENT_RL_MODULE: weights(1), WEIGHTS_SEQ_NO: 5})
    r.set_state({COMPONENT_RL_MODULE: weights(0), WEIGHTS_SEQ_NO: 4})
    assert r.module.get_state()["layer.bias"][1] == 50
    state = r.get_state()
    assert state[WEIGHTS_SEQ_NO] == 5
    r.set_state({COMPONENT_RL_MODULE: weights(0)})
    assert r.module.get_state()["layer.bias"][0] == 50
    other = runner()
    other.set_state(state)
    np.testing.assert_array_equal(ask(other)[0].actions, 1)
    assert COMPONENT_RL_MODULE not in r.get_state(not_components=COMPONENT_RL_MODULE)


def test_a_local_runner_beside_remote_ones_has_spaces_and_no_environment():
    spaces = runner().get_spaces()
    assert set(spaces) == {INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES, DEFAULT_MODULE_ID}
    assert spaces[INPUT_ENV_SPACES][0].shape == (4, 4)
    local = RolloutRunner(config=Config(num_env_runners=2), worker_index=0, spaces=spaces)
    assert local.get_spaces() == spaces
    assert isinstance(local.module.action_space, gym.spaces.Discrete)
    with pytest.raises(ValueError, match="no environments"):
        local.sample()
    with pytest.raises(AssertionError):
        local.assert_healthy()


def test_a_stopped_runner_waits_for_nobody():
    expert = Always()
    r = runner(expert, max_unlabelled=3)
    r.assert_healthy()
    expert.gate.clear()
    ask(r, label=True, wait=False)
    r.stop()
    expert.gate.set()


def test_runners_and_rounds_have_seeds_of_their_own():
    seeds = [
        set(ask(runner(index=index), round=i)[0].episodes.seed)
        for index, i in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert seeds[0] == seeds[3]
    assert not seeds[0] & seeds[1]
    assert not seeds[0] & seeds[2]


def test_a_runner_is_an_actor_that_takes_references(ray_session):
    actor: Any = ray.remote(RolloutRunner).remote(config=Config(num_env_runners=1), worker_index=1)
    reference = ray.put(weights(1))
    request = SampleRequest(round=0, weights=reference, version=2)
    (rollout,) = ray.get(actor.apply.remote(lambda runner: runner.sample(request=request)))
    np.testing.assert_array_equal(rollout.actions, 1)
    assert rollout.provenance.runner == 1
    assert ray.get(actor.ping.remote()) == "pong"
    ray.kill(actor)


def test_pictures_are_kept_as_the_config_says_where_episodes_are_not_replayed():
    (rollout,) = ask(runner(env="tests.environments_for_tests:Restless-v0", drawn=2))
    assert rollout.pictures.obs.shape == (11, 2)
    assert rollout.logp is not None
    (rollout,) = ask(runner(drawn=2))
    assert rollout.pictures is None
