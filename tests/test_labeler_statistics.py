"""What is said about annotators: figures that can be worked out by hand, and one that was published."""

import itertools
import random
import time

import numpy as np
import pytest

from expert_oracle import feedback
from services.labeler.agreement import Alpha, IntervalAlpha, wilson
from services.labeler.queue import Question, Queue
from services.labeler.statistics import Statistics
from services.labeler.valkey import Embedded

FOUR_OBSERVERS = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: nominal α is 0.743, that
of an interval scale 0.849."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Embedded(tmp_path_factory.mktemp("store")) as server:
        yield server.client()


@pytest.fixture
def queue(store, request):
    return Queue(store, request.node.name[:80])


def published():
    for observer in FOUR_OBSERVERS.strip().splitlines():
        yield from ((f"unit {u}", value) for u, value in enumerate(observer.split()) if value != ".")


def test_alpha_is_that_of_the_published_example():
    alpha = Alpha()
    for unit, value in published():
        alpha.add(unit, value)
    assert alpha.value() == pytest.approx(0.743, abs=5e-4)
    assert alpha.units == 11  # of the twelfth there is one value
    scale = IntervalAlpha()
    for unit, value in published():
        scale.add(unit, [9.0])
        scale.add(unit, [float(value)])
        scale.remove(unit, [9.0])
    assert scale.value() == pytest.approx(0.849, abs=5e-4)
    assert scale.units == 11


def test_alpha_of_vectors_is_that_of_their_distances():
    rng, alpha = np.random.default_rng(0), IntervalAlpha()
    values = rng.normal(size=(9, 3, 4))  # units, annotators, numbers
    values += 2 * rng.normal(size=(9, 1, 4))
    for u, unit in enumerate(values):
        for value in unit:
            alpha.add(f"unit {u}", value)
    apart = lambda some: ((some[:, None] - some[None]) ** 2).sum()  # noqa: E731
    observed = sum(apart(unit) / 2 for unit in values) / 27
    assert alpha.value() == pytest.approx(1 - observed / (apart(values.reshape(27, 4)) / (27 * 26)))
    same = IntervalAlpha()
    assert same.value() is None
    for u in range(2):
        same.add(f"{u}", [0.1])
        same.add(f"{u}", [0.1])
    assert same.value() is None


def test_alpha_does_not_depend_on_the_order_or_on_what_was_taken_back():
    values, alpha, rng = list(published()), Alpha(), random.Random(0)
    rng.shuffle(values)
    for unit, value in values:
        alpha.add(unit, "wrong")
        alpha.add(unit, value)
        alpha.remove(unit, "wrong")
    assert alpha.value() == pytest.approx(0.743, abs=5e-4)
    for unit, value in values:
        alpha.remove(unit, value)
    assert (alpha.value(), alpha.units) == (None, 0)


def test_alpha_has_no_value_where_nobody_could_disagree():
    alpha = Alpha()
    assert alpha.value() is None
    for unit, _ in itertools.product("ab", range(2)):
        alpha.add(unit, "same")
    assert alpha.value() is None
    alpha.add("c", "same")
    alpha.add("c", "other")
    assert alpha.value() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (0, 0, 0, 1)]
)
def test_the_interval_of_a_share(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-3)


def answer(queue, question, who, value, *, sides=(0, 1), took=3.0, cannot_tell=False):
    now = time.time()
    body = {
        "value": value,
        "cannot_tell": cannot_tell,
        "side_shown": list(sides),
        "started_at": now - took,
        "answered_at": now,
    }
    assert queue.answer(question, who, body)[0] == "accepted"


def row(statistics, name):
    (found,) = [row for row in statistics.report()["annotators"] if row["name"] == name]
    return found


def test_known_questions_measure_who_answers_them(queue):
    queue.submit([Question(f"g{i}", "text", gold=[1, 0]) for i in range(10)])
    for i in range(10):
        answer(queue, f"g{i}", "anna", [1, 0] if i < 4 else [0, 1])
    statistics = Statistics(queue)
    anna = row(statistics, "anna")
    assert (anna["gold"], anna["gold_right"]) == (10, 4)
    assert (anna["gold_low"], anna["gold_high"]) == wilson(4, 10)
    assert "anna answers 4 of 10 known questions right" in statistics.report()["alerts"]


def test_repeats_measure_whether_somebody_agrees_with_themselves(queue):
    queue.submit([Question(f"q{i}", "text") for i in range(3)])
    for i in range(3):
        answer(queue, f"q{i}", "anna", [1, 0])
    statistics = Statistics(queue)
    statistics.follow()
    queue.submit([Question(f"r{i}", "text", only=["anna"], again=f"q{i}") for i in range(3)])
    answer(queue, "r0", "anna", [1, 0], sides=(1, 0))
    answer(queue, "r1", "anna", [0, 1], sides=(1, 0))
    answer(queue, "r2", "anna", None, cannot_tell=True)
    anna = row(statistics, "anna")
    assert (anna["repeats"], anna["consistent"], anna["answers"]) == (2, 1, 6)
    assert row(Statistics(queue), "anna") == anna  # whenever it began to look


