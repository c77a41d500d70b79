from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from actors.collect import Collector, label, with_logp
from actors.forward import actor, forward_of
from expert_oracle.loading import OracleSpec
from learner.learner import MethodLearner, minibatches, warm_policy
from learner.methods import make_method
from learner.methods.bc import BC
from learner.nets import PolicyModule
from learner.reward_scale import RewardScale
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError, TrainingError
from tutelage.types import EnvRecipe

CARTPOLE = EnvRecipe("CartPole-v1")


def make_learner(tmp_path, method="dagger", env="CartPole-v1", settings=None, model=None, **training) -> Any:
    made = gym.make(env)
    config: Any = TrainerConfig()
    config.learning_method = make_method(method, settings or {})
    config.run_directory = str(tmp_path)
    config.training(**{"lr": 1e-3, "minibatch_size": 64, "num_epochs": 2, **training})
    spec = RLModuleSpec(
        module_class=PolicyModule,
        observation_space=made.observation_space,
        action_space=made.action_space,
        model_config=model or {"value": config.learning_method.needs_value},
    )
    torch.manual_seed(0)
    learner = MethodLearner(
        config=config, module_spec=MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec})
    )
    learner.build()
    return learner


def rollouts(
    steps=64, envs=4, *, recipe=CARTPOLE, oracle: str | None = "scripted:cartpole", round=0
) -> list[Any]:
    collector = Collector(CARTPOLE, envs, reproducible=True)
    space = collector.envs.action_space
    rng = np.random.default_rng(round)
    rollout = collector.collect(
        lambda obs: np.stack([space.sample() for _ in range(envs)]) if rng else obs, steps, round=round
    )
    return [label(rollout, OracleSpec(oracle, {}).build(), space) if oracle else rollout]


def own_rollouts(learner, steps=64, envs=4, *, round=0) -> list[Any]:
    """Rollouts that the learner's policy sampled."""
    collector = Collector(CARTPOLE, envs, reproducible=True)
    forward, space = forward_of(learner.policy), collector.envs.action_space
    act = actor(forward, space, explore=True, rng=np.random.default_rng(round))
    return [with_logp(collector.collect(act, steps, round=round), forward, space)]


def test_dagger_stores_what_it_learns_from_once(tmp_path):
    learner = make_learner(tmp_path)
    taken = rollouts()
    first = learner.update(taken, key="round-0", seed=0, env_steps=256)
    again = learner.update(taken, key="round-0", seed=0, env_steps=256)
    assert first["dataset"] == again["dataset"] == first["expert_labels"] == first["dataset_steps"] == 256
    assert first["minibatches"] == 2 * 4


def test_dagger_descends_and_clones_a_simple_expert(tmp_path):
    learner = make_learner(tmp_path, num_epochs=30)
    taken = rollouts(256, 4)
    learner.update(taken, key="round-0", seed=0, env_steps=1024)
    figures = learner.update([], key="round-1", seed=1, env_steps=1024)
    assert figures["loss"] < 0.2  # chance: log 2 = 0.69
    obs, expert = taken[0].obs[:-1].reshape(-1, 4), taken[0].expert_actions.reshape(-1)
    chosen = forward_of(learner.policy)(obs).argmax(-1)
    assert (chosen == expert).mean() > 0.9


def test_observation_moments_are_those_of_the_dataset(tmp_path):
    learner = make_learner(tmp_path)
    taken = rollouts()
    learner.update(taken, key="round-0", seed=0, env_steps=256)
    obs = taken[0].obs[:-1].reshape(-1, 4)
    norm = learner.policy.encoder.leaves[0].norm
    np.testing.assert_allclose(norm.mean.numpy(), obs.mean(0), atol=1e-5)
    np.testing.assert_allclose(norm.std.numpy(), obs.std(0), rtol=1e-4)


def test_ppo_freezes_the_moments_that_its_rollouts_were_made_with(tmp_path):
    learner = make_learner(tmp_path, "ppo")
    taken = own_rollouts(learner)
    learner.update(taken, key="round-0", seed=0, env_steps=256)
    norm = learner.policy.encoder.leaves[0].norm
    assert float(norm.count) == 256
    figures = learner.update(taken, key="round-1", seed=1, env_steps=512)
    assert float(norm.count) == 512
    assert figures["kl"] >= 0


