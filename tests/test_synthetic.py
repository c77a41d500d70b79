"""Scripted teachers: each departs from the truth in the way that it says, and in no other."""

import math
from typing import Any

import numpy as np
import pytest

from expert_oracle.synthetic import TEACHERS, Teacher, synthetic
from tutelage.errors import ConfigError
from tutelage.protocols import Labeler
from tutelage.types import EnvRecipe, Query, Segment

N = 4000


def teacher(kind: str = "oracle", **settings) -> Teacher:
    one = synthetic(kind, **settings)
    assert isinstance(one, Teacher)
    return one


def pairs(seed=0, L=10):
    return np.random.default_rng(seed).uniform(0, 1, (N, 2, L))


def judged(someone, rewards) -> list[Any]:
    return [someone.weights(list(pair)) for pair in rewards]


def judgement(kind, *rewards) -> list[float]:
    weights = teacher(kind).weights([np.asarray(reward, float) for reward in rewards])
    assert weights is not None
    return weights.tolist()


def right(weights, rewards):
    """The share of answers that name the better segment, among those that name one."""
    better = rewards.sum(-1).argmax(-1)
    named = [(w.argmax(), b) for w, b in zip(weights, better, strict=True) if w is not None and w.max() == 1]
    return np.mean([chosen == b for chosen, b in named])


def test_the_oracle_is_always_right():
    rewards = pairs()
    weights = judged(teacher("oracle"), rewards)
    assert right(weights, rewards) == 1
    assert all(w is not None and w.sum() == 1 for w in weights)


def test_a_stochastic_teacher_follows_bradley_and_terry():
    rewards = np.zeros((N, 2, 5))
    rewards[:, 1] = 0.3  # returns 0 and 1.5
    share = np.mean([w[1] for w in judged(Teacher(rationality=2.0), rewards)])
    assert share == pytest.approx(1 / (1 + math.exp(-3.0)), abs=0.02)


def test_one_that_errs_is_wrong_as_often_as_it_says():
    rewards = pairs()
    assert right(judged(teacher("mistake"), rewards), rewards) == pytest.approx(0.9, abs=0.02)


def test_what_is_worth_little_is_skipped_and_what_differs_little_is_a_tie():
    rewards = pairs()
    rewards[::2] *= 0.01
    skipped = [w is None for w in judged(teacher("skip"), rewards)]
    assert np.mean(skipped[::2][100:]) == 1
    assert not any(skipped[1::2])
    rewards = pairs()
    rewards[::2, 1] = rewards[::2, 0] + 0.001
    ties = [w.max() == 0.5 for w in judged(teacher("equal"), rewards)]
    assert all(ties[::2][100:])
    assert np.mean(ties[1::2]) < 0.4


def test_thresholds_do_not_depend_on_where_rewards_begin():
    rewards = pairs()
    rewards[::2] *= 0.01
    for kind in ("skip", "equal", "drifting"):
        above, below = (judged(teacher(kind, seed=1), rewards - offset) for offset in (0, 50))
        same = [a is b or np.array_equal(a, b) for a, b in zip(above, below, strict=True)]
        assert np.mean(same) > 0.99


def test_a_myopic_teacher_looks_at_the_end():
    early, late = [3.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2.0]
    assert judgement("oracle", early, late) == [1, 0]
    assert judgement("myopic", early, late) == [0, 1]


def test_equal_returns_are_a_tie_and_no_coin():
    assert judgement("oracle", np.ones(5), np.ones(5)) == [0.5, 0.5]


def test_a_myopic_teacher_tells_apart_what_sums_to_the_same_and_ties_what_it_values_the_same():
    assert judgement("myopic", [1.0, 0.0], [0.0, 1.0]) == [0, 1]
    weights = teacher(discount=0.5).weights([np.array([2.0, 0.0]), np.array([0.0, 1.0])])
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5]


def test_one_that_drifts_gets_worse():
    rewards = pairs()
    weights = judged(Teacher(drift=0.01, seed=3), rewards)
    assert right(weights[:50], rewards[:50]) > 0.9
    assert right(weights[-1000:], rewards[-1000:]) < 0.8


def test_of_three_the_best_is_chosen():
    assert judgement("oracle", np.zeros(4), np.ones(4), np.full(4, 0.5)) == [0, 1, 0]


@pytest.mark.parametrize("kind", TEACHERS)
def test_each_is_a_labeler_and_repeatable(kind):
    segments = [
        Segment(np.zeros((3, 2)), np.zeros(3), EnvRecipe("X-v0"), 0, np.zeros(0), np.full(3, r))
        for r in (1.0, 2.0)
    ]
    queries = [Query(f"q{i}", "comparison", segments) for i in range(20)]
    someone, again = teacher(kind, seed=5), teacher(kind, seed=5)
    assert isinstance(someone, Labeler)
    answers = someone.label(queries)
    assert [a.value.tolist() for a in answers] == [a.value.tolist() for a in again.label(queries)]
    assert {a.annotator for a in answers} == {kind}
    assert all(a.answered_at >= a.started_at for a in answers)


def test_segments_without_rewards_and_settings_without_sense_are_refused():
    bare = Segment(np.zeros((3, 2)), np.zeros(3), EnvRecipe("X-v0"), 0, np.zeros(0))
    with pytest.raises(ValueError, match="query q: a teacher judges by rewards"):
        teacher().answer(Query("q", "comparison", [bare, bare]))
    with pytest.raises(ConfigError, match="there is no teacher 'orakle'; did you mean 'oracle'"):
        teacher("orakle")
    with pytest.raises(ConfigError, match=r"teacher: mistake=2 is not from 0 to 1"):
        teacher("oracle", mistake=2)
    with pytest.raises(ConfigError, match=r"teacher: rationality=-1 is not 0 or more"):
        teacher("oracle", rationality=-1)


def test_what_a_reward_gives_is_checked():
    segment = Segment(np.zeros((3, 2)), np.zeros(3), EnvRecipe("X-v0"), 0, np.zeros(0))
    nan = Teacher(reward=lambda obs, actions: np.full(3, np.nan))
    with pytest.raises(ConfigError, match="its reward is nan"):
        nan.label([Query("q", "comparison", [segment] * 2)])


def test_settings_of_teachers_have_names():
    with pytest.raises(ConfigError, match=r"it has no 'rewrad'; did you mean 'reward'\?"):
        synthetic("oracle", rewrad="a:b")
