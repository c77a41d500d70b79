"""Segments are stretches of one episode that can be seen again, and pairs of them are chosen as asked."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from actors.collect import Collector
from actors.forward import random_actor
from actors.pictures import decoded
from actors.replay import replay
from expert_oracle.feedback import footage_of
from learner.pairs import WAYS, choose, k_centre, looks, probabilities, returns_of
from learner.reward_model import RewardModel
from learner.segments import SegmentPool
from tutelage.types import EnvRecipe, Query, Segment

CARTPOLE = EnvRecipe("CartPole-v1")
BOX = gym.spaces.Box(-1, 1, (3,), np.float32)


def pool_of(steps, *, length=8, past_the_end=False, rollouts=4, capacity=1000):
    collector = Collector(CARTPOLE, 3, reproducible=True)
    act = random_actor(collector.envs.action_space, 0)
    pool = SegmentPool(length=length, per_rollout=60, capacity=capacity, past_the_end=past_the_end, seed=1)
    for _ in range(rollouts):
        pool.add(collector.collect(act, steps))
    return pool


def test_a_segment_replays_exactly():
    pool = pool_of(25)
    segments = pool.newest(100)
    assert len(segments) > 20
    assert {len(one.prefix) for one in segments} != {0}
    for one in segments:
        episode = replay(one.recipe, one.seed, np.concatenate([one.prefix, one.actions]))
        start = len(one.prefix)
        np.testing.assert_array_equal(episode.obs[start : start + 8], one.obs)
        np.testing.assert_array_equal(episode.rewards[start:], one.rewards)
        assert one.played is None


def test_after_the_end_of_the_task_the_last_state_repeats_and_is_worth_nothing():
    segments = pool_of(40, length=30, past_the_end=True).newest(200)
    ended = [one for one in segments if one.played is not None]
    assert len(ended) > 10
    for one in ended:
        assert one.played is not None
        assert one.rewards is not None
        played = slice(one.played)
        episode = replay(one.recipe, one.seed, np.concatenate([one.prefix, one.actions[played]]))
        assert episode.terminated
        start = len(one.prefix)
        np.testing.assert_array_equal(episode.obs[start:-1], one.obs[played])
        assert (one.obs[one.played :] == episode.obs[-1]).all()
        assert (one.rewards[one.played :] == 0).all()
        assert one.ended.sum() == 30 - one.played
        footage = footage_of(Query("q", "comparison", [one]), 0)
        assert len(footage.actions) == start + one.played
        assert footage.held == 30 - one.played
    assert all(one.played is None for one in pool_of(40, length=30).newest(200))


def test_most_segments_of_an_episode_end_before_it_does_where_they_fit_into_it():
    """Elsewhere half of those of episodes of 25 steps would be about how long ago the pole fell."""
    segments = pool_of(200, length=15, past_the_end=True).newest(1000)
    fitting = [one for one in segments if one.played is None or len(one.prefix) + one.played >= 15]
    assert len(fitting) > 150
    assert 0.15 < sum(one.played is not None for one in fitting) / len(fitting) < 0.35


def test_the_newest_are_new_and_a_sample_is_of_all():
    pool = pool_of(30, capacity=20, rollouts=30)
    newest, sample = pool.newest(20), pool.across_time(20)
    assert len(newest) == len(sample) == 20
    assert len({id(one) for one in newest} & {id(one) for one in sample}) < 10


def test_an_episode_whose_beginning_is_not_known_is_passed_over():
    collector = Collector(CARTPOLE, 1, reproducible=True)
    upright = lambda obs: (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)  # noqa: E731
    collector.collect(upright, 20)
    pool = SegmentPool(length=5, per_rollout=10, capacity=10, past_the_end=False)
    pool.add(collector.collect(upright, 20))
    assert len(pool) == 0


def test_where_pictures_were_kept_segments_are_of_environments_that_were_drawn_and_have_theirs():
    collector = Collector(EnvRecipe("tests.environments_for_tests:Restless-v0"), 3, drawn=1)
    act = random_actor(collector.envs.action_space, 0)
    pool = SegmentPool(length=12, per_rollout=60, capacity=1000, past_the_end=True)
    rollouts = [collector.collect(act, 70) for _ in range(3)]
    for rollout in rollouts:
        pool.add(rollout)
    segments = pool.newest(1000)
    assert 10 < sum(one.played is None for one in segments) < len(segments)
    drawn = np.concatenate(
        [*(one.obs[:, 0, 0] for one in rollouts), *(one.final_obs[:, 0] for one in rollouts)]
    )
    for one in segments:
        assert one.pictures is not None
        numbers = np.array([decoded(picture).mean() / 255 for picture in one.pictures])
        played = one.played or 12
        np.testing.assert_allclose(numbers[:played], one.obs[:played, 0], atol=0.01)
        assert np.isin(one.obs, drawn).all()
        if one.played:
            np.testing.assert_allclose(numbers[-1], one.obs[-1, 0], atol=0.01)
        assert footage_of(Query("q", "comparison", [one]), 0).frames == one.pictures
    with pytest.raises(ValueError, match=r"pictures: expected 13, one before each step and the last, got 2"):
        replace(segments[0], played=None, pictures=(b"", b""))


def some(n, rng, L=5):
    return [
        Segment(
            rng.normal(size=(L, 3)).astype(np.float32),
            rng.uniform(-1, 1, (L, 3)).astype(np.float32),
            CARTPOLE,
            0,
            np.zeros((0, 3), np.float32),
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [2, 3])
def test_pairs_are_of_different_segments_and_as_many_as_can_be(way, options):
    rng = np.random.default_rng(0)
    segments, model = some(30, rng), RewardModel(BOX, BOX)
    chosen = choose(way, segments, 4, model=model, rng=rng, options=options)
    assert chosen.shape == (4, options)
    assert len(set(chosen.ravel().tolist())) == 4 * options
    most = choose(way, segments, 100, model=model, rng=rng, options=options)
    assert 0.8 * (30 // options) <= len(most) <= 30 // options
    assert len(set(most.ravel().tolist())) == most.size
    assert len(choose(way, segments[:1], 4, model=model, rng=rng)) == 0


def test_returns_are_the_same_of_all_segments_at_once_and_of_a_few(monkeypatch):
    segments, model = some(30, np.random.default_rng(0)), RewardModel(BOX, BOX)
    expected, sizes, returns = returns_of(segments, model), [], model.returns
    monkeypatch.setattr("learner.reward_model.ROWS", 40)
    monkeypatch.setattr(model, "returns", lambda obs, *more: sizes.append(len(obs)) or returns(obs, *more))
    torch.testing.assert_close(returns_of(segments, model), expected)
    assert sizes == [8, 8, 8, 6]


def of_one_look(x):
    return Segment(
        np.full((5, 3), x, np.float32), np.zeros((5, 3), np.float32), CARTPOLE, 0, np.zeros((0, 3))
    )


def test_k_centre_goes_where_nobody_was_asked_yet():
    segments = [of_one_look(x) for x in (0.0, 0.1, 5.0, 5.1, 9.0, 9.1)]
    pairs = np.array([[0, 1], [0, 2], [3, 2], [4, 5], [5, 4], [1, 3]])
    looked = np.stack([looks(one.obs, one.actions, axis=0) for one in segments])
    model = RewardModel(BOX, BOX)
    assert looked[2].tolist() == [5, 5, 5, 0, 0, 0]

    def order(*asked):
        scores = k_centre(pairs, segments, model, looked[np.array(asked, int).reshape(-1, 2)])
        return [tuple(pairs[i]) for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])]

    assert order() == [(0, 1), (4, 5), (3, 2)]  # the farthest from the first, then what is left
    assert order((0, 1)) == [(4, 5), (3, 2), (0, 1)]
    assert order((4, 5)) == [(0, 1), (3, 2), (4, 5)]
    assert order((0, 1), (5, 4))[0] == (3, 2)
    assert order((0, 3))[0] == (4, 5)


def test_each_way_prefers_what_it_is_named_after():
    rng = np.random.default_rng(0)
    segments, model = some(200, rng), RewardModel(BOX, BOX)

    def chosen(way):
        return choose(way, segments, 10, model=model, rng=np.random.default_rng(1))

    def of(pairs):
        p = probabilities(pairs, segments, model)
        starts = np.stack([one.obs[0] for one in segments])[pairs]
        return p.var(0).mean(), abs(p.mean(0) - 0.5).mean(), np.linalg.norm(starts[:, 0] - starts[:, 1])

    plain = of(chosen("uniform"))
    assert of(chosen("disagreement"))[0] > 2 * plain[0]
    assert of(chosen("entropy"))[1] < 0.5 * plain[1]
    assert of(chosen("same_start"))[2] < 0.7 * plain[2]
