"""SAC and PEBBLE: a policy within its bounds, critics with slow copies, replay on disk, rewards told anew."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core import DEFAULT_MODULE_ID
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from actors.collect import Collector
from actors.forward import actor, forward_of, random_actor
from expert_oracle.checkpoint import load_policy, save_policy
from learner.learner import as_one_vector
from learner.losses import nearest_distance, squashed_sample
from learner.methods import make_method
from learner.methods.pebble import Pebble
from learner.methods.sac import SAC
from learner.nets import ModulePolicy, PolicyModule
from learner.recent import Recent, transitions
from services.overrides import load_config
from services.settings import preflight
from services.trainer import Trainer, result_seeds
from services.trainer_config import TrainerConfig
from tests.test_learner import make_learner
from tutelage.errors import ConfigError
from tutelage.policy import mode, sample
from tutelage.types import EnvRecipe

OBS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
PENDULUM = EnvRecipe("Pendulum-v1")
SIZES = {"fcnet_hiddens": [32, 32], "fcnet_activation": "relu"}


def module(action_space=ACTIONS) -> PolicyModule:
    torch.manual_seed(0)
    return PolicyModule(
        observation_space=OBS,
        action_space=action_space,
        model_config={**SIZES, "critics": True, "value": False},
    )


def rows(n=64):
    rng = np.random.default_rng(0)
    return {
        "obs": torch.from_numpy(rng.standard_normal((n, 3), np.float32)),
        "next_obs": torch.from_numpy(rng.standard_normal((n, 3), np.float32)),
        "actions": torch.from_numpy(rng.uniform(-1, 1, (n, 2)).astype(np.float32)),
        "reward": torch.zeros(n),
        "goes_on": torch.ones(n),
        "noise": torch.from_numpy(rng.standard_normal((n, 2, 2), np.float32)),
    }


# The policy


def test_what_a_squashed_gaussian_draws_is_what_its_density_says():
    params = 0.5 * torch.randn(100, 4, dtype=torch.float64)
    actions, logp = squashed_sample(params, torch.randn(100, 2, dtype=torch.float64))
    mean, log_std = params.chunk(2, -1)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    torch.testing.assert_close(logp, reference.log_prob(actions).sum(-1))
    far, extreme = squashed_sample(torch.tensor([[30.0, -40.0, 5.0, 5.0]]), torch.ones(1, 2))
    assert torch.isfinite(extreme).all()
    assert far.abs().max() == 1


def test_actions_stay_within_their_bounds_and_numpy_draws_the_same():
    one = module()
    obs = np.random.default_rng(0).standard_normal((5000, 3), np.float32)
    act = actor(forward_of(one), ACTIONS, explore=True, distribution=one.distribution)
    drawn = act(obs)
    assert (drawn >= ACTIONS.low).all()
    assert (drawn <= ACTIONS.high).all()
    assert np.ptp(drawn[:, 1]) > 4  # all over the place before anything is learnt
    params = np.tile(np.array([[0.3, -1.0, -0.5, 9.0]], np.float32), (20_000, 1))
    numpy_draws = sample(params, "squashed", np.random.default_rng(0))
    torch_draws = squashed_sample(torch.from_numpy(params), torch.randn(20_000, 2))[0].numpy()
    np.testing.assert_allclose(numpy_draws.mean(0), torch_draws.mean(0), atol=0.02)
    np.testing.assert_allclose(numpy_draws.std(0), torch_draws.std(0), atol=0.02)
    np.testing.assert_allclose(mode(params[:1], "squashed"), np.tanh([[0.3, -1.0]]), rtol=1e-6)


def test_a_saved_policy_acts_as_the_module_does(tmp_path):
    one = module()
    torch.nn.init.normal_(one.pi[-1].weight, std=2.0)  # type: ignore[union-attr, arg-type]
    obs = np.random.default_rng(0).standard_normal((50, 3), np.float32)
    expected = actor(forward_of(one), ACTIONS, explore=False, distribution=one.distribution)(obs)
    save_policy(tmp_path / "p.safetensors", one.policy_arrays(), low=ACTIONS.low, high=ACTIONS.high)  # type: ignore[arg-type]
    saved = load_policy(tmp_path / "p.safetensors")
    np.testing.assert_allclose(saved.act(obs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ModulePolicy(one).act(obs), expected, rtol=1e-5, atol=1e-5)
    assert saved.describe().action_space.box.low.shape == [2]
    assert np.ptp(expected[:, 0]) > 1


@pytest.mark.parametrize("space", [Discrete(3), Box(-np.inf, np.inf, (2,)), Box(0, np.inf, (1,))])
def test_actions_without_bounds_are_refused_in_words(space):
    with pytest.raises(ConfigError, match="bounds on all sides"):
        module(space)


# Critics and the loss


def test_each_part_of_the_loss_has_its_own_gradient():
    one = module()
    minibatch = rows()
    loss, figures = SAC().loss(one, minibatch)
    loss.backward()
    policy = [p.grad.clone() for p in one.pi.parameters() if p.grad is not None]
    assert one.critics is not None
    assert all(p.grad is not None and p.grad.any() for p in one.critics.net.parameters())
    assert all(p.grad is None for p in one.critics.target_net.parameters())
    one.zero_grad()
    chosen, logp = squashed_sample(one.policy(minibatch["obs"]), minibatch["noise"][:, 0])
    (logp - one.critics.frozen(minibatch["obs"], chosen).min(0).values).mean().backward()
    for ours, parameter in zip(policy, one.pi.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
    assert all(p.grad is None or not p.grad.any() for p in one.critics.net.parameters())
    assert figures["alpha"] == 1


def test_targets_follow_slowly_and_begin_anew_with_the_critics():
    critics = module().critics
    assert critics is not None
    before = [p.clone() for p in critics.target_net.parameters()]
    with torch.no_grad():
        for p in critics.net.parameters():
            p += 1
    critics.follow(0.25)
    for old, new in zip(before, critics.target_net.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    critics.begin_anew()
    for ours, theirs in zip(critics.net.parameters(), critics.target_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_critics_of_images_begin_anew_with_other_convolutions():
    space = Box(0, 255, (8, 8, 1), np.uint8)
    one = PolicyModule(
        observation_space=space,
        action_space=ACTIONS,
        model_config={
            **SIZES,
            "critics": True,
            "value": False,
            "conv_filters": [[4, 4, 2], [4, 4, 1]],
        },
    )
    assert one.critics is not None
    before = {name: p.clone() for name, p in one.critics.named_parameters()}
    one.critics.begin_anew()
    after = dict(one.critics.named_parameters())
    weights = [name for name, p in before.items() if p.ndim > 1 and "bias" not in name]
    assert any(name.startswith("encoder") for name in weights)
    assert not any(torch.equal(before[name], after[name]) for name in weights)
    for name in weights:
        if not name.startswith("target_"):
            torch.testing.assert_close(after[name], after[f"target_{name}"])


def test_a_bandit_is_solved():
    """Reward −|a − goal|² of single steps: the policy's mode goes there."""
    one = module()
    vector = as_one_vector([p for p in one.parameters() if p.requires_grad])
    optimiser = torch.optim.Adam([vector], lr=3e-3)
    method, goal, rng = SAC(target_entropy=-8.0), torch.tensor([0.5, -0.25]), np.random.default_rng(0)
    for _ in range(600):
        actions = torch.from_numpy(rng.uniform(-1, 1, (64, 2)).astype(np.float32))
        minibatch = {
            **rows(),
            "actions": actions,
            "reward": -4 * (actions - goal).square().sum(-1),
            "goes_on": torch.zeros(64),
            "noise": torch.from_numpy(rng.standard_normal((64, 2, 2), np.float32)),
        }
        loss, _ = method.loss(one, minibatch)
        assert vector.grad is not None
        vector.grad.zero_()
        loss.backward()
        optimiser.step()
        method.stepped(one)
    found = torch.tanh(one.policy(rows()["obs"])[:, :2]).mean(0)  # type: ignore[index]
    torch.testing.assert_close(found, goal, atol=0.12, rtol=0)