def test_ppo_compares_with_the_policy_that_acted_not_with_the_present_one(tmp_path):
    learner = make_learner(tmp_path, "ppo")
    taken = own_rollouts(learner)
    columns = learner.method.label(taken[0], learner)
    np.testing.assert_array_equal(columns["logp"], taken[0].logp.reshape(-1))
    assert float(learner.method.loss(learner.policy, columns)[1]["kl"]) == pytest.approx(0, abs=1e-6)
    learner.update(taken, key="round-0", seed=0, env_steps=256)
    late = learner.method.label(taken[0], learner)  # as an asynchronous runner's rollout
    np.testing.assert_array_equal(late["logp"], columns["logp"])
    assert float(learner.method.loss(learner.policy, late)[1]["kl"]) > 1e-6


def test_ppo_refuses_rollouts_whose_actions_nobody_drew(tmp_path):
    learner = make_learner(tmp_path, "ppo")
    with pytest.raises(TrainingError, match=r"runner 0 in round 0 has no log-probabilities.*explore=True"):
        learner.update(rollouts(oracle=None), key="round-0", seed=0, env_steps=256)


def test_states_round_trip(tmp_path):
    learner = make_learner(tmp_path / "a", "ppo")
    learner.update(own_rollouts(learner), key="round-0", seed=0, env_steps=256)
    other = make_learner(tmp_path / "b", "ppo")
    other.set_state(learner.get_state())
    assert other.reward_scale.std == learner.reward_scale.std
    for a, b in zip(learner.policy.state_dict().values(), other.policy.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    learner.reward_scale.carried.clear()  # a restored trainer begins new episodes
    taken = own_rollouts(learner, round=1)
    for each in (learner, other):
        each.update(taken, key="round-1", seed=1, env_steps=512)
    for a, b in zip(learner.policy.parameters(), other.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # Adam's moments were restored too


def test_an_update_is_adam_on_the_clipped_gradient(tmp_path):
    learner = make_learner(tmp_path, "bc", grad_clip=0.01, num_epochs=1, minibatch_size=256)
    taken = rollouts()
    learner.dataset.append(taken, key="round-0")
    learner._set_norms(learner.dataset)
    before = [param.detach().clone().requires_grad_() for param in learner.policy.parameters()]
    for copy, param in zip(before, learner.policy.parameters(), strict=True):
        copy.grad = torch.zeros_like(param)
    obs, actions = taken[0].obs[:-1].reshape(-1, 4), taken[0].expert_actions.reshape(-1)
    loss, _ = learner.method.loss(
        learner.policy, {"obs": torch.tensor(obs), "actions": torch.tensor(actions)}
    )
    for copy, gradient in zip(before, torch.autograd.grad(loss, learner.policy.parameters()), strict=True):
        copy.grad = gradient
    torch.nn.utils.clip_grad_norm_(before, 0.01)
    torch.optim.Adam(before, lr=1e-3, eps=1e-5).step()
    learner.update([], key="", seed=0, env_steps=256)
    for expected, param in zip(before, learner.policy.parameters(), strict=True):
        torch.testing.assert_close(param, expected, atol=1e-6, rtol=1e-4)


def test_learning_rate_schedule_is_followed(tmp_path):
    learner = make_learner(tmp_path, lr=[[0, 1e-3], [1000, 0.0]])
    learner.update(rollouts(), key="round-0", seed=0, env_steps=500)
    assert learner.get_optimizer(DEFAULT_MODULE_ID).param_groups[0]["lr"] == pytest.approx(5e-4)


def test_a_diverging_loss_is_an_error(tmp_path):
    learner = make_learner(tmp_path)
    with torch.no_grad():
        learner.policy.pi[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="diverged"):
        learner.update(rollouts(), key="round-0", seed=0, env_steps=256)


def test_minibatches_cover_a_chunk_and_drop_only_scraps():
    chunk = {"obs": torch.arange(100)}
    assert [len(m["obs"]) for m in minibatches(iter([chunk]), 30)] == [30, 30, 30]
    assert [len(m["obs"]) for m in minibatches(iter([chunk]), 40)] == [40, 40, 20]
    assert [len(m["obs"]) for m in minibatches(iter([chunk]), 256)] == [100]


def test_reward_scale_is_the_spread_of_discounted_returns():
    scale = RewardScale()
    (rollout,) = rollouts(500, 8, oracle=None)
    returns, running = [], np.zeros(8)
    for t in range(500):
        running = rollout.rewards[t] + 0.9 * running
        returns.append(running.copy())
        running[rollout.terminated[t] | rollout.truncated[t]] = 0
    assert scale.update(rollout, 0.9) == pytest.approx(np.std(returns), rel=1e-3)


def test_rows_spent_on_resets_are_no_part_of_any_discounted_return():
    (rollout,) = rollouts(200, 8, oracle=None)
    ends = rollout.terminated | rollout.truncated
    valid = ~np.concatenate([np.zeros((1, 8), bool), ends[:-1]])
    stds = [
        RewardScale().update(replace(rollout, rewards=np.where(valid, 1.0, other), valid=valid), 0.9)
        for other in (0.0, 50.0)
    ]
    assert stds[0] == stds[1]


def test_unknown_methods_and_settings_are_named():
    assert isinstance(make_method("bc", {}), BC)
    with pytest.raises(ConfigError, match="no method 'dager'; did you mean 'dagger'"):
        make_method("dager", {})
    with pytest.raises(ConfigError, match=r"method.bta is not a setting of dagger; did you mean 'beta'"):
        make_method("dagger", {"bta": 1})


@pytest.mark.parametrize("method", ["ppo", "preference"])
def test_a_warm_start_acts_like_the_policy_it_began_with_and_learns_its_values_first(tmp_path, method):
    warm = {"warm_start": "cartpole", "value_first": 2, "entropy_coefficient": 0.01}
    asking = {"ask_until": 1000} if method == "preference" else {}
    learner = make_learner(tmp_path, method, settings={**warm, **asking})
    reward = learner.reward_model.state_dict() if method == "preference" else None
    known = warm_policy("cartpole")
    obs = rollouts(oracle=None)[0].obs.reshape(-1, 4)
    np.testing.assert_allclose(forward_of(learner.policy)(obs), known(obs), atol=1e-4)
    value = learner.values(obs, leading=(len(obs),))
    for round in range(3):
        layers = list(learner.policy.pi.parameters())
        before = [layer.clone() for layer in layers]
        taken = own_rollouts(learner, round=round)
        learner.update(taken, key=str(round), seed=round, env_steps=256, reward=reward)
        moved = any(
            not torch.equal(a, b) for a, b in zip(before, learner.policy.pi.parameters(), strict=True)
        )
        assert moved == (round >= 2)
    assert not torch.equal(value, learner.values(obs, leading=(len(obs),)))


@pytest.mark.parametrize("updates", [0, 2])
def test_no_bonus_widens_a_policy_while_its_values_are_learnt(tmp_path, updates):
    settings = {"value_first": 1, "entropy_coefficient": 0.01}
    learner = make_learner(tmp_path, "ppo", "Pendulum-v1", settings=settings)
    learner._weights_seq_no = updates
    collector = Collector(EnvRecipe("Pendulum-v1"), 2, reproducible=True)
    forward, space = forward_of(learner.policy), collector.envs.action_space
    act = actor(forward, space, explore=True, rng=np.random.default_rng(0))
    before = learner.policy.log_std.clone()
    taken = [with_logp(collector.collect(act, 32), forward, space)]
    learner.update(taken, key="round-0", seed=0, env_steps=64)
    assert torch.equal(before, learner.policy.log_std) == (updates == 0)


def test_a_warm_start_from_other_layers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"method.warm_start: .* layers of \[11, 64, 64\], .*fcnet_hiddens"):
        make_learner(tmp_path, "ppo", settings={"warm_start": "hopper"})
    with pytest.raises(ConfigError, match="nowhere"):
        make_learner(tmp_path, "ppo", settings={"warm_start": "nowhere"})
