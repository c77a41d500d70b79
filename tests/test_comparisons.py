"""Answered comparisons are whole on the disk, each once, and are read as they are needed."""

import gymnasium as gym
import numpy as np
import pytest

from learner.comparisons import Comparisons
from learner.reward_model import RewardModel
from tutelage.errors import DatasetError
from tutelage.types import Answer, EnvRecipe, Query, Segment

BOX = gym.spaces.Box(-1, 1, (3,), np.float32)


def segment(rng, L=5, obs=None):
    states = rng.normal(size=(L, 3)).astype(np.float32) if obs is None else obs
    actions = rng.uniform(-1, 1, (L, 3)).astype(np.float32)
    return Segment(states, actions, EnvRecipe("Hopper-v5"), 0, actions[:0])


def answered(n, *, first=0, annotator="anna", L=5, cannot_tell=False):
    rng = np.random.default_rng(first)
    return [
        (
            Query(f"q{i}", "comparison", [segment(rng, L), segment(rng, L)]),
            Answer(f"q{i}", np.array([1, 0], np.float32), annotator, 0.0, 1.0, cannot_tell=cannot_tell),
        )
        for i in range(first, first + n)
    ]


def test_what_was_added_is_there_again(tmp_path):
    pairs = answered(7)
    data = Comparisons(tmp_path)
    assert data.add(pairs[:4]) == 4
    assert data.add(pairs) == 3
    assert data.add(pairs) == 0
    again = Comparisons(tmp_path)
    assert len(again) == 7
    found = again.compared()
    for n, (query, answer) in enumerate(pairs):
        for k, one in enumerate(query.options):
            np.testing.assert_array_equal(found.obs[n, k], one.obs)
            np.testing.assert_array_equal(found.actions[n, k], one.actions)
        np.testing.assert_array_equal(found.weights[n], answer.value)


def test_several_answers_to_one_question_all_count_and_doubt_does_not(tmp_path):
    data = Comparisons(tmp_path)
    data.add(answered(2))
    assert data.add(answered(2, annotator="bert")) == 2
    assert data.add(answered(2, first=5, cannot_tell=True)) == 0
    assert len(data) == 4


def test_what_a_crash_left_half_written_is_overwritten(tmp_path):
    Comparisons(tmp_path).add(answered(3))
    (tmp_path / "obs.bin").open("ab").write(b"xyz" * 100)
    (tmp_path / "index.jsonl").open("ab").write(b'{"query": "q9"')
    data = Comparisons(tmp_path)
    assert len(data) == 3
    data.add(answered(2, first=3))
    again = Comparisons(tmp_path)
    assert len(again) == 5
    np.testing.assert_array_equal(again.compared().obs[3, 0], answered(1, first=3)[0][0].options[0].obs)


def test_a_damaged_index_is_named(tmp_path):
    Comparisons(tmp_path).add(answered(3))
    lines = (tmp_path / "index.jsonl").read_bytes().splitlines()
    (tmp_path / "index.jsonl").write_bytes(b"\n".join([lines[0], b"nonsense", lines[2]]) + b"\n")
    with pytest.raises(DatasetError, match=r"index\.jsonl, line 2"):
        Comparisons(tmp_path)


def test_segments_of_another_length_are_refused_and_nothing_is_written(tmp_path):
    data = Comparisons(tmp_path)
    data.add(answered(2))
    with pytest.raises(DatasetError, match="query q2 is of"):
        data.add([*answered(1, first=2, L=6)])
    assert len(Comparisons(tmp_path)) == 2
    assert data.add(answered(1, first=2)) == 1


def test_a_full_disk_is_said_and_nothing_is_half_there(tmp_path):
    import resource
    import signal

    data = Comparisons(tmp_path)
    data.add(answered(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(DatasetError, match="cannot be written"):
            data.add(answered(5, first=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(Comparisons(tmp_path)) == 2
    assert data.add(answered(5, first=2)) == 5
    assert len(Comparisons(tmp_path)) == 7


def test_dictionaries_of_observations_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    obs = {"b": np.arange(5), "a": rng.normal(size=(5, 2)).astype(np.float32)}
    query = Query("q", "comparison", [segment(rng, obs=obs), segment(rng, obs=obs)])
    Comparisons(tmp_path).add([(query, Answer("q", np.array([0, 1], np.float32), "anna", 0.0, 1.0))])
    found = Comparisons(tmp_path).compared()
    np.testing.assert_array_equal(found.obs["b"][0, 1], obs["b"])
    np.testing.assert_array_equal(found.obs["a"][0, 0], obs["a"])


def test_a_reward_model_is_fitted_from_the_disk(tmp_path):
    data = Comparisons(tmp_path)
    data.add(answered(50))
    figures = RewardModel(BOX, BOX, seed=0).fit(data.compared(), passes=2)
    assert np.isfinite(figures["loss"])
    with pytest.raises(DatasetError, match="no comparisons yet"):
        Comparisons(tmp_path / "other").compared()
