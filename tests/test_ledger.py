"""The ledger of answers, and that it and the queue agree whatever is killed."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import redis

from services.labeler.ledger import Ledger
from services.labeler.queue import Event, Question, Queue
from services.labeler.valkey import Embedded
from tutelage.errors import ServiceError

FOLLOW = """
import sys, time, redis
from services.labeler.ledger import Ledger
from services.labeler.queue import Queue
ledger, queue = Ledger(sys.argv[1]), Queue(redis.Redis.from_url(sys.argv[2]), "q")
print("ready", flush=True)
while True:
    ledger.follow(queue)
    time.sleep(0.001)
"""


def event(n, **settings):
    return Event(
        f"{n}-0", **{"type": "answer", "question": f"q{n}", "kind": "rating", "annotator": "a", **settings}
    )


def test_what_was_appended_is_read(tmp_path):
    ledger = Ledger(tmp_path / "run" / "answers.jsonl")
    assert (list(ledger), ledger.cursor()) == ([], "0")
    events = [event(1, body={"ratings": [1, -1]}), event(2), event(3, type="undo", undoes="1-0")]
    ledger.append(events[:2])
    ledger.append(events[2:])
    assert list(Ledger(ledger.path)) == events
    assert ledger.cursor() == "3-0"
    assert ledger.answers() == [events[1]]


@pytest.mark.parametrize(
    "torn", [b'{"id": "2', b'{"id": "2-0", "type": "answer", "question": "' + b"x" * 200_000]
)
def test_a_line_that_a_crash_cut_short_is_written_again(tmp_path, torn):
    ledger = Ledger(tmp_path / "answers.jsonl")
    ledger.append([event(1)])
    with ledger.path.open("ab") as file:
        file.write(torn)
    assert (list(ledger), ledger.cursor()) == ([event(1)], "1-0")
    ledger.append([event(2)])
    assert list(ledger) == [event(1), event(2)]


def test_a_damaged_line_is_named(tmp_path):
    ledger = Ledger(tmp_path / "answers.jsonl")
    ledger.append([event(1)])
    ledger.path.write_bytes(b"{}\n" + ledger.path.read_bytes())
    with pytest.raises(ServiceError, match=r"answers\.jsonl, line 1: "):
        list(ledger)


@pytest.mark.parametrize("more", [3, 49])  # within a buffer, and beyond it
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, more):
    ledger, full = Ledger(tmp_path / "answers.jsonl"), tmp_path / "full"
    ledger.append([event(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        with pytest.raises(ServiceError, match=r"answers\.jsonl cannot be written: File too large"):
            ledger.append([event(n) for n in range(2, 2 + more)])
        assert list(ledger) == [event(1)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(ServiceError, match=r"full cannot be written: File too large"):
            Ledger(full).append([event(1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ledger.append([event(2)])
    assert list(ledger) == [event(1), event(2)]
    assert list(Ledger(full)) == []


def test_a_thousand_answers_of_eight_survive_the_death_of_the_store_and_of_the_ledgers_writer(tmp_path):
    """Everybody tries again until told what became of an answer; queue and ledger then agree."""
    server = Embedded(tmp_path / "store")
    server.start()
    Queue(server.client(), "q").submit([Question(f"q{i}", "comparison") for i in range(1000)])
    path, url = tmp_path / "answers.jsonl", server.url()
    outcomes: Counter[str] = Counter()

    def insist(call):
        while True:
            try:
                return call()
            except (redis.RedisError, OSError):
                time.sleep(0.02)

    def work(who):
        queue = insist(lambda: Queue(redis.Redis.from_url(url), "q"))
        while leases := insist(lambda: queue.lease(who, n=3)):
            for lease in leases:
                outcomes[insist(lambda lease=lease: queue.answer(lease.id, who, {"by": who}))[0]] += 1

    threads = [threading.Thread(target=work, args=(f"annotator-{k}",)) for k in range(8)]
    with following(path, url) as writer:
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.kill(server.pid(), signal.SIGKILL)
        server.stop()
        server.start()
        time.sleep(0.2)
        writer.kill()
    for thread in threads:
        thread.join(60)
    queue = Queue(server.client(), "q")
    Ledger(path).follow(queue)
    events = list(Ledger(path))
    assert Counter(event.question for event in events) == {f"q{i}": 1 for i in range(1000)}
    assert events == queue.events(limit=2000)[0]
    assert outcomes["accepted"] + outcomes["duplicate"] == 1000
    assert not outcomes["lost"]
    server.stop()


def test_two_threads_that_follow_write_each_event_once(tmp_path):
    """As an export does beside the labeler's own work."""
    ledger, over = Ledger(tmp_path / "answers.jsonl"), threading.Event()
    with Embedded(tmp_path / "store") as server:
        queue = Queue(server.client(), "q")

        def work():
            while not over.is_set():
                ledger.follow(queue)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        queue.submit([Question(f"q{i}", "rating") for i in range(100)])
        for i in range(100):
            queue.answer(f"q{i}", "anna", {})
        over.set()
        for thread in threads:
            thread.join()
        ledger.follow(queue)
        assert list(ledger) == queue.events()[0]


def following(path, url):
    writer = subprocess.Popen([sys.executable, "-c", FOLLOW, path, url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer
