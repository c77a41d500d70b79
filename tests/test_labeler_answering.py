"""Scripted labelers in processes of their own answer over gRPC: each in its way, and each question once."""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from expert_oracle.synthetic import Adversary
from services.labeler.answering import Habits, Worker, scripted, worker
from services.labeler.client import LabelerClient
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.messages import without_rewards
from services.labeler.queue import Queue
from services.labeler.valkey import Embedded
from services.overrides import load_config
from services.preferences import LabelerSpec, Preferences
from services.settings import build_config
from tests.labelers import served
from tests.test_judge import Endpoint, longest
from tests.test_labeler_rpc import eventually, running
from tests.test_labeling import Camera, pair, texts
from tutelage.errors import ConfigError, ServiceError
from tutelage.types import Answer, Query


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Embedded(tmp_path_factory.mktemp("store")) as embedded:
        yield embedded


class QuickCamera(Camera):
    def film(self, footage):
        super().film(footage)
        self.develop()
        return self.films[-1][1]


@pytest.fixture
def labeling(server, tmp_path, request):
    queue = Queue(server.client(), request.node.name[:60], lease_s=getattr(request, "param", 0.6))
    made = Labeling(
        *(queue, Ledger(tmp_path / "answers.jsonl"), QuickCamera(), tmp_path),
        **{"secret": b"s" * 32, "repeats": 0.0, "overlap": 0.0, "gold": 0.0},
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def service(labeling):
    with running(labeling) as service:
        yield service


def answering(service, *words):
    command = [sys.executable, "-m", "services.cli", "labeler", "answer", service.address, *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def ask(labeling, queries):
    before = labeling.queue.counts()["open"]
    labeling.submit(queries)
    assert eventually(lambda: labeling.queue.counts()["open"] == before + len(queries))


def values(labeling):
    return {answer.query_id: answer.value.tolist() for _, answer in labeling.answers()[0]}


def test_a_teacher_in_a_process_answers_all_and_ends(labeling, service):
    ask(labeling, [pair(f"p{i}") for i in range(10)])
    assert outcome(answering(service, "oracle", "until_empty=true", "annotator=tess")) == {"accepted": 10}
    assert values(labeling) == {f"p{i}": [0, 1] for i in range(10)}
    assert {answer.annotator for _, answer in labeling.answers()[0]} == {"tess"}


def test_several_at_once_answer_each_question_as_often_as_wanted_though_one_is_killed(labeling, service):
    ask(labeling, [pair(f"p{i}", answers_wanted=2) for i in range(30)])
    killed = answering(service, "stochastic", "delay_s=0.05")
    others = [
        answering(service, word, *settings, "seed=3")
        for word, *settings in (("oracle",), ("adversarial",), ("mistake", "away=0.2", "away_s=0.7"))
    ]
    assert eventually(lambda: any(event.annotator == "stochastic" for event in labeling.ledger))
    killed.kill()
    killed.communicate()
    assert eventually(lambda: labeling.queue.counts()["answered"] == 60)
    for process in others:
        process.send_signal(signal.SIGTERM)
    counted = [outcome(process) for process in others]
    events = list(labeling.ledger)
    assert len({(event.question, event.annotator) for event in events}) == len(events) == 60
    of_killed = sum(event.annotator == "stochastic" for event in events)
    assert sum(one.get("accepted", 0) for one in counted) + of_killed == 60
    by = {who: [e.body["value"] for e in events if e.annotator == who] for who in ("oracle", "adversarial")}
    assert all(value == [0, 1] for value in by["oracle"])
    assert all(value == [1, 0] for value in by["adversarial"])


def test_an_expert_says_what_it_would_do(labeling, service):
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.1, 0.1, (6, 4)).astype(np.float32)
    ask(labeling, [Query(f"s{i}", "action", [s], {"env": "CartPole-v1"}) for i, s in enumerate(states)])
    ask(labeling, texts(2))
    one = worker(service.address, "scripted:cartpole", {"until_empty": True})
    assert one.work() == {"accepted": 6}
    one.client.close()
    from expert_oracle.loading import OracleSpec

    expected = OracleSpec("scripted:cartpole").build().act(states)
    assert values(labeling) == {f"s{i}": int(action) for i, action in enumerate(expected)}


def test_a_judge_compares_texts_and_its_reason_is_kept(labeling, service):
    ask(labeling, [Query("t", "text", ["short", "much longer"], {"prompt": "Say more."})])
    with Endpoint(longest) as endpoint:
        one = worker(service.address, "judge", {"endpoint": endpoint.url, "model": "m", "answers": 1})
        assert one.work() == {"accepted": 1}
        one.client.close()
    assert values(labeling) == {"t": [0, 1]}
    assert eventually(lambda: list(labeling.ledger))
    assert "has more" in next(iter(labeling.ledger)).body["reason"]


def test_what_teachers_cannot_judge_is_left_to_people(labeling, service):
    ask(labeling, [without_rewards(pair("b"))])
    for name in ("ann", "ben", "cem"):
        one = worker(service.address, "oracle", {"annotator": name})
        with pytest.raises(ConfigError, match=r"these questions carry no rewards.*; people have to answer"):
            one.work()
        one.client.close()
    assert (labeling.queue.counts()["open"], labeling.queue.counts()["dead"]) == (1, 0)


def test_a_question_that_is_none_for_a_machine_is_left_to_others(labeling, service):
    class Puzzled:
        def label(self, queries):
            raise ValueError("what is this?")

    ask(labeling, texts(1))
    client = LabelerClient(service.address)
    for name in ("ann", "ben", "cem"):
        one = Worker(client, Puzzled(), ("text",), Habits(name, until_empty=True))
        assert one.work() == {"given back": 1}
    client.close()
    assert (labeling.queue.counts()["open"], labeling.queue.counts()["dead"]) == (1, 0)


@pytest.mark.parametrize("labeling", [4.0], indirect=True)
def test_a_slow_one_is_slow_and_keeps_what_it_works_on(labeling, service):
    ask(labeling, [pair(f"p{i}") for i in range(8)])
    one = worker(service.address, "equal", {"delay_s": 0.7, "n": 8, "until_empty": True})
    assert one.work()["accepted"] == 8  # together longer than a lease
    assert labeling.queue.counts()["expired"] == 0
    one.client.close()


class Ponders:
    """Judges nothing until what it holds has been kept for it, or for too long."""

    def __init__(self, kept):
        self.kept = kept

    def label(self, queries):
        assert self.kept.wait(10)
        return [Answer(query.id, np.array([0, 1], np.float32), "p", 0.0, 0.0) for query in queries]


@pytest.mark.parametrize("labeling", [2.0], indirect=True)
def test_what_is_held_is_kept_while_one_answer_takes_long(labeling, service, monkeypatch):
    kept, beat, beaten = threading.Event(), labeling.beat, []

    def count(annotator, ids):
        beaten.append((annotator, sorted(ids)))
        if len(beaten) == 3:  # a lease long
            kept.set()
        return beat(annotator, ids)

    monkeypatch.setattr(labeling, "beat", count)
    ask(labeling, texts(3))
    client = LabelerClient(service.address)
    one = Worker(client, Ponders(kept), ("text",), Habits("paul", until_empty=True))
    assert one.work() == {"accepted": 3}
    client.close()
    assert beaten[:3] == [("paul", ["q0", "q1", "q2"])] * 3


def test_what_went_to_somebody_else_is_not_judged(labeling, service):
    judged = []

    class Judge:
        def label(self, queries):
            judged.extend(query.id for query in queries)
            if len(judged) == 1:
                labeling.give_back("q1", "paul")
                assert eventually(lambda: "q1" not in held)
            return [Answer(query.id, np.array([0, 1], np.float32), "p", 0.0, 0.0) for query in queries]

    ask(labeling, texts(2))
    client = LabelerClient(service.address)
    one = Worker(client, Judge(), ("text",), Habits("paul", until_empty=True))
    leased = client.lease("paul", 2)
    with one._keeping(leased) as held:
        assert not one._answer_all(leased, held, np.random.default_rng(0))
    client.close()
    assert judged == ["q0"]


def test_the_address_of_the_page_is_told_from_that_of_grpc(tmp_path):
    with pytest.raises(ConfigError, match=r"not of the form HOST:PORT; that of its gRPC, not of the page"):
        LabelerClient("http://127.0.0.1:8080")
    with served(tmp_path) as running:
        client = LabelerClient(running.url.removeprefix("http://"))
        with pytest.raises(ServiceError, match=r"that is its page; give the address of its gRPC"):
            client.stats()
        client.close()


def test_a_run_that_shows_no_token_is_told_before_it_begins(tmp_path):
    with served(tmp_path, grpc_address="127.0.0.1:0") as running:
        spec = LabelerSpec(f"grpc://{running.grpc_address}")
        settings = build_config(load_config("preference-cartpole")).reward_settings()
        assert settings is not None
        with pytest.raises(ServiceError, match=r"asks for a token.*feedback.arguments.token_file=FILE"):
            Preferences(settings, (Box(-1, 1, (4,)), Discrete(2)), tmp_path / "run", spec, 0)


def test_the_words():
    labeler, kinds = scripted("adversarial", {"mistake": 0.0})
    assert kinds == ("comparison",)
    assert isinstance(labeler, Adversary)
    tie, certain = labeler.labeler.label([pair(), pair()])
    del tie
    assert certain.value.tolist() == [0, 1]
    for word, arguments, line in (
        ("orakle", {}, r"there is no labeler 'orakle'; did you mean 'oracle'"),
        ("oracle", {"mistakes": 1}, r"labeler oracle: unknown setting 'mistakes'; did you mean 'mistake'"),
        ("mistake", {"delay": 1}, r"labeler mistake: unknown setting 'delay'; did you mean 'delay_s'"),
        ("judge", {}, r"labeler judge: it needs endpoint=URL model=NAME"),
        ("human", {}, r"people answer on the page"),
        ("oracle", {"away": 2}, r"away=2 is not from 0 to 1"),
        ("oracle", {"n": 0}, r"n=0 is not from 1 to 256"),
        ("oracle", {"delay_s": -1}, r"delay_s=-1 is not 0 or more"),
    ):
        with pytest.raises(ConfigError, match=line):
            worker("127.0.0.1:1", word, arguments)
    one = worker("127.0.0.1:1", "mistake", {"seed": 3, "token": "t"})
    assert isinstance(one, Worker)
    assert (one.habits.seed, one.habits.annotator) == (3, "")
    assert isinstance(one.client, LabelerClient)
