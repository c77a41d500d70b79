"""The labeler's queue on a real store: who gets which question, and that each ends with its answers."""

import threading
import time

import pytest

from services.labeler.queue import BROKEN_LIMIT, Known, Lease, Question, Queue
from services.labeler.valkey import Embedded
from tutelage.errors import ServiceError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Embedded(tmp_path_factory.mktemp("store")) as server:
        yield server.client()


@pytest.fixture
def queue(store, request):
    return Queue(store, request.node.name[:80], lease_s=60)


def ask(queue, n=1, **settings):
    queue.submit([Question(f"q{i}", "comparison", {"pair": i}, **settings) for i in range(n)])


def ids(leases: list[Lease]):
    return [lease.id for lease in leases]


def test_a_question_goes_to_one_and_its_answer_counts_once(queue):
    ask(queue, 2)
    (lease,) = queue.lease("anna")
    assert (lease.id, lease.kind, lease.body) == ("q0", "comparison", {"pair": 0})
    assert abs(lease.ends_at - time.time() - 60) < 5
    assert ids(queue.lease("bert", n=5)) == ["q1"]
    outcome, event = queue.answer("q0", "anna", {"weights": [1, 0]})
    assert outcome == "accepted"
    assert queue.answer("q0", "anna", {"weights": [0, 1]}) == ("duplicate", event)
    (heard,), cursor = queue.events()
    assert (heard.id, heard.type, heard.question, heard.annotator) == (event, "answer", "q0", "anna")
    assert heard.body == {"weights": [1, 0]}
    assert queue.events(cursor) == ([], cursor)
    assert queue.lease("anna") == []


def test_asking_twice_asks_once(queue):
    ask(queue, 3)
    ask(queue, 5)
    assert queue.counts()["submitted"] == queue.counts()["open"] == 5


def test_the_urgent_come_first_then_the_old(queue):
    priorities = {"a": 0, "b": 2, "c": 0, "d": 1}
    queue.submit([Question(name, "comparison", priority=p) for name, p in priorities.items()])
    assert ids(queue.lease("anna", n=4)) == ["b", "d", "a", "c"]


def test_overlap_is_of_different_people(queue):
    ask(queue, wanted=2)
    for who in ("anna", "bert", "carl"):
        queue.lease(who)
    assert queue.answer("q0", "anna", {})[0] == queue.answer("q0", "bert", {})[0] == "accepted"
    assert queue.answer("q0", "carl", {})[0] == "lost"
    assert queue.counts()["open"] == 0


def test_some_are_for_some_and_not_for_others(queue):
    for_anna = Question("for-anna", "rating", only=["anna"])
    queue.submit([for_anna, Question("not-bert", "rating", never=["bert"])])
    assert queue.lease("bert", n=5) == []
    assert ids(queue.lease("carl", n=5)) == ["not-bert"]
    assert ids(queue.lease("anna", n=5)) == ["for-anna"]


def test_who_can_take_none_of_the_first_thousands_comes_to_the_others(queue):
    ask(queue, 4200, wanted=2)
    queue.submit([Question("rating", "rating"), Question("urgent", "rating", priority=1, only=["bert"])])
    assert ids(queue.lease("bert", kinds=["rating"])) == ["urgent"]
    assert [ids(queue.lease("carl", kinds=["rating"])) for _ in range(4)][-1] == ["rating"]
    answered = 0
    while leases := queue.lease("anna", n=500) or queue.lease("anna", n=500) or queue.lease("anna", n=500):
        for lease in leases:
            assert queue.answer(lease.id, "anna", {})[0] == "accepted"
        answered += len(leases)
    assert answered == 4200
    queue.submit([Question("new", "comparison", priority=1)])
    assert ids(queue.lease("anna")) == ["new"]


def test_kinds_can_be_chosen(queue):
    queue.submit([Question("a", "rating"), Question("b", "comparison")])
    assert ids(queue.lease("anna", n=5, kinds=["comparison"])) == ["b"]
    assert set(ids(queue.lease("anna", n=5))) == {"a", "b"}


def test_a_page_that_is_loaded_again_has_its_questions_again(queue):
    ask(queue, 5)
    for n in (1, 2, 3):
        assert ids(queue.lease("anna", n=n)) == [f"q{i}" for i in range(n)]
    began = [lease.began_at for lease in queue.lease("anna", n=3)]
    assert began == sorted(began)
    assert all(abs(at - time.time()) < 5 for at in began)
    assert began == [lease.began_at for lease in queue.lease("anna", n=3)]


