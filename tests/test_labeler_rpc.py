"""The labeler over gRPC: a real service, real clients, what breaks in between."""

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest

from expert_oracle.human import HumanOracle
from expert_oracle.human import LabelerClient as WayToPeople
from services.labeler import rpc
from services.labeler.access import Access, Audit
from services.labeler.client import LabelerClient
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.queue import Queue
from services.labeler.valkey import Embedded
from tests.test_labeling import Camera, answer_all, pair, texts
from tutelage.errors import ConfigError, OracleError, ServiceError, Unreachable
from tutelage.protocols import Labeler
from tutelage.types import Query

TOKENS = "t trainer trainer-1\no operator olga\na annotator anna\n"


class Service:
    """A labeler's gRPC in a thread, which can be stopped and started again on the same port."""

    over: asyncio.Event

    def __init__(self, labeling, access=None):
        self.labeling, self.access, self.address = labeling, access, "127.0.0.1:0"

    def start(self):
        up = threading.Event()
        self.loop = asyncio.new_event_loop()

        async def serve():
            self.over = asyncio.Event()
            running = await rpc.start(self.labeling, self.address, self.access)
            self.address = running.address
            up.set()
            await self.over.wait()
            await running.stop(1.0)

        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(serve(),))
        self.thread.start()
        assert up.wait(20)

    def stop(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.loop.close()


@contextmanager
def running(labeling, access=None):
    service = Service(labeling, access)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Embedded(tmp_path_factory.mktemp("store")) as embedded:
        yield embedded


@pytest.fixture
def labeling(server, tmp_path, request):
    camera = Camera()
    queue = Queue(server.client(), request.node.name[:60], lease_s=60)
    made = Labeling(
        *(queue, Ledger(tmp_path / "answers.jsonl"), camera, tmp_path),
        **{"secret": b"s" * 32, "repeats": 0.0, "overlap": 0.0, "gold": 0.0},
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def known_to(server, tmp_path):
    """Who comes in by TOKENS, as often as that a second."""

    def known_to(requests_per_s=50.0):
        (tmp_path / "tokens").write_text(TOKENS)
        given = {"secret": b"s" * 32, "audit": Audit(tmp_path / "audit.jsonl")}
        limits = {"token_file": str(tmp_path / "tokens"), "requests_per_s": requests_per_s}
        return Access(server.client(), tmp_path.name, **given, **limits)

    return known_to


def eventually(get):
    deadline = time.monotonic() + 30
    while not (got := get()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return got


def test_questions_go_over_and_answers_come_back(labeling):
    with running(labeling) as service:
        client = LabelerClient(service.address)
        assert isinstance(client, Labeler)
        assert isinstance(client, WayToPeople)
        assert client.submit([*texts(2), pair(priority=2.0, context={"task": "run", "x": np.arange(3)})]) == [
            *("q0", "q1", "p0")
        ]
        assert eventually(lambda: len(labeling.clips.films) == 2)
        labeling.clips.develop()
        assert eventually(lambda: client.stats().depth == {"comparison": 1, "text": 2})
        leased = client.lease("anna", n=5)
        assert [one.id for one in leased] == ["p0", "q0", "q1"]
        query = leased[0].query
        assert query.context["task"] == "run"
        np.testing.assert_array_equal(query.context["x"], np.arange(3))
        for got, sent in zip(query.options, pair().options, strict=True):
            assert (got.recipe, got.seed) == (sent.recipe, sent.seed)
            for field in ("obs", "actions", "prefix", "rewards"):
                np.testing.assert_array_equal(getattr(got, field), getattr(sent, field))
        assert (
            client.answer("p0", np.array([0, 1], np.float32), annotator="anna", started_at=3.0)[0]
            == "accepted"
        )
        assert client.answer("q0", [0.5, 0.5], annotator="anna")[0] == "accepted"
        assert client.answer("q1", None, annotator="anna", cannot_tell=True)[0] == "accepted"
        assert client.answer("q1", [1, 0], annotator="anna")[0] == "duplicate"
        answers = client.wait(["p0", "q0", "q1"], 20)
        assert [(a.query_id, a.value.tolist(), a.cannot_tell) for a in answers] == [
            ("p0", [0, 1], False),
            ("q0", [0.5, 0.5], False),
            ("q1", [], True),
        ]
        assert answers[0].started_at == leased[0].began_at  # not 3.0
        assert sorted(answers[0].side_shown) == [0, 1]
        assert client.undo("q0", "anna")
        assert client.beat(["q0", "q1"], "anna") == ["q0"]
        assert client.give_back("q0", "anna", broken="no")
        assert client.wait(["q0"], 0.0) == answers[1:2]  # not known before it looks
        heard, cursor = client.answers()
        assert [(a.query_id, a.cannot_tell) for _, a in heard] == [
            *(("p0", False), ("q0", False), ("q1", True), ("q0", True))
        ]
        assert client.answers(cursor) == ([], cursor)
        assert client.answers(cursor, wait_s=0.05) == ([], cursor)
        client.close()


def test_pictures_go_over_whole_and_not_to_who_answers(labeling):
    query = pair()
    seen = [tuple(b"%d" % i * 1000 for i in range(len(one.ended) + 1)) for one in query.options]
    options = [replace(one, pictures=some) for one, some in zip(query.options, seen, strict=True)]
    with running(labeling) as service:
        client = LabelerClient(service.address)
        client.submit([replace(query, options=options)])
        assert [one.pictures for one in labeling.query("p0").options] == seen
        assert eventually(lambda: len(labeling.clips.films) == 2)
        labeling.clips.develop()
        assert eventually(lambda: client.stats().depth == {"comparison": 1})
        (leased,) = client.lease("anna")
        assert [one.pictures for one in leased.query.options] == [None, None]
        client.close()


def test_label_hands_over_and_takes_what_has_come(labeling):
    with running(labeling) as service:
        client = LabelerClient(service.address)
        assert client.label(texts(4)) == []
        assert eventually(lambda: labeling.queue.counts()["open"] == 4)
        answer_all(labeling, "anna")
        assert {answer.query_id for answer in client.label([])} == {"q0", "q1", "q2", "q3"}
        assert client.label([]) == []
        client.close()


def test_many_queries_at_once_with_gold(labeling):
    with running(labeling) as service:
        client = LabelerClient(service.address)
        assert len(client.submit(texts(1200), gold={"q7": [1, 0], "q1100": [0, 1]})) == 1200
        assert eventually(lambda: labeling.queue.counts()["open"] == 1198)
        assert client.wait(["q0"], 0.0) == []
        client.close()


def test_some_questions_are_for_some_and_not_for_others(labeling, known_to):
    with running(labeling, known_to()) as service:
        client, anna = (LabelerClient(service.address, token=token) for token in ("t", "a"))
        client.submit(texts(3), only={"q0": ["bert", "carl"]}, never={"q1": ["anna", "bert"], "q0": ["carl"]})
        assert eventually(lambda: labeling.queue.counts()["open"] == 3)
        assert [one.id for one in anna.lease(n=9)] == ["q2"]
        assert anna.answer("q0", [1, 0])[0] == anna.answer("q1", [1, 0])[0] == "lost"
        assert [one.id for one in client.lease("bert", n=9)] == ["q0"]
        assert [one.id for one in client.lease("carl", n=9)] == ["q1"]
        for one in (client, anna):
            one.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"only": {"q9": ["anna"]}}, r"only: 'q9' is none of the queries"),
        ({"never": {"q9": ["anna"]}}, r"never: 'q9' is none of the queries"),
        ({"only": {"q0": []}}, r"only: nobody is named for 'q0'"),
        ({"only": {"q0": "anna"}}, r"'q0' has a text, expected a list of names"),
        ({"never": {"q0": ["an\nna"]}}, r"never, q0: 'an\\nna' is not a name"),
        (
            {"only": {"q0": ["anna", "bert"]}, "never": {"q0": ["bert"]}},
            r"'q0' wants 2 answers.*; 1 are left",
        ),
        ({"only": {"q0": ["anna", "bert"]}, "gold": {"q0": [1, 0]}}, r"gold: 'q0' is asked of everybody"),
    ],
)
def test_nobody_is_named_in_vain(labeling, settings, words):
    with running(labeling) as service:
        client = LabelerClient(service.address)
        with pytest.raises(ServiceError, match=words):
            client.submit(texts(1, answers_wanted=2), **settings)
        assert labeling.waiting() == len(labeling.queries) == 0
        client.close()


