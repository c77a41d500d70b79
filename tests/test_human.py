"""People as experts: every state is asked about once, and no answer is lost."""

import threading
import time

import numpy as np
import pytest

from expert_oracle.human import HumanOracle, LabelerClient
from expert_oracle.loading import OracleSpec
from tutelage.errors import ConfigError, OracleError
from tutelage.types import Answer

HERE = __file__
STATES = np.arange(12, dtype=np.float32).reshape(6, 2)


class MemoryLabeler:
    """A labeler in memory. `answer` is the person: state -> list of values, None for "cannot tell"."""

    def __init__(self, answer=None, seconds=0.0):
        self.answer, self.seconds = answer or (lambda state: [state.sum()]), seconds
        self.queries, self.answers, self.submissions = {}, {}, []
        self.arrived = threading.Condition()

    def submit(self, queries):
        self.submissions.append(len(queries))
        new = [query for query in queries if query.id not in self.queries]
        self.queries |= {query.id: query for query in new}
        threading.Thread(target=self._work, args=(new,), daemon=True).start()
        return [query.id for query in queries]

    def _work(self, queries):
        for query in queries:
            assert query.kind == "action"
            (state,) = query.options
            time.sleep(self.seconds)
            values = self.answer(state)
            given = [
                Answer(query.id, np.asarray(value or 0.0), f"person {i}", 0.0, 1.0, cannot_tell=value is None)
                for i, value in enumerate(values)
            ]
            with self.arrived:
                self.answers[query.id] = given
                self.arrived.notify_all()

    def wait(self, ids, timeout_s):
        with self.arrived:
            self.arrived.wait_for(lambda: all(self.answers.get(i) for i in ids), timeout_s)
            return [answer for i in ids for answer in self.answers.get(i, [])]


def ready():
    return MemoryLabeler()


def test_states_become_questions_and_answers_actions():
    labeler = MemoryLabeler()
    human = HumanOracle(labeler, context={"env": "Pendulum-v1"}, priority=2.0)
    np.testing.assert_array_equal(human.act(STATES), STATES.sum(1))
    assert len(labeler.queries) == 6
    for query in labeler.queries.values():
        assert (query.context, query.priority, query.answers_wanted) == ({"env": "Pendulum-v1"}, 2.0, 1)


def test_a_state_is_asked_about_once_in_batches():
    labeler = MemoryLabeler()
    human = HumanOracle(labeler, batch=4)
    np.testing.assert_array_equal(human.act(np.concatenate([STATES, STATES])), np.tile(STATES.sum(1), 2))
    assert labeler.submissions == [4, 2]
    np.testing.assert_array_equal(HumanOracle(labeler).act(STATES[2:4]), STATES[2:4].sum(1))
    assert len(labeler.queries) == 6
    HumanOracle(labeler, context={"env": "another"}).act(STATES)
    assert len(labeler.queries) == 12


def test_nested_states_and_vectors_of_actions():
    human = HumanOracle(MemoryLabeler(lambda state: [[state["a"].sum(), state["b"][0]]]))
    obs = {"a": STATES, "b": np.arange(6)[:, None]}
    np.testing.assert_array_equal(human.act(obs), np.stack([STATES.sum(1), np.arange(6)], 1))


def test_several_people_are_averaged_or_vote():
    floats = HumanOracle(MemoryLabeler(lambda state: [1.0, 2.0, None]), answers_wanted=3)
    np.testing.assert_array_equal(floats.act(STATES), [1.5] * 6)
    votes = HumanOracle(MemoryLabeler(lambda state: [1, 2, 2]), answers_wanted=3).act(STATES)
    np.testing.assert_array_equal(votes, [2] * 6)
    assert votes.dtype.kind == "i"


def test_answers_that_came_late_are_found():
    labeler = MemoryLabeler(seconds=0.02)
    human = HumanOracle(labeler, timeout_s=0.05)
    with pytest.raises(
        OracleError, match=r"human: \d of 6 states have no action: \d nobody answered in 0.05 s, 0 nob"
    ):
        human.act(STATES)
    time.sleep(0.3)
    np.testing.assert_array_equal(human.act(STATES), STATES.sum(1))
    assert len(labeler.queries) == 6


def unsure(state):
    return [None if state[0] > 5 else state.sum()]


def test_states_that_nobody_can_tell_are_counted_or_left_to_another():
    with pytest.raises(
        OracleError, match=r"human: 3 of 6 states have no action: 0 nobody answered .* 3 nobody could"
    ):
        HumanOracle(MemoryLabeler(unsure)).act(STATES)
    human = HumanOracle(MemoryLabeler(unsure), otherwise=f"{HERE}:minus_one")
    np.testing.assert_array_equal(human.act(STATES), [1, 5, 9, -1, -1, -1])


def minus_one(obs):
    return np.full(len(obs), -1.0)


class Mute:
    """No labeler."""


def test_the_word():
    human = OracleSpec(f"human:{HERE}:ready", {"batch": 2}).build()
    assert isinstance(MemoryLabeler(), LabelerClient)
    np.testing.assert_array_equal(human.act(STATES), STATES.sum(1))
    for word, arguments, line in (
        (f"human:{HERE}:Mute", {}, r"is of type Mute, without submit\(queries\) and wait\(ids, timeout_s\)"),
        (f"human:{HERE}:ready", {"batch": 0}, "human: batch=0 and answers_wanted=1 must be 1 or more"),
        (f"human:{HERE}:ready", {"timeout": 3}, "'timeout'; did you mean 'timeout_s'"),
        ("human:nobody", {}, "'nobody' is not of the form"),
    ):
        with pytest.raises(ConfigError, match=line):
            OracleSpec(word, arguments).build()


def test_wrong_answers_are_one_line():
    with pytest.raises(OracleError, match=r"answers are of different shapes: \[\(1,\), \(2,\)\]"):
        HumanOracle(MemoryLabeler(lambda state: [[0.5] * (1 + (state[0] > 3))])).act(STATES)
    with pytest.raises(OracleError, match=r"answers to action-\w+ are of different shapes"):
        HumanOracle(MemoryLabeler(lambda state: [[1.0], [1.0, 2.0]])).act(STATES)