def test_questions_for_some_and_for_all_come_in_one_order(queue):
    urgent = {"a": 0, "b": 2, "c": 1, "d": 2}
    queue.submit(
        [Question(name, "rating", priority=p, only=["anna"] * (name in "bc")) for name, p in urgent.items()]
    )
    queue.submit([Question(f"q{i}", "rating", only=["carl"]) for i in range(3)])
    assert queue.counts()["open"] == 7
    assert queue.depth() == {"rating": 7}
    assert ids(queue.lease("anna", n=3)) == ["b", "d", "c"]
    assert ids(queue.lease("bert", n=9)) == ["a"]
    assert ids(queue.lease("carl", n=9)) == ["q0", "q1", "q2"]
    assert queue.depth() == {}


def test_what_could_not_be_asked_is_a_dead_letter_until_it_is(queue):
    assert queue.missing(["a", "b"]) == ["a", "b"]
    assert queue.bury("a", "no clip")
    ask(queue)
    assert not queue.bury("q0", "too late")
    assert queue.dead() == {"a": "no clip"}
    assert queue.missing(["a", "b", "q0"]) == ["b"]
    assert queue.requeue("a")
    assert not queue.requeue("a")
    assert queue.missing(["a"]) == ["a"]
    assert queue.look_up("q0") == Known("comparison", {"pair": 0})
    assert queue.look_up("a") is None


def test_who_leaves_loses_the_question_and_a_late_answer_is_refused_if_somebody_has_it(store, request):
    queue = Queue(store, request.node.name[:80], lease_s=0.05)
    ask(queue)
    queue.lease("anna")
    time.sleep(0.1)
    assert ids(Queue(store, request.node.name[:80]).lease("bert")) == ["q0"]
    assert queue.answer("q0", "anna", {})[0] == "lost"
    assert queue.answer("q0", "bert", {})[0] == "accepted"
    assert queue.counts()["expired"] == queue.counts()["lost"] == 1


def test_a_late_answer_counts_where_nobody_else_has_the_question(store, request):
    queue = Queue(store, request.node.name[:80], lease_s=0.05)
    ask(queue)
    queue.lease("anna")
    time.sleep(0.1)
    assert queue.expire() == 1
    assert queue.answer("q0", "anna", {})[0] == "accepted"
    assert queue.lease("bert") == []


def test_who_was_never_given_a_question_that_is_not_for_them_cannot_answer_it(queue):
    queue.submit([Question("a", "text", only=["anna"]), Question("b", "text", never=["bert"])])
    assert queue.answer("a", "bert", {})[0] == queue.answer("b", "bert", {})[0] == "lost"
    assert queue.answer("a", "anna", {})[0] == queue.answer("b", "anna", {})[0] == "accepted"


def test_a_heart_beat_keeps_a_question(store, request):
    queue = Queue(store, request.node.name[:80], lease_s=0.2)
    ask(queue, 2)
    queue.lease("anna", n=2)
    for _ in range(4):
        time.sleep(0.1)
        assert set(queue.beat("anna", ["q0", "q1"])) == {"q0", "q1"}
    assert queue.expire() == 0
    assert queue.beat("bert", ["q0"]) == []


def test_an_answer_is_taken_back_and_given_again(queue):
    ask(queue)
    queue.lease("anna")
    _, first = queue.answer("q0", "anna", {"v": 1})
    assert queue.undo("q0", "anna") == "undone"
    assert queue.lease("bert") == []
    assert queue.answer("q0", "anna", {"v": 2})[0] == "accepted"
    answer, undone, again = queue.events()[0]
    assert (answer.id, undone.type, undone.undoes, again.body) == (first, "undo", first, {"v": 2})
    assert queue.undo("q0", "bert") == "unknown"


def test_what_is_broken_for_several_is_a_dead_letter_until_it_is_asked_again(queue):
    ask(queue)
    for who in ("anna", "bert", "carl")[:BROKEN_LIMIT]:
        assert ids(queue.lease(who)) == ["q0"]
        assert queue.give_back("q0", who, broken="the clip does not play")
        assert queue.lease(who) == []  # not to the same one again
    assert queue.lease("dora") == []
    assert queue.dead() == {"q0": "the clip does not play"}
    assert queue.requeue("q0")
    assert ids(queue.lease("anna")) == ["q0"]


def test_who_skips_a_question_leaves_it_to_others(queue):
    ask(queue)
    queue.lease("anna")
    assert queue.give_back("q0", "anna")
    assert not queue.give_back("q0", "anna")
    assert queue.lease("anna") == []
    assert ids(queue.lease("bert")) == ["q0"]


