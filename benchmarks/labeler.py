"""The labeler service: `python -m benchmarks.labeler [--json] [CASE...]`.

The service runs in a process of its own, with its own store on the disk; 100,000 comparisons of texts are
queued. People are scripted, over HTTP on the loopback. Seconds are those of the wall where somebody waits,
and of the CPU where that is said: let nothing else run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import Row, row, run
from services.labeler.access import Access, Audit, secret_of
from services.labeler.queue import Question, Queue
from services.labeler.serve import queue_name
from services.labeler.valkey import Embedded

QUEUED = 100_000
PEOPLE = 200
THINK_S = 2.0  # mean time that a person takes for an answer
SECONDS = 20.0
BUDGET_MS = 50.0
BEAT_S = 20.0


@dataclass(frozen=True)
class Served:
    """A labeler in a process of its own."""

    port: int
    folder: Path
    process: psutil.Process

    @property
    def store(self) -> psutil.Process:
        return psutil.Process(Embedded(self.folder / "store").pid())

    def cpu_s(self) -> float:
        """Of the service and its store."""
        return sum(sum(process.cpu_times()[:2]) for process in (self.process, self.store))

    def rss_mib(self) -> tuple[float, float]:
        return (self.process.memory_info().rss / 2**20, self.store.memory_info().rss / 2**20)


@contextlib.contextmanager
def served(queued: int = QUEUED) -> Iterator[Served]:
    """`tutelage labeler serve` with so many comparisons of texts in its queue."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", folder]
        process = subprocess.Popen(
            [*command, "--address", "127.0.0.1:0", "--repeats", "0", "--overlap", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1].rpartition(":")[2])
            fill(Path(folder), queued)
            yield Served(port, Path(folder), psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def fill(folder: Path, queued: int) -> None:
    store = Embedded(folder / "store").client()
    queue = Queue(store, queue_name(folder, secret_of(folder)))
    for start in range(0, queued, 2000):
        queue.submit([comparison(n) for n in range(start, min(start + 2000, queued))])


def comparison(n: int) -> Question:
    from expert_oracle import feedback
    from tutelage.types import Query

    options = [f"the first answer to {n}", f"the second answer to {n}"]
    query = Query(f"q{n}", "text", options, {"prompt": f"question {n}"})
    return Question(query.id, "text", feedback.kind("text").body(query, []))


class Person:
    """Somebody's browser, by a socket of its own: the cheapest client that there can be, so that the service
    is what is measured."""

    def __init__(self, port: int, cookie: str, csrf: str) -> None:
        self._port = port
        self._head = (
            f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
            f"Cookie: tutelage_session={cookie}\r\n"
            f"X-Tutelage-CSRF: {csrf}\r\nContent-Type: application/json\r\n"
        )

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, said: Any) -> Any:
        body = json.dumps(said)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        answer = json.loads(await self._reader.readexactly(length))
        assert head.startswith("http/1.1 200"), answer
        return answer

    async def work(self, until: float, think_s: float, took: list[float]) -> None:
        """Answer what is leased, with three at hand as the page has; an entry for an answer and a lease."""
        rng = random.Random(id(self))
        held = (await self.post("/api/lease", {"n": 3}))["questions"]
        await asyncio.sleep(rng.random() * think_s)
        while time.perf_counter() < until:
            shown_at = time.time()
            if think_s:
                await asyncio.sleep(rng.expovariate(1 / think_s))
            began = time.perf_counter()
            said = {"question": held[0]["id"], "value": [1, 0], "shown_at": shown_at}
            outcome = (await self.post("/api/answer", said))["outcome"]
            assert outcome == "accepted", outcome
            held = (await self.post("/api/lease", {"n": 3}))["questions"]
            took.append(time.perf_counter() - began)
        self._writer.close()


def come_in(at: Served, n: int) -> list[Person]:
    """People with sessions, without the calls that give one: those are not measured."""
    secret = secret_of(at.folder)
    name = queue_name(at.folder, secret)
    audit = Audit(at.folder / "audit.jsonl")
    access = Access(Embedded(at.folder / "store").client(), name, secret=secret, audit=audit)
    people = []
    for k in range(n):
        session, _ = access.enter(access.invite("annotator", name=f"person-{k}"), "", address="here")
        people.append(Person(at.port, session, access.csrf(session)))
    return people


async def all_work(people: list[Person], seconds: float, think_s: float) -> list[float]:
    took: list[float] = []
    for person in people:
        await person.connect()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(person.work(until, think_s, took) for person in people))
    return took


def load() -> Iterable[Row]:
    """200 people at the pace of people, and as fast as it goes; both with 100,000 questions in the queue."""
    with served() as at:
        before = at.rss_mib()
        cpu = at.cpu_s()
        took = 1e3 * np.array(asyncio.run(all_work(come_in(at, PEOPLE), SECONDS, THINK_S)))
        cpu_ms = 1e3 * (at.cpu_s() - cpu) / len(took)
        p50, p99 = np.percentile(took, [50, 99])
        pace = f"{PEOPLE} people, {len(took) / SECONDS:.0f} answers/s"
        for case, value in ((f"answer + lease, p50, {pace}", p50), (f"answer + lease, p99, {pace}", p99)):
            yield row(
                "labeler",
                case,
                ours=value,
                against="budget",
                reference=BUDGET_MS,
                unit="ms",
                reach=1.0,
                smaller_is_better=True,
            )
        yield row(
            "labeler",
            "answer + lease, CPU of service and store",
            ours=cpu_ms,
            against="2 cores at this pace",
            reference=2e3 * SECONDS / len(took),
            unit="ms",
            smaller_is_better=True,
        )
        took = 1e3 * np.array(asyncio.run(all_work(come_in(at, 8), SECONDS / 2, 0.0)))
        yield row(
            "labeler",
            f"8 people without a pause, p99 {np.percentile(took, 99):.3g} ms",
            ours=len(took) / (SECONDS / 2),
            against=f"{PEOPLE} people at their pace",
            reference=PEOPLE / THINK_S,
            unit="answers/s",
        )
        for what, was, now in zip(("service", "store"), before, at.rss_mib(), strict=True):
            yield row(
                "labeler",
                f"memory of the {what}",
                ours=now,
                against="before the answers",
                reference=was,
                unit="MiB",
                smaller_is_better=True,
            )


if __name__ == "__main__":
    run({"load": load})
