"""What the labeler's ways in stand on, with a real store: nothing asked is lost, nothing is counted twice."""

import contextlib
import dataclasses
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import redis

from expert_oracle.feedback import text
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.mixing import AFTER
from services.labeler.publishing import KILLED_LIMIT
from services.labeler.queries import Queries
from services.labeler.queue import Queue
from services.labeler.valkey import Embedded
from tutelage.errors import Killed, NoRoom, ServiceError
from tutelage.types import EnvRecipe, Query, Segment


class Camera:
    """Makes no clips, but says when they are there, or why not."""

    def __init__(self):
        self.films = []

    def film(self, footage):
        self.films.append((footage, Future()))
        return self.films[-1][1]

    def path(self, name):
        return None

    def develop(self):
        for n, (_, film) in enumerate(self.films):
            if not film.done():
                film.set_result(
                    {"clip": f"{n:064x}.mp4", "frames": 3, "fps": 20.0, "width": 64, "height": 64}
                )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Embedded(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def make(server, tmp_path, request):
    """Makes the same labeling again and again, as restarts do."""
    made = []

    def make(name="", **settings):
        queue = Queue(server.client(), f"{request.node.name[:60]}{name}", lease_s=60)
        given = {"repeats": 0.0, "overlap": 0.0, "gold": 0.0, **settings}
        ledger = Ledger(tmp_path / "answers.jsonl")
        made.append(
            Labeling(queue, ledger, given.pop("clips", Camera()), tmp_path, secret=b"s" * 32, **given)
        )
        return made[-1]

    yield make
    for labeling in made:
        labeling.stop()


def texts(n, **settings):
    return [Query(f"q{i}", "text", [f"one {i}", f"two {i}"], **settings) for i in range(n)]


def pair(name="p0", **settings):
    recipe = EnvRecipe("CartPole-v1", {"x": 1})
    segments = [
        Segment(np.full((3, 4), k), np.full(3, k), recipe, k, np.zeros(k, int), np.full(3, k / 1))
        for k in (0, 1)
    ]
    return Query(name, "comparison", segments, **settings)


def ids(assignments):
    return [assignment.id for assignment in assignments]


def answer_all(labeling, who, n=3, value=(1, 0)):
    answered = []
    while assignments := labeling.assign(who, n):
        for assignment in assignments:
            assert labeling.answer(assignment.id, who, list(value), started_at=1.0)[0] == "accepted"
            answered.append(assignment.id)
    return answered


def test_a_query_becomes_a_question_and_its_answer_reaches_learner_and_ledger(make):
    labeling = make()
    assert labeling.submit(texts(2, answers_wanted=1)) == ["q0", "q1"]
    assert labeling.waiting() == 2
    labeling.run_once()
    assert labeling.waiting() == 0
    first, _ = labeling.assign("anna", 2)
    assert (first.id, first.kind) == ("q0", "text")
    assert abs(first.began_at - time.time()) < 5 < first.ends_at - time.time()
    shown = [panel["option"] for panel in first.view["panels"]]
    assert labeling.answer("q0", "anna", [1, 0], started_at=5.0, extra={"reason": "so"})[0] == "accepted"
    assert labeling.answer("q1", "anna", None, cannot_tell=True, started_at=7.0)[0] == "accepted"
    assert labeling.answer("q0", "anna", [0, 1], started_at=5.0)[0] == "duplicate"
    assert labeling.answer("q9", "anna", [0, 1], started_at=5.0) == ("unknown", "")
    ((event, one), (_, two)), cursor = labeling.answers()
    assert (one.query_id, one.value.tolist(), one.annotator) == ("q0", [1, 0], "anna")
    assert list(one.side_shown) == shown
    assert not one.cannot_tell
    assert two.cannot_tell
    assert labeling.answers(cursor) == ([], cursor)
    labeling.run_once()
    assert [line.id for line in labeling.ledger] == [event, cursor]
    assert next(iter(labeling.ledger)).body["reason"] == "so"


def test_sides_are_drawn_for_each_annotator_and_stay(make):
    labeling = make()
    labeling.submit(texts(40, answers_wanted=2))
    labeling.run_once()

    def shown(who):
        return [[p["option"] for p in a.view["panels"]] for a in labeling.assign(who, 40)]

    anna, bert = shown("anna"), shown("bert")
    assert anna == shown("anna")
    assert anna != bert
    assert 8 < sum(order == [1, 0] for order in anna) < 32


def test_what_cannot_be_shown_is_given_back_and_others_are_shown(make, monkeypatch):
    labeling = make()
    labeling.submit(texts(5))
    labeling.run_once()
    view = text.view

    def fails(body, order):
        if body["texts"][0] == "one 1":
            raise KeyError("width")
        return view(body, order)

    monkeypatch.setattr(text, "view", fails)
    assert ids(labeling.assign("anna", 2)) == ["q0", "q2"]
    assert ids(labeling.assign("anna", 2)) == ["q0", "q2"]
    assert ids(labeling.assign("bert", 1)) == ["q3"]
    assert labeling.queue.dead() == {}
    assert ids(labeling.assign("carl", 1)) == ["q4"]
    assert labeling.queue.dead() == {"q1": "KeyError: 'width'"}


def test_what_is_wrong_is_named_and_nothing_is_asked(make):
    labeling = make()
    bad = [
        (Query("a", "guess", ["x"]), r"guess"),
        (Query("a\n", "text", ["x", "y"]), r"printable"),
        (Query("a", "text", ["x", "y"], answers_wanted=0), r"answers_wanted=0"),
        (Query("a", "text", ["x", "y"], {"now": object()}), r"query a, context.now: "),
    ]
    for query, words in bad:
        with pytest.raises(ValueError, match=words):
            labeling.submit([Query("good", "text", ["x", "y"]), query])
    with pytest.raises(ValueError, match=r"gold: 'z' is none"):
        labeling.submit(texts(1), gold={"z": [1, 0]})
    assert labeling.waiting() == 0
    labeling.submit(texts(1))
    labeling.run_once()
    labeling.assign("anna")
    with pytest.raises(ValueError, match="value"):
        labeling.answer("q0", "anna", "left", started_at=0.0)


def test_a_question_is_asked_once_its_clips_are_there(make):
    camera = Camera()
    labeling = make(clips=camera)
    labeling.submit([pair(), *texts(1)])
    labeling.run_once()
    assert ids(labeling.assign("anna", 5)) == ["q0"]
    assert len(camera.films) == 2
    assert labeling.waiting() == 1
    camera.develop()
    labeling.run_once()
    assert set(ids(labeling.assign("anna", 5))) == {"p0", "q0"}
    segment = labeling.query("p0").options[1]
    assert (segment.recipe, segment.seed, segment.rewards.tolist()) == (
        pair().options[1].recipe,
        1,
        [1, 1, 1],
    )


def test_only_so_many_are_filmed_ahead_the_urgent_first(make):
    camera = Camera()
    labeling = make(clips=camera, ahead=2)
    labeling.submit([pair(f"p{i}", priority=i) for i in range(5)])
    for _ in range(3):
        labeling.run_once()
        camera.develop()
    assert len(camera.films) == 4
    assert labeling.waiting() == 3
    assert ids(labeling.assign("anna", 5)) == ["p4", "p3"]


def test_who_can_take_none_of_those_that_are_filmed_is_not_left_without(make):
    camera = Camera()
    labeling = make(clips=camera, ahead=4, overlap=1.0)  # a second answer is wanted, and nobody else is there
    labeling.submit([pair(f"p{i}") for i in range(12)])
    done = []

    def tick():
        labeling.run_once()
        camera.develop()
        labeling.run_once()

    for _ in range(8):
        tick()
        for one in labeling.assign("anna", 3):
            labeling.answer(one.id, "anna", [1, 0], started_at=0.0)
            done.append(one.id)
        assert len(camera.films) <= 2 * (4 + len(done))
    assert len(set(done)) == 12


def test_nobody_makes_more_be_filmed_in_a_pause_or_by_asking_for_other_kinds(make):
    camera = Camera()
    labeling = make(clips=camera, ahead=1)
    labeling.submit([pair(f"p{i}") for i in range(9)])
    for pause in (False, True):
        labeling.queue.pause(pause)
        labeling.run_once()
        camera.develop()
        labeling.run_once()
        assert labeling.assign("anna", 3, kinds=() if pause else ["text"]) == []
    labeling.run_once()
    assert len(camera.films) == 2


def test_what_cannot_be_filmed_is_a_dead_letter_and_may_be_tried_again(make):
    camera = Camera()
    labeling = make(clips=camera)
    labeling.submit([pair()])
    labeling.run_once()
    camera.films[0][1].set_exception(ValueError("the replay differs\nfrom what was seen"))
    camera.films[1][1].set_result({})
    labeling.run_once()
    assert labeling.queue.dead() == {"p0": "the replay differs from what was seen"}
    again = make(clips=camera)  # also after a restart it stays what it is
    again.run_once()
    assert (again.waiting(), len(camera.films)) == (0, 2)
    assert again.queue.requeue("p0")
    again.run_once()
    camera.develop()
    again.run_once()
    assert ids(again.assign("anna")) == ["p0"]
    assert again.queue.dead() == {}


@pytest.mark.parametrize("fault", [NoRoom("the disk is full"), Killed("the process was killed by SIGKILL")])
def test_what_cannot_be_filmed_for_now_waits_and_is_filmed_later(make, monkeypatch, fault):
    camera = Camera()
    labeling = make(clips=camera)
    labeling.submit([pair()])
    labeling.run_once()
    for _, film in camera.films:
        film.set_exception(fault)
    for _ in range(2):  # the second time nothing is tried
        with pytest.raises(ServiceError, match=str(fault)):
            labeling.run_once()
    assert (labeling.queue.dead(), labeling.waiting(), len(camera.films)) == ({}, 1, 2)
    monkeypatch.setattr(labeling._publishing, "_film_from", 0.0)
    with pytest.raises(ServiceError, match=str(fault)):
        labeling.run_once()
    camera.develop()
    labeling.run_once()
    assert ids(labeling.assign("anna")) == ["p0"]


def test_a_question_that_kills_who_films_it_is_a_dead_letter_in_the_end(make, monkeypatch):
    monkeypatch.setattr("services.labeler.publishing.PAUSE_S", 0.0)
    camera = Camera()
    labeling = make(clips=camera)
    labeling.submit([pair()])
    for _ in range(2 * KILLED_LIMIT):
        with contextlib.suppress(ServiceError):
            labeling.run_once()
        for _, film in camera.films:
            if not film.done():
                film.set_exception(Killed("killed by SIGSEGV"))
    assert len(camera.films) == 2 * KILLED_LIMIT
    assert labeling.queue.dead() == {"p0": "killed by SIGSEGV"}


def test_what_is_ready_when_the_store_goes_away_is_asked_later(make, monkeypatch):
    labeling = make()
    wrong = Query("p1", "comparison", pair().options, {"task": "x" * 20_000})  # only its body says so
    labeling.submit([pair("p0"), wrong])
    labeling.run_once()
    labeling.clips.develop()

    def away(*_):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(labeling.queue, "bury", away)
        with pytest.raises(redis.ConnectionError):
            labeling.run_once()
    for _ in range(2):
        labeling.run_once()
        labeling.clips.develop()
    labeling.run_once()
    assert ids(labeling.assign("anna", 9)) == ["p0"]
    assert set(labeling.queue.dead()) == {"p1"}


@pytest.mark.parametrize("fails", ["states", "missing"])
def test_what_is_submitted_while_the_store_is_away_is_asked_when_it_is_back(make, monkeypatch, fails):
    labeling = make()
    labeling.submit(texts(3))
    labeling.withdraw(["q0", "q1"])
    labeling.run_once()

    def away(*_):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(labeling.queue, fails, away)
        with pytest.raises(redis.ConnectionError):
            labeling.submit(texts(5))
    assert labeling.waiting() == 2
    for _ in range(2):
        labeling.submit(texts(5))
        labeling.run_once()
    assert ids(labeling.assign("anna", 9)) == ["q2", "q0", "q1", "q3", "q4"]


def test_an_answer_taken_back_takes_the_place_of_the_first(make):
    labeling = make()
    labeling.submit(texts(1))
    labeling.run_once()
    labeling.assign("anna")
    labeling.answer("q0", "anna", [1, 0], started_at=0.0)
    assert labeling.undo("q0", "anna") == "undone"
    assert labeling.beat("anna", ["q0", "q5"]) == ["q0"]
    labeling.answer("q0", "anna", [0, 1], started_at=0.0)
    heard = [(a.query_id, a.annotator, a.cannot_tell) for _, a in labeling.answers()[0]]
    assert heard == [("q0", "anna", False), ("q0", "anna", True), ("q0", "anna", False)]


def test_gold_is_asked_of_everybody_and_given_to_no_learner(make):
    labeling = make(gold=1.0)
    labeling.submit([*texts(3, answers_wanted=2), Query("g", "text", ["a", "b"])], gold={"g": [1, 0]})
    labeling.run_once()
    assert labeling.queue.counts()["open"] == 3
    assert ids(labeling.assign("anna", 1)) == ["g"]
    labeling.answer("g", "anna", [0, 1], started_at=0.0)
    assert labeling.undo("g", "anna") == "undone"
    for who in ("anna", "bert"):
        assert sorted(answer_all(labeling, who)) == ["g", "q0", "q1", "q2"]
    labeling.run_once()
    heard = [answer.query_id for _, answer in labeling.answers()[0]]
    assert sorted(heard) == sorted(["q0", "q1", "q2"] * 2)
    gold = [event for event in labeling.ledger if event.gold is not None]
    assert [(event.question, event.annotator, event.type, event.gold) for event in gold] == [
        ("g", "anna", "answer", [1, 0]),
        ("g", "anna", "undo", [1, 0]),
        ("g", "anna", "answer", [1, 0]),
        ("g", "bert", "answer", [1, 0]),
    ]
    with pytest.raises(ValueError, match=r"gold, h: value"):
        labeling.submit([Query("h", "text", ["a", "b"])], gold={"h": "left"})


def test_gold_that_is_filmed_after_a_restart_is_asked_then(make):
    gold = {f"g{i}": [1, 0] for i in range(3)}
    labeling = make()
    labeling.submit([*(pair(id) for id in gold), *texts(3)], gold)
    labeling.run_once()
    camera = Camera()
    again = make(clips=camera)
    again.run_once()
    assert ids(again.assign("anna", 1)) == ["q0"]
    camera.develop()
    again.run_once()
    for who in ("anna", "bert"):
        assert set(ids(again.assign(who, 9))) & set(gold)
    assert again.assign("carl", 1)[0].id in gold


def test_some_are_asked_again_after_others_with_their_sides_reversed(make):
    labeling = make(repeats=1.0)
    labeling.submit(texts(AFTER + 2))
    labeling.run_once()
    seen, orders, queries = [], {}, []
    while (assignments := labeling.assign("anna")) and len(seen) < AFTER + 3:
        (one,) = assignments
        orders[one.id] = [p["option"] for p in one.view["panels"]]
        labeling.answer(one.id, "anna", [1, 0], started_at=0.0)
        seen.append(one.id)
        queries.append(one.query)
        if len(seen) == AFTER:  # what is due is known after a restart as well
            labeling = make(repeats=1.0)
            labeling.run_once()
    assert queries == [*(f"q{i}" for i in range(AFTER + 1)), "q0", "q21"]
    again = seen[-2]
    assert re.fullmatch("[0-9a-f]{24}", again)  # says nothing
    assert orders[again] == orders["q0"][::-1]
    assert again not in [answer.query_id for _, answer in labeling.answers()[0]]
    assert labeling.assign("bert", 5) == []


def test_two_who_are_asked_the_same_again_have_questions_of_their_own(make):
    labeling = make(repeats=1.0)
    labeling.submit([dataclasses.replace(query, answers_wanted=2) for query in texts(AFTER + 1)])
    labeling.run_once()
    again = {}
    for who in ("anna", "bert"):
        for _ in range(AFTER + 1):
            (one,) = labeling.assign(who)
            labeling.answer(one.id, who, [1, 0], started_at=0.0)
        (again[who],) = labeling.assign(who)
    assert {one.query for one in again.values()} == {"q0"}
    assert again["anna"].id != again["bert"].id
    for who, one in again.items():
        assert labeling.answer(one.id, who, [1, 0], started_at=0.0)[0] == "accepted"


def test_nobody_sends_a_demonstration_that_was_not_played(make):
    labeling = make()
    labeling.submit([Query("d", "demonstration", [], {"env": "CartPole-v1"})])
    labeling.run_once()
    labeling.assign("anna")
    with pytest.raises(ValueError, match="value: a demonstration is played in the page"):
        labeling.answer("d", "anna", [0, 1], started_at=0.0)
    assert labeling.answer("d", "anna", [0, 1], started_at=0.0, played=True)[0] == "accepted"


def test_times_lie_between_the_lease_and_now_whatever_a_clock_says(make):
    labeling = make()
    labeling.submit(texts(3))
    labeling.run_once()
    leased, now = [one.began_at for one in labeling.assign("anna", 3)], time.time()
    labeling.answer("q0", "anna", [1, 0], started_at=now - 9e5, answered_at=now + 9e5)
    labeling.answer("q1", "anna", [1, 0], started_at=now + 9e5, moments={"first_key_at": 5.0})
    other = make()  # knows of the lease from the store
    other.answer("q2", "anna", [1, 0], started_at=0.0)
    said = [event.body for event in labeling.events()[0]]
    assert [one["started_at"] for one in said] == [
        leased[0],
        said[1]["answered_at"],
        pytest.approx(leased[2], abs=2e-3),
    ]
    assert said[1]["first_key_at"] == leased[1]
    assert all(now <= one["answered_at"] <= time.time() for one in said)


@pytest.fixture
def forgetful(tmp_path):
    """A labeling, and what makes its store lose all that it was told since."""
    server = Embedded(tmp_path / "store")
    server.start()

    def begin(folder=tmp_path / "store"):
        ledger = Ledger(tmp_path / "answers.jsonl")
        queue = Queue(Embedded(folder).client(), "x")
        return Labeling(queue, ledger, Camera(), tmp_path, secret=b"s" * 32, gold=0, overlap=0)

    def remember():
        shutil.copytree(tmp_path / "store", tmp_path / "before", ignore=shutil.ignore_patterns("*.sock"))

    def forget():
        server.stop()
        shutil.rmtree(tmp_path / "store" / "appendonlydir")
        shutil.copytree(tmp_path / "before" / "appendonlydir", tmp_path / "store" / "appendonlydir")
        server.start()

    yield begin, remember, forget
    server.stop()


def test_answers_that_the_store_loses_while_it_is_served_come_back(forgetful):
    begin, remember, forget = forgetful
    labeling = begin()
    labeling.submit(texts(2))
    labeling.run_once()
    labeling.assign("anna", 2)
    labeling.answer("q0", "anna", [1, 0], started_at=0.0)
    remember()
    labeling.answer("q1", "anna", [1, 0], started_at=0.0)
    labeling.submit(texts(3))
    labeling.run_once()
    before = [event for event, _ in labeling.answers()[0]]
    forget()
    assert [event for event, _ in labeling.answers()[0]] == before[:1]
    labeling.run_once()
    assert [event for event, _ in labeling.answers()[0]] == before
    assert labeling.queue.states(["q0", "q1", "q2"]) == {"q0": "done", "q1": "done", "q2": "open"}
    labeling.queries.close()


@pytest.mark.parametrize("answers", [0, 1])
def test_a_store_that_comes_back_empty_is_filled_while_it_is_served(forgetful, tmp_path, answers):
    begin, _, _ = forgetful
    labeling = begin()
    labeling.submit(texts(3))
    labeling.run_once()
    for one in labeling.assign("anna", answers):
        labeling.answer(one.id, "anna", [1, 0], started_at=0.0)
    labeling.run_once()
    before = labeling.events()
    store = Embedded(tmp_path / "store").client()
    store.flushall()
    store.function_flush()
    assert labeling.assign("anna", 3) == []
    labeling.run_once()
    assert labeling.events() == before
    assert ids(labeling.assign("anna", 3)) == ["q0", "q1", "q2"][answers:]
    labeling.queries.close()


def test_answers_that_cannot_come_back_at_once_are_said_to_be_lost_and_are_not(forgetful, tmp_path):
    begin, remember, forget = forgetful
    labeling = begin()
    labeling.submit(texts(3))
    labeling.run_once()
    labeling.assign("anna", 3)
    remember()
    labeling.answer("q0", "anna", [1, 0], started_at=0.0)
    labeling.run_once()
    forget()
    labeling.answer("q1", "anna", [1, 0], started_at=0.0)
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"the store has lost answers that .*answers.jsonl has; stop"):
            labeling.run_once()
    labeling.queries.close()
    with Embedded(tmp_path / "empty"):
        anew = begin(tmp_path / "empty")
        anew.run_once()
        assert [answer.query_id for _, answer in anew.answers()[0]] == ["q0", "q1"]
        anew.queries.close()


