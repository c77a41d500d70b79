"""A reward model finds the reward behind comparisons, whatever answers are wrong or ties."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_oracle.synthetic import Teacher
from learner import reward_model
from learner.losses import bradley_terry
from learner.reward_model import Compared, Fitting, RewardModel, drawn

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)


def truth(obs, actions):
    return np.tanh(obs[..., 0]) - 0.5 * obs[..., 1] ** 2 + actions[..., 0]


def compared(N, *, L=10, K=2, seed=0, teacher=None, space=ACTIONS):
    rng = np.random.default_rng(seed)
    obs = (rng.normal(size=(N, K, L, 3)) * [1, 1, 100]).astype(np.float32)
    actions = rng.uniform(-1, 1, (N, K, L, 2)).astype(np.float32)
    teacher = teacher or Teacher()
    rewards = truth(obs, actions)
    answers = [teacher.weights(list(one)) for one in rewards]
    kept = [n for n, answer in enumerate(answers) if answer is not None]
    weights = np.array([answers[n] for n in kept], np.float32)
    return Compared(obs[kept], actions[kept], weights, np.arange(len(kept)))


def correlation(model, seed=9):
    rng = np.random.default_rng(seed)
    obs = (rng.normal(size=(2000, 3)) * [1, 1, 100]).astype(np.float32)
    actions = rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    found = model.rewards(torch.from_numpy(obs), torch.from_numpy(actions)).mean(0).numpy()
    return np.corrcoef(found, truth(obs, actions))[0, 1]


def test_bradley_terry_by_hand():
    returns, weights = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    p = 1 / (1 + np.exp(-1.0))
    torch.testing.assert_close(
        bradley_terry(returns, weights), torch.tensor([-np.log(p)], dtype=torch.float32)
    )
    floor = bradley_terry(returns, weights, careless=0.1)
    torch.testing.assert_close(floor, torch.tensor([-np.log(0.9 * p + 0.05)], dtype=torch.float32))


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.floats(0, 0.5), st.floats(-100, 100))
def test_bradley_terry_has_a_free_offset_and_a_floor(returns, careless, offset):
    r = torch.tensor([returns], dtype=torch.float64)
    for k in range(len(returns)):
        w = torch.eye(len(returns), dtype=torch.float64)[[k]]
        loss = bradley_terry(r, w, careless=careless)
        torch.testing.assert_close(
            bradley_terry(r + offset, w, careless=careless), loss, rtol=1e-6, atol=1e-6
        )
        if careless:
            assert loss <= -np.log(careless / len(returns)) + 1e-9
        swapped = bradley_terry(r.flip(-1), w.flip(-1), careless=careless)
        torch.testing.assert_close(swapped, loss)


def test_a_tie_pulls_returns_together_and_a_preference_apart():
    r = torch.tensor([[1.0, 0.0]], requires_grad=True)
    bradley_terry(r, torch.tensor([[0.5, 0.5]])).sum().backward()
    assert r.grad is not None
    assert r.grad[0, 0] > 0 > r.grad[0, 1]
    r = torch.tensor([[1.0, 0.0]], requires_grad=True)
    bradley_terry(r, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert r.grad is not None
    assert r.grad[0, 0] < 0 < r.grad[0, 1]


def test_the_reward_behind_comparisons_is_found():
    model = RewardModel(BOX, ACTIONS, seed=1)
    figures = model.fit(compared(600), passes=60)
    assert correlation(model) > 0.9
    assert figures["accuracy"] > 0.85
    assert figures["held_out_loss"] < 0.5


@pytest.mark.parametrize("teacher", [{"mistake": 0.1}, {"rationality": 1.0}, {"equal": 0.3}])
def test_it_is_found_from_imperfect_answers_too(teacher):
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(compared(800, teacher=Teacher(**teacher)), passes=40)
    assert correlation(model) > 0.8


def test_of_several_options_the_best_counts():
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(compared(400, K=4), passes=60)
    assert correlation(model) > 0.85


def test_rewards_have_mean_0_and_deviation_1_whatever_their_offset():
    data = compared(200)
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(data, passes=5)
    obs, actions = (torch.from_numpy(x.reshape(-1, x.shape[-1])) for x in (data.obs, data.actions))
    rewards = model.rewards(obs, actions)
    torch.testing.assert_close(rewards.mean(-1), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(rewards.std(-1), torch.ones(3), atol=1e-2, rtol=0)
    with torch.no_grad():
        model.net.biases[-1] += 7.0
    model._normalise(Fitting(data, 3, 1))
    torch.testing.assert_close(model.rewards(obs, actions), rewards, atol=1e-3, rtol=1e-3)


def test_members_see_other_draws_which_stay():
    counts = drawn(np.arange(4000), 3, 0)
    assert abs(counts.mean() - 1) < 0.05
    assert abs(counts.var() - 1) < 0.1
    other_seed = drawn(np.arange(4000), 1, 1)
    between = np.corrcoef(np.vstack([counts, other_seed, np.roll(counts[0], 1)]))
    assert np.abs(between - np.eye(len(between))).max() < 0.06
    assert abs((counts == 0).mean() - np.exp(-1)) < 0.03
    some = drawn(np.array([3999, 0, 17]), 2, 0)
    np.testing.assert_array_equal(some, counts[:2, [3999, 0, 17]])
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(compared(100), passes=3)
    one, two, three = model.rewards(torch.randn(50, 3), torch.rand(50, 2))
    assert not torch.allclose(one, two)
    assert not torch.allclose(two, three)


def with_ends(N, kept, *, offset):
    """Steps worth `offset` and more or less; in the comparisons `kept` one segment ends before the other."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N, 2, 20, 3)).astype(np.float32)
    actions = rng.uniform(-1, 1, (N, 2, 20, 2)).astype(np.float32)
    ended = np.zeros((N, 2, 20), bool)
    ended[kept, 0, 10:] = True
    rewards = np.where(ended, 0, offset + np.tanh(obs[..., 0]))
    return Compared(
        obs, actions, np.eye(2, dtype=np.float32)[rewards.sum(-1).argmax(-1)], np.arange(N), ended
    )


