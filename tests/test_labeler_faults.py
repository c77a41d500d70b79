"""Whatever goes wrong, each question ends with exactly the answers wanted, and the ledger has them."""

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
import redis

from services.labeler.access import Role, secret_of
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.queue import Queue
from services.labeler.serve import invite_command, queue_name
from services.labeler.valkey import Embedded
from tests.labelers import Page, page, process, program, served, texts, wait_for


@pytest.fixture(autouse=True)
def _closed_pages():
    yield
    Page.close_all()


def answers_of(queue):
    return Counter(event.question for event in queue.events(limit=5000)[0] if event.type == "answer")


def ask(running, n, **settings):
    running.labeling.submit(texts(n, **settings))
    running.labeling.run_once()


def test_a_double_click_is_one_answer(tmp_path):
    with served(tmp_path) as running:
        ask(running, 1)
        anna = page(running)
        anna.do("lease", n=1)
        with ThreadPoolExecutor(8) as threads:
            sent = [threads.submit(anna.do, "answer", question="q0", value=[1, 0]) for _ in range(16)]
        assert Counter(one.result()["outcome"] for one in sent) == {"accepted": 1, "duplicate": 15}
        assert {one.result()["answered"] for one in sent} == {1}
        assert answers_of(running.labeling.queue) == {"q0": 1}


def test_two_tabs_of_one_annotator_have_the_same_questions_and_give_one_answer(tmp_path):
    with served(tmp_path) as running:
        ask(running, 5)
        one = page(running)
        other = Page(running.url, cookies=one.cookies).load()
        leased = one.do("lease", n=3)["questions"]
        assert [q["id"] for q in other.do("lease", n=3)["questions"]] == [q["id"] for q in leased]
        assert [q["view"] for q in other.do("lease", n=3)["questions"]] == [q["view"] for q in leased]
        for question in leased:
            first = one.do("answer", question=question["id"], value=[1, 0])
            second = other.do("answer", question=question["id"], value=[0, 1])
            assert (first["outcome"], second["outcome"]) == ("accepted", "duplicate")
        assert set(answers_of(running.labeling.queue).values()) == {1}


def test_a_late_answer_after_the_question_went_to_somebody_else_does_not_count(tmp_path):
    with served(tmp_path, lease_s=0.2) as running:
        ask(running, 1)
        anna, bert = page(running), page(running, "bert")
        assert anna.do("lease", n=1)["questions"]
        wait_for(lambda: bert.do("lease", n=1)["questions"])  # anna is gone
        late = anna.do("answer", question="q0", value=[1, 0])["outcome"]
        assert bert.do("answer", question="q0", value=[0, 1])["outcome"] == "accepted"
        assert late == "lost" or running.labeling.queue.counts()["expired"] > 1  # bert was slow as well
        assert anna.do("answer", question="q0", value=[1, 0])["outcome"] == "lost"
        assert answers_of(running.labeling.queue) == {"q0": 1}


def test_a_page_that_beats_keeps_its_questions(tmp_path):
    with served(tmp_path, lease_s=1.0) as running:
        ask(running, 2)
        anna, bert = page(running), page(running, "bert")
        held = [question["id"] for question in anna.do("lease", n=2)["questions"]]
        for _ in range(8):
            assert anna.do("beat", questions=held)["kept"] == held
            assert bert.do("lease", n=1)["questions"] == []
            time.sleep(0.2)


def insist(call):
    """Until the service says something: pages try again, too."""

    def tried():
        with suppress(httpx.TransportError):
            answer = call()
            if answer.status_code == 200:
                return answer
            assert answer.status_code == 503, answer.text
        return None

    return wait_for(tried).json()


def answer_all(client, outcomes, done):
    while True:
        leased = insist(lambda: client.post("/api/lease", json={"n": 3}))["questions"]
        if not leased:
            return
        for question in leased:
            said = {"question": question["id"], "value": [1, 0]}
            outcomes[insist(lambda said=said: client.post("/api/answer", json=said))["outcome"]] += 1
            done.release()


def eight(url, invite):
    """Eight people, who have come in."""
    return [Page(url).come_in(invite(f"annotator-{k}")) for k in range(8)]


@pytest.mark.slow  # test_labeler_kills has the same over gRPC, and kills the store too
def test_a_thousand_answers_of_eight_survive_the_death_of_the_service(tmp_path):
    outcomes, done = Counter(), threading.Semaphore(0)

    def invite(name):
        link = invite_command(tmp_path, "", "annotator", uses=1, name=name, machine=False)
        return link.rpartition("/")[2]

    with process(tmp_path, 1000) as (server, url):
        people = eight(url, invite)
        threads = [threading.Thread(target=answer_all, args=(one, outcomes, done)) for one in people]
        for thread in threads:
            thread.start()
        for _ in range(200):
            assert done.acquire(timeout=120)
        server.kill()
        server.wait(60)
    with process(tmp_path, 1000, url.partition("//")[2]) as (server, again):
        assert again == url
        for thread in threads:
            thread.join(240)
        server.terminate()
        assert server.wait(60) == 0
    with Embedded(tmp_path / "store") as store:
        queue = Queue(store.client(), queue_name(tmp_path, secret_of(tmp_path)))
        assert answers_of(queue) == {f"q{i}": 1 for i in range(1000)}
        assert list(Ledger(tmp_path / "answers.jsonl")) == queue.events(limit=2000)[0]
    assert outcomes["accepted"] + outcomes["duplicate"] >= 1000
    assert not outcomes["unknown"]