def test_what_was_withdrawn_is_asked_again_only_when_it_is_submitted_again(make):
    camera = Camera()
    labeling = make(clips=camera)
    labeling.submit(texts(3))
    labeling.run_once()
    labeling.submit([pair("p0"), pair("p1")])
    assert labeling.withdraw(["q0", "nothing"], kind="comparison") == 3
    again = make(clips=camera)
    for one in (labeling, again):
        one.run_once()
        camera.develop()
        one.run_once()
        assert one.waiting() == 0
    assert ids(again.assign("anna", 9)) == ["q1", "q2"]
    again.submit([pair("p1"), *texts(1)])
    again.run_once()
    camera.develop()
    again.run_once()
    assert set(ids(again.assign("anna", 9))) == {"q0", "q1", "q2", "p1"}


def test_a_share_is_asked_of_one_more(make):
    labeling = make(overlap=0.3)
    labeling.submit(texts(100))
    labeling.run_once()
    assert len(answer_all(labeling, "anna", 10)) == 100
    assert 15 < len(answer_all(labeling, "bert", 10)) < 45
    assert answer_all(labeling, "carl") == []


def test_after_a_restart_what_was_not_asked_is(make, server):
    labeling = make()
    labeling.submit(texts(3))
    labeling.run_once()
    answer_all(labeling, "anna")
    labeling.submit(texts(5))  # and it is killed before it asks
    again = make()
    again.run_once()
    assert ids(again.assign("anna", 9)) == ["q3", "q4"]
    assert again.query("q4").options == ["one 4", "two 4"]