def test_who_prefers_a_side_is_noticed(queue):
    queue.submit([Question(f"q{i}", "text", wanted=2) for i in range(60)])
    for i in range(60):
        sides = (0, 1) if i % 2 else (1, 0)
        answer(queue, f"q{i}", "lefty", [1, 0] if sides == (0, 1) else [0, 1], sides=sides)
        answer(queue, f"q{i}", "fair", [0.5, 0.5] if i < 6 else [1, 0], sides=sides)
    statistics = Statistics(queue)
    lefty, fair = row(statistics, "lefty"), row(statistics, "fair")
    assert (lefty["left_share"], fair["left_share"]) == (1.0, 0.5)
    assert (lefty["left_low"], lefty["left_high"]) == wilson(60, 60)
    assert (lefty["tie_share"], fair["tie_share"]) == (0.0, 0.1)
    alerts = [alert for alert in statistics.report()["alerts"] if "side" in alert]
    assert alerts == ["lefty chooses the left side in 100% of 60 comparisons"]


def test_agreement_times_and_taking_back(queue):
    queue.submit([Question(f"q{i}", "text", wanted=2) for i in range(4)])
    for i in range(4):
        answer(queue, f"q{i}", "anna", [1, 0] if i else [0, 1], took=2.0)
        answer(queue, f"q{i}", "bert", [1, 0] if i > 1 else [0, 1], took=4.0)
    statistics = Statistics(queue)
    report = statistics.report()
    assert report["alpha"] == {"text": {"alpha": pytest.approx(1 - 7 * 2 / 30), "questions": 4}}
    assert row(statistics, "anna")["median_s"] == pytest.approx(2.0)
    assert row(statistics, "bert")["median_s"] == pytest.approx(4.0)
    assert report["answers_per_minute"] > 0
    assert statistics.known("anna") == 4
    assert queue.undo("q1", "anna") == "undone"
    assert statistics.answered("anna") == 3
    answer(queue, "q1", "anna", [0, 1])
    assert statistics.report()["alpha"]["text"]["alpha"] == pytest.approx(1.0)
    assert statistics.answered("anna") == 4


def test_agreement_of_sliders_is_that_of_a_scale(queue):
    queue.submit([Question(f"q{i}", "action", wanted=2) for i in range(3)])
    for i in range(3):
        answer(queue, f"q{i}", "anna", [0.31 * i])
        answer(queue, f"q{i}", "bert", [0.31 * i + 0.02])
    (name, said), *none = Statistics(queue).report()["alpha"].items()
    assert (name, said["questions"], none) == ("action (interval)", 3, [])
    assert 0.98 < said["alpha"] < 1


def test_what_wants_looking_after_is_said(queue):
    statistics = Statistics(queue)
    assert statistics.report()["alerts"] == []
    queue.submit([Question("q0", "text"), Question("q1", "rating")])
    waited = statistics.report()
    assert waited["depth"] == {"rating": 1, "text": 1}
    assert waited["oldest_wait_s"] >= 0
    for who in ("anna", "bert", "carl"):
        assert [lease.id for lease in queue.lease(who, kinds=["rating"])] == ["q1"]
        queue.give_back("q1", who, broken="black")
    answer(queue, "q0", "anna", [1, 0])
    report = statistics.report()
    assert report["dead"] == [{"id": "q1", "why": "black"}]
    assert sorted(report["alerts"]) == [
        "no question is open: those who answer will soon have nothing to do",
        "questions that nobody could answer: 1",
    ]
    assert (report["depth"], report["oldest_wait_s"]) == ({}, 0.0)


def test_answers_of_any_form_are_taken(queue):
    values = [None, 3, 0.5, "free text", [[0, 1, 2.5], [4, -1, 3.0]], {"a": 1}, [], [1.0], [0.1, 0.2, 0.3]]
    queue.submit([Question(f"q{i}", "rating", wanted=2) for i in range(len(values))])
    for (i, value), who in itertools.product(enumerate(values), ("anna", "bert")):
        answer(queue, f"q{i}", who, value, sides=())
    statistics = Statistics(queue)
    assert statistics.answered("anna") == len(values)
    assert {name: alpha["questions"] for name, alpha in statistics.report()["alpha"].items()} == {
        "rating": 2,
        "rating (interval)": 1,
        "rating of 3 (interval)": 1,
    }


def test_agreement_of_ratings_is_that_of_all_steps_of_the_scale(queue):
    kind = feedback.kind("rating")
    steps = [choice["value"] for choice in kind.view(kind.example(), [0])["control"]["choices"]]
    queue.submit([Question(f"q{i}", "rating", wanted=2) for i in range(len(steps))])
    for i, step in enumerate(steps):
        answer(queue, f"q{i}", "anna", step, sides=[0])
        answer(queue, f"q{i}", "bert", step, sides=[0])
    alpha = Statistics(queue).report()["alpha"]["rating (interval)"]
    assert alpha == {"alpha": pytest.approx(1.0), "questions": len(steps)}