# Replay


def rollouts(n=3, steps=20):
    collector = Collector(PENDULUM, 2, reproducible=True)
    act = random_actor(collector.envs.action_space, 0)
    return [collector.collect(act, steps) for _ in range(n)]


def test_replay_is_there_again_after_a_restart(tmp_path):
    first, second, third = rollouts()
    replay = Recent(100, tmp_path / "0")
    replay.add(first)
    replay.add(second)
    replay, known = Recent(100, tmp_path / "0"), replay.added
    replay.go_on(known)
    replay.add(third)
    again = replay
    assert len(again) == 100
    kept = again.sample(2000, np.random.default_rng(0))
    known = np.concatenate([transitions(one)["obs"] for one in (first, second, third)])[-100:]
    seen = {tuple(row) for row in kept["obs"].tolist()}
    assert seen == {tuple(row) for row in known.tolist()}
    assert len(list((tmp_path / "0").iterdir())) == 6


def test_replay_forgets_what_came_after_the_checkpoint(tmp_path):
    first, second, third = rollouts()
    replay = Recent(1000, tmp_path / "0")
    replay.add(first)
    saved = replay.added
    replay.add(second)  # and a kill
    again = Recent(1000, tmp_path / "0")
    again.go_on(saved)
    again.add(third)
    assert len(again) == 80
    kept = {tuple(row) for row in again.sample(4000, np.random.default_rng(0))["obs"].tolist()}
    assert kept == {tuple(row) for one in (first, third) for row in transitions(one)["obs"].tolist()}