def test_who_is_asked_is_known_after_a_restart_and_in_another_store(make):
    labeling = make(overlap=1.0)
    labeling.submit(texts(3), only={"q0": ["anna"]}, never={"q1": ["anna"]})
    for again in (labeling, make("-fresh", overlap=1.0)):
        again.run_once()
        assert ids(again.assign("anna", 9)) == ["q0", "q2"]
        assert ids(again.assign("bert", 9)) == ["q1", "q2"]
    assert again.answer("q0", "anna", [1, 0], started_at=0.0)[0] == "accepted"
    assert again.queue.states(["q0"]) == {"q0": "done"}  # nobody else could give a second answer


def test_a_store_that_is_gone_is_filled_from_disk_and_ledger(make):
    labeling = make(gold=1.0)
    gold = {"g0": [1, 0], "g1": [0, 1]}
    labeling.submit([*texts(3, answers_wanted=2), *(Query(g, "text", ["a", "b"]) for g in gold)], gold=gold)
    labeling.run_once()
    assert len(answer_all(labeling, "anna")) == 5
    for assignment in labeling.assign("bert", 1):
        labeling.answer(assignment.id, "bert", [0, 1], started_at=0.0)
    labeling.run_once()
    before = list(labeling.ledger)
    fresh = make("-fresh", gold=1.0)
    fresh.run_once()
    assert fresh.queue.events()[0] == before
    assert answer_all(fresh, "anna") == []
    assert len(answer_all(fresh, "bert")) == 4
    fresh.run_once()
    events = fresh.queue.events()[0]
    assert list(fresh.ledger) == events
    assert len(events) == len({(event.question, event.annotator) for event in events}) == 10


