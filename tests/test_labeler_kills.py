"""The labeler killed while it is asked and answered over gRPC: nothing is lost, nothing counts twice."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager

import redis

from services.labeler.client import LabelerClient
from services.labeler.ledger import Ledger
from services.labeler.queue import Queue
from services.labeler.serve import queue_name, secret_of
from services.labeler.valkey import Embedded
from tests.labelers import wait_for
from tests.test_labeling import texts

N, WORKERS = 1000, 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(folder, port):
    command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", str(folder)]
    command += ["--address", "127.0.0.1:0", "--grpc-address", f"127.0.0.1:{port}", "--access", "off"]
    command += ["--repeats", "0", "--overlap", "0", "--gold", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and not line.startswith("Ctrl-C"):
        pass
    assert line, "the labeler does not start"
    return process


@contextmanager
def service(folder, port):
    """The process in a list, so that a test may put another one there."""
    processes = [serve(folder, port)]
    try:
        yield processes
    finally:
        processes[-1].terminate()
        processes[-1].wait(60)


def patient(port):
    return LabelerClient(f"127.0.0.1:{port}", patience_s=120)


def work(port, who, outcomes, over):
    client = patient(port)
    while not over.is_set():
        leased = client.lease(who, n=4)
        if not leased:
            over.wait(0.05)
        for one in leased:
            outcomes[client.answer(one.id, [1, 0], annotator=who)[0]] += 1


def test_a_thousand_answers_of_eight_while_service_and_store_are_killed(tmp_path):
    folder, port = tmp_path / "labeler", free_port()
    outcomes: list[Counter[str]] = [Counter() for _ in range(WORKERS)]
    over = threading.Event()
    with service(folder, port) as processes:
        workers = [
            threading.Thread(target=work, args=(port, f"annotator-{k}", outcomes[k], over))
            for k in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        trainer, queries = patient(port), texts(N, answers_wanted=1)
        heard = {}

        def ask():
            for start in range(0, N, 50):
                trainer.submit(queries[start : start + 50])
            heard.update({a.query_id: a for a in trainer.wait([q.id for q in queries], 240)})

        asking = threading.Thread(target=ask)
        asking.start()
        ledger = Ledger(folder / "answers.jsonl")
        wait_for(lambda: len(list(ledger)) > N // 10)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait(60)
        processes.append(serve(folder, port))
        wait_for(lambda: len(list(ledger)) > N // 3)
        os.kill(Embedded(folder / "store").pid(), signal.SIGKILL)
        asking.join(300)
        over.set()
        for worker in workers:
            worker.join(60)
        assert set(heard) == {query.id for query in queries}
        store = Embedded(folder / "store")
        queue = Queue(redis.Redis.from_url(store.url()), queue_name(folder, secret_of(folder)))
        wait_for(lambda: len(list(ledger)) == N)
        events = list(ledger)
        assert events == queue.events(limit=2 * N)[0]
        trainer.close()
    assert Counter(event.question for event in events) == {query.id: 1 for query in queries}
    total = sum(outcomes, Counter())
    assert total["accepted"] + total["duplicate"] == N
    assert total["lost"] == total["unknown"] == 0