@pytest.mark.parametrize("damage", ["capacity", "missing"])
def test_replay_of_another_kind_begins_anew(tmp_path, damage):
    first, second, _ = rollouts()
    before = Recent(100, tmp_path / "0")
    before.add(first)
    if damage == "missing":
        (tmp_path / "0" / "2.npy").unlink()
    again = Recent(50 if damage == "capacity" else 100, tmp_path / "0")
    again.go_on(before.added)
    again.add(second)
    assert len(again) == 40


# PEBBLE


class KnownCritic:
    """What PEBBLE asks of a learner."""

    def __init__(self, *, rewarded: bool, ends: bool) -> None:
        self.rewarded, self.ends = rewarded, ends

    def has_reward(self):
        return self.rewarded

    def ends_are_judged(self):
        return self.ends

    def novelty(self, obs, *, k):
        return np.abs(obs[:, 0]) * k

    def mean_rewards(self, obs, actions, *, relative_to_end):
        return obs[:, 1] + relative_to_end


def columns():
    rng = np.random.default_rng(0)
    return {
        "obs": rng.standard_normal((10, 3)),
        "actions": np.zeros((10, 1)),
        "terminated": np.arange(10) % 2 == 0,
        "reward": np.full(10, 99.0),
    }


def test_before_the_first_answers_novelty_is_the_reward():
    drawn = columns()
    method = Pebble(comparisons=10, ask_until=100, neighbour=3)
    found = method.relabelled(drawn, KnownCritic(rewarded=False, ends=False))  # type: ignore[arg-type]
    novelty = np.log1p(3 * np.abs(drawn["obs"][:, 0]))
    np.testing.assert_allclose(found["reward"], novelty / novelty.std(), rtol=1e-5)
    np.testing.assert_array_equal(found["terminated"], drawn["terminated"])


@pytest.mark.parametrize(
    ("terminal", "ends", "relative", "counts"),
    [
        ("judged", True, 1, True),
        ("judged", False, 0, False),
        ("ignored", True, 0, False),
        ("zero", True, 0, True),
    ],
)
def test_then_the_newest_model_says_what_a_step_is_worth(terminal, ends, relative, counts):
    drawn = columns()
    method = Pebble(comparisons=10, ask_until=100, terminal=terminal)
    found = method.relabelled(drawn, KnownCritic(rewarded=True, ends=ends))  # type: ignore[arg-type]
    np.testing.assert_allclose(found["reward"], drawn["obs"][:, 1] + relative)
    np.testing.assert_array_equal(found["terminated"], drawn["terminated"] & counts)


def test_the_distance_of_the_kth_neighbour():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert nearest_distance(x, x, k=2).tolist() == [1, 1, 2, 4]
    assert nearest_distance(x, x[:1], k=5).tolist() == [0, 1, 3, 7]