def test_a_restored_question_that_cannot_be_filmed_is_tried_once(make):
    labeling = make()
    labeling.submit([pair(answers_wanted=2)])
    labeling.run_once()
    labeling.clips.develop()
    labeling.run_once()
    assert answer_all(labeling, "anna") == ["p0"]
    labeling.run_once()
    fresh = make("-fresh")
    for _ in range(4):
        fresh.run_once()
        for _, film in fresh.clips.films:
            if not film.done():
                film.set_exception(ValueError("the replay differs"))
    assert fresh.queue.dead() == {"p0": "the replay differs"}
    assert len(fresh.clips.films) == 2


def test_what_is_on_the_disk_survives_a_torn_end_and_a_full_disk_takes_nothing(tmp_path):
    queries = Queries(tmp_path)
    assert queries.add([*texts(3), *texts(2)], {"q1": [1, 0]}) == ["q0", "q1", "q2"]
    queries.close()
    for torn in (b"\x05", b"\x05\0\0\0\0\0\0\0ab"):
        with queries.path.open("ab") as file:
            file.write(torn)
        queries = Queries(tmp_path)
        assert list(queries) == ["q0", "q1", "q2"]
        assert (queries.gold("q1"), queries.gold("q2")) == ([1, 0], None)
        queries.close()
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from services.labeler.queries import Queries\n"
        "from tests.test_labeling import texts\n"
        "queries = Queries(Path(sys.argv[1])); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = queries.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))\n"
        "try: queries.add(texts(9))\n"
        "except Exception as error: print(type(error).__name__, error, len(queries))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "ServiceError" in done.stdout
    assert "File too large 3" in done.stdout
    queries = Queries(tmp_path)
    assert queries.add(texts(4)) == ["q3"]
    queries.close()
    whole = queries.path.read_bytes()
    for at in (0, 3, 5, 20):  # of the first record: its length, its checksum, itself
        data = bytearray(whole)
        data[at] ^= 1
        queries.path.write_bytes(data)
        with pytest.raises(ServiceError, match=r"queries\.bin is damaged at byte 0"):
            Queries(tmp_path)
        assert queries.path.read_bytes() == data