def test_waiting_goes_on_while_the_service_is_away(labeling):
    service = Service(labeling)
    service.start()
    client = LabelerClient(service.address)
    ids = client.submit(texts(3, answers_wanted=2))
    answers = []
    waiter = threading.Thread(target=lambda: answers.extend(client.wait(ids, 60)))
    waiter.start()
    answer_all(labeling, "anna")
    service.stop()
    assert eventually(lambda: labeling.queue.counts()["submitted"] == 3)
    answer_all(labeling, "anna")
    time.sleep(0.3)
    assert answer_all(labeling, "bert") == ["q0", "q1", "q2"]
    service.start()
    waiter.join(60)
    service.stop()
    assert sorted((answer.query_id, answer.annotator) for answer in answers) == [
        (f"q{i}", who) for i in range(3) for who in ("anna", "bert")
    ]
    with pytest.raises(Unreachable, match=r"labeler 127.0.0.1:\d+ cannot be reached"):
        client.wait(["another"], 0.2)
    client.patience_s = 0.2
    with pytest.raises(Unreachable, match=r"cannot be reached"):
        client.submit(texts(1))
    client.close()


def test_a_person_behind_it_is_an_expert(labeling):
    states = np.linspace(-0.05, 0.05, 20, dtype=np.float32).reshape(5, 4)

    def person():
        seen = 0
        while seen < 5:
            for one in labeling.assign("anna", 3):
                rows = [row.split("|")[2] for row in one.view["panels"][0]["text"].splitlines()[2:]]
                labeling.answer(one.id, "anna", int(float(rows[2]) > 0), started_at=0.0)
                seen += 1
            time.sleep(0.01)

    with running(labeling) as service:
        threading.Thread(target=person, daemon=True).start()
        client = LabelerClient(service.address)
        human = HumanOracle(client, context={"env": "CartPole-v1"}, timeout_s=60.0)
        np.testing.assert_array_equal(human.act(states), (states[:, 2] > 0).astype(int))
        assert len(labeling.queries) == 5
        client.close()