def test_an_end_is_known_to_those_who_drew_a_few_and_its_worth_is_theirs():
    counts = drawn(np.arange(100), 3, 1) > 0
    few = np.flatnonzero(~counts[0] & counts[1] & counts[2])
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(with_ends(100, few[:1], offset=1.0), passes=2)
    assert not model.ends_known.any()
    data = with_ends(100, few, offset=1.0)
    model.fit(data, passes=30)
    assert model.ends_known.tolist() == [False, True, True]
    obs, actions = (torch.from_numpy(x.reshape(-1, x.shape[-1])) for x in (data.obs, data.actions))
    rewards = model.rewards(obs, actions, relative_to_end=True)
    assert len(rewards) == 2
    assert (rewards.mean(-1) > 0.5).all()  # a step is worth more than an end


def test_pictures_after_an_end_do_not_count_in_the_moments():
    data = with_ends(50, np.arange(50), offset=1.0)
    assert data.ended is not None
    data.obs[data.ended] = 8.0
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.fit(data, passes=1)
    (encoder,) = model.encoders
    leaf: Any = encoder.get_submodule("leaves.0")
    torch.testing.assert_close(leaf.norm.mean, torch.from_numpy(data.obs[~data.ended].mean(0)))
    torch.testing.assert_close(leaf.norm.std, torch.from_numpy(data.obs[~data.ended].std(0)))


def test_the_worth_of_an_end_does_not_decay():
    model = RewardModel(BOX, ACTIONS, seed=1)
    model.ended_reward.data += 3.0
    model.fit(with_ends(50, np.zeros(0, int), offset=1.0), passes=5)
    torch.testing.assert_close(model.ended_reward.data, torch.full((3, 1), 3.0))


def one_ends():
    """A model whose members know what an end is worth, and segments of which one ends halfway."""
    data = compared(8)
    model = RewardModel(BOX, ACTIONS, seed=1)
    obs, actions = torch.from_numpy(data.obs), torch.from_numpy(data.actions)
    ended = torch.zeros(8, 2, 10, dtype=torch.bool)
    ended[3, 0, 5:] = True
    model.ended_reward.data += torch.tensor([[1.0], [2.0], [3.0]])
    return model, obs, actions, ended