def test_the_work_goes_on_behind_and_waits_for_a_store_that_is_away(make, server, monkeypatch):
    labeling = make()
    labeling.start()
    labeling.submit(texts(5))
    deadline = time.monotonic() + 20
    while labeling.queue.counts()["open"] < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [threading.Thread(target=answer_all, args=(labeling, who)) for who in ("anna", "bert")]
    for worker in workers:
        worker.start()
    heard, cursor = [], "0"
    while len(heard) < 5 and time.monotonic() < deadline:
        more, cursor = labeling.answers(cursor, wait_s=0.5)
        heard += more
    for worker in workers:
        worker.join()
    labeling.stop()
    assert {answer.query_id for _, answer in heard} == {f"q{i}" for i in range(5)}
    assert len(list(labeling.ledger)) == 5


def test_it_stops_in_peace_where_the_disk_is_full(make):
    labeling = make()
    labeling.submit(texts(1))
    labeling.run_once()
    answer_all(labeling, "anna")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        labeling.start()
        deadline = time.monotonic() + 20
        while not labeling.fault and time.monotonic() < deadline:
            time.sleep(0.01)
        labeling.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "answers.jsonl cannot be written: File too large" in labeling.fault
    labeling.ledger.follow(labeling.queue)
    assert len(labeling.ledger.answers()) == 1