def pendulum(folder, method="pebble", **settings) -> TrainerConfig:
    config = (
        TrainerConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, rollout_fragment_length=50)
        .method(method, gamma=0.95, **settings)
        .training(minibatch_size=64, lr=1e-3)
        .rl_module(model_config=SIZES)
        .evaluation(evaluation_interval=None)
        .storage(run_directory=folder)
        .debugging(seed=1)
    )
    return config.feedback(labeler="synthetic:oracle") if method == "pebble" else config


@pytest.mark.usefixtures("ray_session")
def test_it_explores_then_asks_then_goes_on_after_a_restart_with_its_replay(tmp_path):
    settings = {
        "comparisons": 20,
        "first_share": 0.5,
        "segment_length": 10,
        "explore_steps": 600,
        "ask_until": 1200,
        "first_steps": 200,
        "updates_per_step": 0.2,
    }
    trainer = pendulum(tmp_path, **settings).build_trainer()
    seen = []
    for _ in range(4):
        trainer.train()
        figures = trainer.figures
        seen.append((figures["asked"], figures.get("waiting", 0), figures["minibatches"], trainer.env_steps))
    assert seen == [(0, 1, 40, 200), (0, 1, 40, 400), (10, 0, 40, 600), (10, 0, 40, 800)]
    trainer.save_to_path(str(tmp_path / "saved"))
    trainer.train()  # a round that no checkpoint knows
    trainer.stop()
    again = Trainer.restored(tmp_path / "saved", pendulum(tmp_path, **settings))
    again.train()
    (learner,) = again._all_learners(lambda learner: (len(learner.recent or ()), learner.rewarded))
    assert learner == (1000, True)
    again.stop()


def test_where_the_reward_begins_nothing_is_left_of_the_moments_of_the_novelty(tmp_path):
    asking = {"comparisons": 10, "segment_length": 10, "ask_until": 1000, "explore_steps": 0}
    learner = make_learner(
        tmp_path,
        "pebble",
        "Pendulum-v1",
        settings={**asking, "first_steps": 10, "updates_per_step": 0.5},
        model={**SIZES, "critics": True, "value": False},
    )
    first, second, third = rollouts()
    learner.update([first], key="0", seed=0, env_steps=40)
    optimiser = learner.get_optimizer(DEFAULT_MODULE_ID)
    (before,) = optimiser.state.values()
    reward = learner.reward_model.state_dict()
    learner.update([second], key="1", seed=1, env_steps=80, reward=reward)
    (state,) = optimiser.state.values()
    assert (float(before["step"]), float(state["step"])) == (20, 20)
    learner.update([third], key="2", seed=2, env_steps=120, reward=reward)
    (state,) = optimiser.state.values()
    assert float(state["step"]) == 40


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("method", ["sac", "pebble"])
def test_pendulum_is_learnt_in_a_tenth_of_the_steps(tmp_path, method):
    asking = {"comparisons": 100, "segment_length": 25, "explore_steps": 2000, "ask_until": 12_000}
    config = pendulum(tmp_path, method, **(asking if method == "pebble" else {}))
    trainer = config.training(minibatch_size=256).build_trainer()
    while trainer.env_steps < (12_000 if method == "pebble" else 8_000):
        trainer.train()
    returns, _ = trainer.measure(result_seeds(1, 20))
    trainer.stop()
    assert returns.mean() > -350  # at random −1,235; the best is about −150


def test_what_has_no_effect_is_refused(tmp_path):
    config = pendulum(tmp_path, "sac").training(num_epochs=3)
    with pytest.raises(ConfigError, match=r"num_epochs has no effect with sac"):
        config.validate()


def test_exploring_leaves_steps_to_ask_in():
    with pytest.raises(ConfigError, match=r"method\.explore_steps: 9000 steps without a question leave none"):
        preflight(load_config("pebble-pendulum", ["method.explore_steps=9000", "stop.env_steps=9000"]))


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match=r"method\.updates_per_step"):
        make_method("sac", {"updates_per_step": -1})
    with pytest.raises(ConfigError, match=r"method\.replay: 10 transitions are fewer"):
        make_method("sac", {"replay": 10})