def test_answers_survive_the_death_of_the_store_while_it_serves(tmp_path):
    outcomes, done = Counter(), threading.Semaphore(0)
    with served(tmp_path) as running:
        ask(running, 300)
        people = eight(running.url, lambda name: running.access.invite("annotator", name=name))
        threads = [threading.Thread(target=answer_all, args=(one, outcomes, done)) for one in people]
        for thread in threads:
            thread.start()
        for _ in range(100):
            assert done.acquire(timeout=120)
        os.kill(Embedded(tmp_path / "store").pid(), signal.SIGKILL)
        for thread in threads:
            thread.join(240)
        queue = running.labeling.queue
        assert answers_of(queue) == {f"q{i}": 1 for i in range(300)}
        events = queue.events(limit=2000)[0]
    assert list(Ledger(tmp_path / "answers.jsonl")) == events


def test_what_the_store_has_lost_is_there_again_before_anybody_can_answer(tmp_path, monkeypatch):
    with served(tmp_path) as running:
        ask(running, 3)
        anna = page(running)
        for question in anna.do("lease", n=2)["questions"]:
            anna.do("answer", question=question["id"], value=[1, 0])
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr(Labeling, "start", lambda _: None)
    with served(tmp_path) as running:
        assert answers_of(running.labeling.queue) == {"q0": 1, "q1": 1}


def test_a_full_disk_keeps_answers_in_the_queue_until_the_ledger_has_room(tmp_path):
    with process(tmp_path, 60) as (server, url):
        roles: tuple[Role, ...] = ("annotator", "operator")
        links = [
            invite_command(tmp_path, "", role, uses=1, name=name, machine=False)
            for role, name in zip(roles, ("anna", "boss"), strict=True)
        ]
        assert all(link.startswith(f"{url}/invite/") for link in links)  # where it listens
        anna, boss = (Page(url).come_in(link.rpartition("/")[2]) for link in links)
        server.send_signal(signal.SIGUSR1)
        while leased := anna.do("lease", n=10)["questions"]:
            for question in leased:
                assert anna.do("answer", question=question["id"], value=[1, 0])["outcome"] == "accepted"
        wait_for(lambda: "answers.jsonl cannot be written" in boss.get("/api/operator/statistics").text)
        assert len(list(Ledger(tmp_path / "answers.jsonl"))) < 60
        server.send_signal(signal.SIGUSR2)
        wait_for(lambda: len(list(Ledger(tmp_path / "answers.jsonl"))) == 60)
        queue = Queue(Embedded(tmp_path / "store").client(), queue_name(tmp_path, secret_of(tmp_path)))
        assert list(Ledger(tmp_path / "answers.jsonl")) == queue.events()[0]
        server.terminate()
        assert server.wait(60) == 0


def test_clips_that_are_long_in_filming_hold_up_nothing_else(tmp_path, monkeypatch):
    begun, over = threading.Semaphore(0), threading.Event()

    def path(name):
        begun.release()
        over.wait(120)

    with served(tmp_path) as running:
        ask(running, 1)
        monkeypatch.setattr(running.labeling.clips, "path", path)
        anna, bert = page(running), page(running, "bert")
        with ThreadPoolExecutor(40) as threads:
            waiting = [threads.submit(anna.get, f"/clips/{n}") for n in range(40)]
            assert begun.acquire(timeout=120)
            os.kill(Embedded(tmp_path / "store").pid(), signal.SIGKILL)
            try:
                assert insist(lambda: bert.post("/api/lease", json={}))["questions"]
            finally:
                over.set()
            assert {one.result().status_code for one in waiting} == {404}


def test_sigterm_ends_it_though_pages_are_listening(tmp_path):
    command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", str(tmp_path)]
    with program([*command, "--address", "127.0.0.1:0", "--access", "off"]) as (server, url):
        you = Page(url).load()
        heard = threading.Semaphore(0)

        def listen(path):
            with you.stream("GET", path) as stream:
                for _ in stream.iter_lines():
                    heard.release()

        with ThreadPoolExecutor(3) as threads:
            streams = [
                threads.submit(listen, path)
                for path in ("/api/events", "/api/events", "/api/operator/events")
            ]
            for _ in range(6):
                assert heard.acquire(timeout=120)
            server.terminate()
            said, errors = server.communicate(timeout=60)
            for stream in streams:
                stream.result(60)  # it ended as a stream should
    assert server.returncode == 0
    assert said.splitlines()[-1] == "stopping"
    assert errors == ""  # nothing had to be cut off
    with pytest.raises(redis.ConnectionError):
        Embedded(tmp_path / "store").client().ping()