def test_a_question_withdrawn_is_not_asked_and_who_has_it_may_answer(queue):
    ask(queue, 2, wanted=2)
    queue.lease("anna")
    assert queue.withdraw(["q0", "q1", "q9"]) == 3
    assert queue.states(["q0", "q9", "q8"]) == {"q0": "withdrawn", "q9": "unasked", "q8": ""}
    assert queue.missing(["q0", "q9", "q8"]) == ["q8"]
    assert queue.lease("bert", n=5) == []
    assert queue.answer("q0", "anna", {})[0] == "accepted"
    again = [Question("q9", "rating"), Question("q1", "comparison")]
    assert queue.submit(again) == 0  # one that was on its way when it was withdrawn
    assert queue.requeue("q1")
    assert queue.requeue("q9")
    assert queue.submit(again) == 1
    assert set(ids(queue.lease("bert", n=5))) == {"q1", "q9"}


def test_a_question_that_was_withdrawn_and_has_its_answers_is_done_when_it_is_asked_again(queue):
    ask(queue)
    queue.lease("anna")
    queue.withdraw(["q0"])
    assert queue.answer("q0", "anna", {})[0] == "accepted"
    assert queue.requeue("q0")
    assert queue.states(["q0"]) == {"q0": "done"}
    assert queue.withdraw(["q0"]) == 0
    assert queue.undo("q0", "anna") == "undone"


def test_nobody_is_given_anything_in_a_pause_and_the_banned_never(queue):
    ask(queue, 3)
    queue.lease("anna")
    queue.pause()
    assert queue.lease("bert") == []
    assert queue.answer("q0", "anna", {})[0] == "accepted"
    queue.pause(False)
    queue.lease("anna")
    queue.ban("anna")
    with pytest.raises(ServiceError, match="anna is banned"):
        queue.lease("anna")
    assert queue.undo("q0", "anna") == "late"
    assert queue.answer("q1", "anna", {})[0] == "lost"
    assert ids(queue.lease("bert", n=5)) == ["q1", "q2"]
    queue.ban("anna", False)
    assert queue.lease("anna") == []


def test_gold_is_in_the_events_and_not_in_the_lease(store, queue):
    queue.submit([Question("q0", "comparison", {"pair": 1}, gold=[1, 0])])
    (lease,) = queue.lease("anna")
    assert "gold" not in str(lease)
    queue.answer("q0", "anna", {})
    queue.undo("q0", "anna")
    events = queue.events()[0]
    assert [(event.type, event.gold) for event in events] == [("answer", [1, 0]), ("undo", [1, 0])]
    again = Queue(store, f"{queue._prefix}-again")
    assert again.restore(events) == 2
    assert again.events()[0] == events


def test_a_kept_question_is_lent_once_it_is_there(queue):
    assert queue.lend("g", "anna") == "absent"
    queue.submit([Question("g", "comparison", gold=[1, 0], kept=True)])
    assert [queue.lend("g", "anna") for _ in range(2)] == ["lent", "had"]
    assert queue.answer("g", "anna", {})[0] == "accepted"
    assert queue.lend("g", "anna") == "had"
    for who in ("bert", "carl", "dora"):
        queue.lend("g", who)
        queue.give_back("g", who, broken="the clip does not play")
    assert queue.lend("g", "emma") == "absent"
    queue.requeue("g")
    assert queue.lend("g", "emma") == "lent"


def test_an_unknown_question_is_said(queue):
    assert queue.answer("nothing", "anna", {}) == ("unknown", "")


@pytest.mark.parametrize(
    "question",
    [
        Question("", "comparison"),
        Question("a\nb", "comparison"),
        Question("a", "comparison", wanted=0),
        Question("a", "comparison", {"x": "y" * 70_000}),
        Question("a", "comparison", {"x": float("nan")}),
    ],
)
def test_what_cannot_be_asked_is_refused(queue, question):
    with pytest.raises(ValueError, match=r"."):
        queue.submit([question])
    assert queue.counts()["submitted"] == 0