def test_each_member_may_have_returns_of_its_own_segments():
    model, obs, actions, ended = one_ends()
    of = torch.tensor([[0, 3], [3, 5], [7, 3]])
    expected = model.returns(obs, actions, ended).gather(1, of[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(model.returns(obs, actions, ended, of=of), expected)


def test_returns_are_sums_of_rewards_and_of_what_an_end_is_worth():
    model, obs, actions, ended = one_ends()
    rewards = model(obs.flatten(0, 2), actions.flatten(0, 2)).unflatten(1, (8, 2, 10))
    torch.testing.assert_close(model.returns(obs, actions), rewards.sum(-1))
    rewards[:, ended] = model.ended_reward.data
    torch.testing.assert_close(model.returns(obs, actions, ended), rewards.sum(-1))


def test_a_fit_is_the_same_in_pieces_of_any_size(monkeypatch):
    """Also where nothing of a piece is held out."""
    found = []
    for size in (1, 65_536):
        monkeypatch.setattr(reward_model, "STEPS", size)
        monkeypatch.setattr(reward_model, "ROWS", size)
        model = RewardModel(BOX, ACTIONS, seed=1)
        figures = model.fit(with_ends(40, np.arange(40), offset=1.0), passes=3)
        found.append((figures, model.net.weights[0].detach()))
    (one, small), (other, large) = found
    assert one == pytest.approx(other, rel=1e-3)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)


def test_of_images_each_member_has_convolutions_of_its_own():
    """What a member does not draw leaves it as it is."""
    space = gym.spaces.Dict(image=gym.spaces.Box(0, 255, (8, 8, 1), np.uint8), vector=BOX)
    rng = np.random.default_rng(0)
    obs = {
        "image": rng.integers(0, 255, (1, 2, 3, 8, 8, 1)).astype(np.uint8),
        "vector": rng.normal(size=(1, 2, 3, 3)).astype(np.float32),
    }
    actions = rng.integers(0, 3, (1, 2, 3))
    data = Compared(obs, actions, np.array([[1, 0]], np.float32), np.array([0]))
    model = RewardModel(space, gym.spaces.Discrete(3), conv_filters=[[4, 4, 2], [4, 4, 1]], seed=1)
    fitting = Fitting(data, 3, 1)
    fitting.counts = torch.tensor([[1.0], [0.0], [0.0]])
    model._see(fitting)
    columns = {name: torch.from_numpy(x) for name, x in obs.items()}, torch.from_numpy(actions)
    before = model.returns(*columns).detach()
    assert not torch.allclose(before[0], before[1])
    for group in model.optimiser.param_groups:
        group["weight_decay"] = 0.0
    model._pass(fitting, 1, rng)
    moved = (model.returns(*columns) - before).abs().amax((1, 2))
    assert moved[0] > 1e-4
    assert moved[1:].max() == 0


def test_what_overfits_is_held_back_more():
    few = compared(12, teacher=Teacher(mistake=0.5, seed=3))
    model = RewardModel(BOX, ACTIONS, seed=1)
    before = model.decay
    for _ in range(6):
        model.fit(few, passes=40)
    assert model.decay > before


def test_a_fit_goes_on_from_a_checkpoint_as_if_nothing_had_been():
    data = compared(100)
    one = RewardModel(BOX, ACTIONS, seed=1)
    one.fit(data, passes=2)
    other = RewardModel(BOX, ACTIONS, seed=1)
    other.set_state(deepcopy(one.get_state()))
    assert other.fit(data, passes=2, seed=5) == one.fit(data, passes=2, seed=5)


def test_actions_of_several_bits():
    model = RewardModel(BOX, gym.spaces.MultiBinary(4), seed=1)
    rewards = model.rewards(torch.randn(5, 3), torch.eye(4, dtype=torch.int8)[[0, 1, 2, 3, 0]])
    assert rewards.shape == (3, 5)
    assert torch.isfinite(rewards).all()


def test_discrete_actions_and_dictionaries_of_observations():
    space = gym.spaces.Dict({"a": BOX, "b": gym.spaces.Discrete(3)})
    rng = np.random.default_rng(0)
    obs = {
        "a": rng.normal(size=(300, 2, 5, 3)).astype(np.float32),
        "b": rng.integers(0, 3, (300, 2, 5)),
    }
    actions = rng.integers(0, 4, (300, 2, 5))
    better = (actions == 2).sum(-1).argmax(-1)
    data = Compared(obs, actions, np.eye(2, dtype=np.float32)[better], np.arange(300))
    model = RewardModel(space, gym.spaces.Discrete(4), seed=0)
    model.fit(data, passes=30)
    state = {"a": torch.zeros(4, 3), "b": torch.zeros(4, dtype=torch.int64)}
    assert model.rewards(state, torch.arange(4)).mean(0).argmax() == 2