def test_who_may_do_what(labeling, known_to):
    access = known_to()
    labeling.submit([pair("p0")])
    assert eventually(lambda: len(labeling.clips.films) == 2)
    labeling.clips.develop()
    with running(labeling, access) as service:
        clients = {
            role: LabelerClient(service.address, token=token)
            for token, role in (
                ("t", "trainer"),
                ("o", "operator"),
                ("a", "annotator"),
                ("x", "wrong"),
                ("", "none"),
            )
        }
        calls = {
            "Submit": lambda c: c.submit(texts(1)),
            "Withdraw": lambda c: c.withdraw(["nothing"], kind="rating"),
            "Answers": lambda c: c.answers(),
            "Stats": lambda c: c.stats(),
            "Lease": lambda c: c.lease("anna"),
            "Answer": lambda c: c.answer("q9", [1, 0], annotator="anna"),
            "Beat": lambda c: c.beat(["q9"], "anna"),
            "Undo": lambda c: c.undo("q9", "anna"),
            "GiveBack": lambda c: c.give_back("q9", "anna"),
        }
        assert set(calls) == set(rpc.ROLES)
        for name, call in calls.items():
            for role, client in clients.items():
                if role in rpc.ROLES[name]:
                    call(client)
                else:
                    word = {"wrong": "not known", "none": "asks for a token"}.get(role, f"{name} is for")
                    with pytest.raises(ServiceError, match=word):
                        call(client)
        assert eventually(lambda: {one.id for one in clients["annotator"].lease(n=9)} == {"p0", "q0"})
        (one,) = clients["annotator"].lease(n=9, kinds=["comparison"])
        assert all(option.rewards is None for option in one.query.options)
        (one,) = clients["trainer"].lease("anna", n=9, kinds=["comparison"])
        assert all(option.rewards is not None for option in one.query.options)
        with pytest.raises(ServiceError, match=r"the token is that of anna, not of bert"):
            clients["annotator"].lease("bert")
        with pytest.raises(ServiceError, match=r"annotator: missing"):
            clients["trainer"].lease()
        refused = [line for line in access.audit.last() if line["did"] == "refused"]
        assert ("anna", "Submit is for trainer") in {(line.get("by"), line["why"]) for line in refused}
        unknown = [line["address"] for line in refused if line["why"] == "a token that is not known"]
        assert len(unknown) == len(calls)
        labeling.queue.ban("anna")
        with pytest.raises(ServiceError, match="anna is banned"):
            clients["annotator"].lease()
        for client in clients.values():
            client.close()


def test_a_port_that_is_taken_is_refused(labeling):
    with running(labeling) as service:
        taken = rpc.start(labeling, service.address)
        with pytest.raises(OracleError, match=r"the port is taken; choose another with --grpc-address"):
            asyncio.run(taken)


def test_annotators_are_held_up_where_they_ask_too_often_and_trainers_are_not(labeling, known_to):
    with running(labeling, known_to(requests_per_s=0.1)) as service:
        trainer, anna = (LabelerClient(service.address, token=token) for token in "ta")
        for _ in range(20):
            trainer.submit(texts(1))
        anna.patience_s = 0.0
        anna.lease()
        with pytest.raises(Unreachable, match="too many requests; wait a moment"):
            anna.lease()
        for client in (trainer, anna):
            client.close()


def test_who_is_revoked_hears_no_more_answers(labeling, known_to):
    access = known_to()
    with running(labeling, access) as service:
        client = LabelerClient(service.address, token=access.token("trainer", "learner"))
        revoked = threading.Timer(0.5, access.revoke, ["learner"])
        revoked.start()
        with pytest.raises(ServiceError, match="not known"):
            client.answers(wait_s=60)
        revoked.join()
        client.close()


def test_what_is_wrong_is_one_line(labeling):
    with running(labeling) as service:
        client = LabelerClient(service.address)
        with pytest.raises(ServiceError, match=r"there is no 'guess'; known: action"):
            client.submit([Query("a", "guess", ["x"])])
        with pytest.raises(ServiceError, match=r"cursor: 'yesterday' is none"):
            client.answers("yesterday")
        client.submit(texts(1))
        assert eventually(lambda: client.lease("anna"))
        for value, words in (([1, 1], "sum to 1"), ("left", "expected")):
            with pytest.raises(ServiceError, match=words):
                client.answer("q0", value, annotator="anna")
        with pytest.raises(ConfigError, match="not of the form HOST:PORT"):
            LabelerClient("nowhere")
        with grpc.insecure_channel(service.address) as channel:
            call = channel.unary_unary("/tutelage.v1.Labeler/Lease")
            with pytest.raises(grpc.RpcError) as error:
                call(b"\xff\xff")
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        client.close()
