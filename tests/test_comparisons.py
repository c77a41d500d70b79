"""Answered comparisons are whole on the disk, each once, and are read as they are needed."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import tree

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


def add(data, pairs):
    """Ask and hear; how many answers were new."""
    data.ask([query for query, _ in pairs])
    return data.hear([answer for _, answer in pairs])


def test_what_was_added_is_there_again(tmp_path):
    pairs = answered(7)
    data = Comparisons(tmp_path)
    assert add(data, pairs[:4]) == 4
    assert add(data, pairs) == 3
    assert add(data, pairs) == 0
    again = Comparisons(tmp_path)
    assert len(again) == 7
    found = again.compared()
    for n, (query, answer) in enumerate(pairs):
        for k, one in enumerate(query.options):
            np.testing.assert_array_equal(found.obs[n, k], one.obs)
            np.testing.assert_array_equal(found.actions[n, k], one.actions)
        np.testing.assert_array_equal(found.weights[n], answer.value)


def test_questions_wait_on_the_disk_for_their_answers(tmp_path):
    pairs = answered(3)
    query = pairs[1][0]
    ended = replace(query.options[0], played=2, rewards=np.ones(5, np.float32), seed=9)
    ended = replace(ended, prefix=np.ones((4, 3), np.float32), recipe=EnvRecipe("A-v0", {"x": 1}))
    pairs[1] = replace(query, options=[ended, query.options[1]], context={"task": "Hop."}), pairs[1][1]
    Comparisons(tmp_path).ask([query for query, _ in pairs])
    data = Comparisons(tmp_path)
    assert (data.asked, data.answered, len(data)) == (3, 0, 0)
    data.hear([pairs[0][1], replace(pairs[0][1], query_id="of another run")])
    assert [query.id for query in data.open()] == ["q1", "q2"]
    found = data.open()[0]
    assert (found.kind, found.context) == ("comparison", {"task": "Hop."})
    one = found.options[0]
    assert (one.played, one.seed, one.recipe) == (2, 9, EnvRecipe("A-v0", {"x": 1}))
    for name in ("obs", "actions", "prefix", "rewards"):
        np.testing.assert_array_equal(getattr(one, name), getattr(ended, name))
    assert found.options[1].rewards is None
    more = replace(query, id="q9", options=[query.options[0], replace(ended, prefix=ended.actions)])
    data.ask([more])
    for known in (data, Comparisons(tmp_path)):
        for asked in (pairs[1][0], more):
            again = {one.id: one for one in known.open()}[asked.id]
            for one, other in zip(again.options, asked.options, strict=True):
                np.testing.assert_array_equal(one.prefix, other.prefix)
    data.hear([pairs[1][1]])
    ended = data.compared().ended
    assert ended is not None
    np.testing.assert_array_equal(ended[1, 0], [False, False, True, True, True])
    np.testing.assert_array_equal(data.compared().rows, [0, 1])


def test_pictures_wait_with_their_questions_and_what_a_crash_left_of_them_is_overwritten(tmp_path):
    def seen(query, *lengths):
        some = [tuple(bytes([n, k, 0]) * (k + 1) for k in range(n)) for n in lengths]
        options = [
            replace(option, pictures=pictures, played=len(pictures) - 1)
            for option, pictures in zip(query.options, some, strict=True)
        ]
        return replace(query, options=options)

    plain, *queries = [query for query, _ in answered(4)]
    queries = [seen(query, 3 + n, 4) for n, query in enumerate(queries)]
    data = Comparisons(tmp_path)
    data.ask([plain, *queries[:2]])
    (tmp_path / "pictures.bin").open("ab").write(b"half of a picture")
    again = Comparisons(tmp_path)
    again.ask(queries[2:])
    for known in (again, Comparisons(tmp_path)):
        first, *found = known.open()
        assert [one.pictures for one in first.options] == [None, None]
        for one, other in zip(found, queries, strict=True):
            assert [part.pictures for part in one.options] == [part.pictures for part in other.options]


def test_an_answer_that_is_taken_back_or_changed_counts_as_it_was_said_last(tmp_path):
    pairs = answered(2)
    data = Comparisons(tmp_path)
    add(data, pairs)
    assert data.hear([replace(pairs[0][1], cannot_tell=True)]) == 0
    data.hear([replace(pairs[1][1], value=np.array([0, 1], np.float32))])
    for known in (data, Comparisons(tmp_path)):
        assert (len(known), known.answered) == (1, 2)
        np.testing.assert_array_equal(known.compared().weights, [[0, 1]])


def test_answers_that_are_all_said_again_are_none_that_are_new(tmp_path):
    """As a run that goes on hears from a labeler all that was ever said: also what was taken back."""
    pairs = answered(1)
    data = Comparisons(tmp_path)
    add(data, pairs)
    first = pairs[0][1]
    said = [first, replace(first, cannot_tell=True), replace(first, value=np.array([0, 1], np.float32))]
    for answer in said[1:]:
        data.hear([answer])
    again, index = Comparisons(tmp_path), (tmp_path / "index.jsonl").read_bytes()
    assert again.hear(said) == 0
    assert again.heard == data.heard == 3
    assert (tmp_path / "index.jsonl").read_bytes() == index
    np.testing.assert_array_equal(again.compared().weights, [[0, 1]])


def test_several_answers_to_one_question_all_count_and_doubt_does_not(tmp_path):
    data = Comparisons(tmp_path)
    add(data, answered(2))
    assert add(data, answered(2, annotator="bert")) == 2
    assert add(data, answered(2, first=5, cannot_tell=True)) == 2
    assert (len(data), data.answered, data.asked) == (4, 6, 4)
    assert data.annotators() == ["anna", "anna", "bert", "bert"]


def test_what_a_crash_left_half_written_is_overwritten(tmp_path):
    add(Comparisons(tmp_path), answered(3))
    (tmp_path / "obs.bin").open("ab").write(b"xyz" * 100)
    (tmp_path / "index.jsonl").open("ab").write(b'{"query": "q9"')
    data = Comparisons(tmp_path)
    assert len(data) == 3
    assert add(data, answered(2, first=3)) == 2
    again = Comparisons(tmp_path)
    assert len(again) == 5
    np.testing.assert_array_equal(again.compared().obs[3, 0], answered(1, first=3)[0][0].options[0].obs)


def test_a_damaged_index_is_named(tmp_path):
    add(Comparisons(tmp_path), answered(3))
    lines = (tmp_path / "index.jsonl").read_bytes().splitlines()
    (tmp_path / "index.jsonl").write_bytes(b"\n".join([lines[0], b"nonsense", lines[2]]) + b"\n")
    with pytest.raises(DatasetError, match=r"index\.jsonl, line 2"):
        Comparisons(tmp_path)


def test_segments_of_another_length_are_refused_and_nothing_is_written(tmp_path):
    data = Comparisons(tmp_path)
    add(data, answered(2))
    with pytest.raises(DatasetError, match="query q2 is of"):
        add(data, answered(1, first=2, L=6))
    assert len(Comparisons(tmp_path)) == 2
    assert add(data, answered(1, first=2)) == 1


def test_a_full_disk_is_said_and_nothing_is_half_there(tmp_path):
    import resource
    import signal

    data = Comparisons(tmp_path)
    add(data, answered(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(DatasetError, match="cannot be written"):
            add(data, answered(5, first=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(Comparisons(tmp_path)) == 2
    assert add(data, answered(5, first=2)) == 5
    assert len(Comparisons(tmp_path)) == 7


def test_dictionaries_of_observations_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    obs = {"b": np.arange(5), "a": rng.normal(size=(5, 2)).astype(np.float32)}
    query = Query("q", "comparison", [segment(rng, obs=obs), segment(rng, obs=obs)])
    add(Comparisons(tmp_path), [(query, Answer("q", np.array([0, 1], np.float32), "anna", 0.0, 1.0))])
    found = Comparisons(tmp_path).compared()
    np.testing.assert_array_equal(found.obs["b"][0, 1], obs["b"])
    np.testing.assert_array_equal(found.obs["a"][0, 0], obs["a"])


def test_trees_of_observations_are_what_they_were_after_a_restart(tmp_path):
    """Also tuples, of which JSON knows nothing, and names with a slash, as dm_control has them."""
    rng = np.random.default_rng(0)
    obs = {"walker/pos": rng.normal(size=(5, 2)), "two": (np.arange(5), rng.normal(size=(5, 1)))}
    query = Query("q", "comparison", [segment(rng, obs=obs), segment(rng, obs=obs)])
    Comparisons(tmp_path).ask([query])
    (found,) = Comparisons(tmp_path).open()
    for one in found.options:
        tree.assert_same_structure(one.obs, obs)
        tree.map_structure(np.testing.assert_array_equal, one.obs, obs)


def test_a_reward_model_is_fitted_from_the_disk(tmp_path, monkeypatch):
    data = Comparisons(tmp_path)
    add(data, answered(50))
    found = data.compared()
    read = replace(found, obs=np.array(found.obs), actions=np.array(found.actions))
    in_memory = RewardModel(BOX, BOX, seed=0).fit(read, passes=2)
    monkeypatch.setattr("learner.reward_model.MAPPED", 1)  # what was read is let go at once
    assert RewardModel(BOX, BOX, seed=0).fit(found, passes=2) == in_memory
    with pytest.raises(DatasetError, match="no comparisons yet"):
        Comparisons(tmp_path / "other").compared()