def test_many_at_once_answer_each_question_as_often_as_wanted(store, request):
    name = request.node.name[:80]
    Queue(store, name).submit([Question(f"q{i}", "comparison", wanted=1 + i % 3) for i in range(90)])

    def work(who):
        own = Queue(store, name)
        while leases := own.lease(who, n=2):
            for lease in leases:
                assert own.answer(lease.id, who, {"by": who})[0] == "accepted"
                assert own.answer(lease.id, who, {"by": who})[0] == "duplicate"

    threads = [threading.Thread(target=work, args=(f"annotator-{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events, _ = Queue(store, name).events(limit=1000)
    by_question = {}
    for event in events:
        by_question.setdefault(event.question, []).append(event.annotator)
    assert {q: len(who) for q, who in by_question.items()} == {f"q{i}": 1 + i % 3 for i in range(90)}
    assert all(len(set(who)) == len(who) for who in by_question.values())
    assert len(events) == 180


def test_answers_of_a_ledger_are_put_back_once(store, queue):
    ask(queue, 3)
    queue.lease("anna", n=3)
    for i in range(3):
        queue.answer(f"q{i}", "anna", {"i": i})
    queue.undo("q1", "anna")
    events, _ = queue.events()
    again = Queue(store, f"{queue._prefix}-again")
    assert again.restore(events[:2]) == 2
    assert again.restore(events) == 2  # the third, and that the second was taken back
    assert again.restore(events) == 0
    assert again.events()[0] == events
    assert again.submit([Question("q0", "comparison"), Question("q1", "comparison")]) == 1


def test_a_restored_question_that_cannot_be_asked_is_a_dead_letter_until_it_can(store, queue):
    ask(queue, wanted=2)
    queue.lease("anna")
    queue.answer("q0", "anna", {})
    again = Queue(store, f"{queue._prefix}-again")
    again.restore(queue.events()[0], 2)
    assert again.missing(["q0"]) == ["q0"]
    assert again.bury("q0", "no clip")
    assert (again.states(["q0"]), again.dead(), again.missing(["q0"])) == (
        {"q0": "dead"},
        {"q0": "no clip"},
        [],
    )
    assert again.requeue("q0")
    assert again.withdraw(["q0"]) == 1
    assert again.missing(["q0"]) == []
    assert again.requeue("q0")
    assert again.missing(["q0"]) == ["q0"]
    ask(again, wanted=2)
    assert again.lease("anna") == []
    assert ids(again.lease("bert")) == ["q0"]


def test_answers_are_put_back_into_questions_that_were_asked_again(store, queue):
    queue.submit([Question(f"q{i}", "comparison", wanted=2) for i in range(2)])
    for name, asked in (("anna", 2), ("bert", 1)):
        for lease in queue.lease(name, n=asked):
            queue.answer(lease.id, name, {})
    again = Queue(store, f"{queue._prefix}-again")
    again.submit([Question(f"q{i}", "comparison", wanted=2) for i in range(2)])
    assert again.restore(queue.events()[0]) == 3
    assert [lease.id for lease in again.lease("carl", n=2)] == ["q1"]  # q0 has its two
    assert again.lease("anna", n=2) == []


def test_a_store_without_our_functions_is_given_them_again(store, queue):
    for call, said in (
        (lambda: queue.submit([Question("q0", "comparison")]), 1),
        (lambda: ids(queue.lease("anna")), ["q0"]),
        (lambda: queue.answer("q0", "anna", {})[0], "accepted"),
    ):
        store.function_flush()
        assert call() == said


@pytest.mark.parametrize("wanted", [1, 2])
def test_answers_that_are_put_back_leave_no_leases_beyond_what_is_wanted(store, queue, wanted):
    ask(queue, wanted=wanted)
    queue.lease("anna")
    queue.answer("q0", "anna", {})
    again = Queue(store, f"{queue._prefix}-again")
    ask(again, wanted=wanted)
    for who in ("bert", "carl")[:wanted]:
        assert ids(again.lease(who)) == ["q0"]
    assert again.restore(queue.events()[0]) == 1
    assert again.counts()["leased"] == wanted - 1
    said = [again.answer("q0", who, {})[0] for who in ("bert", "carl")]
    assert sorted(said) == [*["accepted"] * (wanted - 1), *["lost"] * (3 - wanted)]
    assert len(again.events()[0]) == wanted


def test_an_answer_after_a_skip_is_put_back_too(store, queue):
    again = Queue(store, f"{queue._prefix}-again")
    for one in (queue, again):
        ask(one)
        one.lease("anna")
        one.give_back("q0", "anna")
    assert queue.answer("q0", "anna", {})[0] == "accepted"
    assert again.restore(queue.events()[0]) == 1
    assert again.states(["q0"]) == {"q0": "done"}
    assert again.events()[0] == queue.events()[0]
