"""The labeler service: `python -m benchmarks.labeler [--json] [CASE...]`.

The service runs in a process of its own, with its own store; a trainer has asked 100,000 comparisons of texts
by gRPC. People are scripted, over HTTP on the loopback, each as fast as people are. Seconds are those of the
wall where somebody waits, and of the CPU where that is said: let nothing else run.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import Row, row, run
from services.labeler.access import Access, Audit, secret_of
from services.labeler.client import LabelerClient
from services.labeler.gate import COOKIE
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.queue import Queue
from services.labeler.serve import queue_name
from services.labeler.valkey import Embedded
from tutelage.types import Query

QUEUED = 100_000
PEOPLE = 200
THINK_S = 3.0  # mean time of an answer: what people are said to take is 3 to 5 s (Christiano et al., 2017)
SECONDS = 20.0
BUDGET_MS = 50.0
MACHINE_ANSWERS = 2000
MEMORY = Path("/dev/shm")  # a folder in memory: no disk is waited for
SHM = MEMORY if MEMORY.is_dir() else None


@dataclass(frozen=True)
class Served:
    """A labeler in a process of its own."""

    port: int
    grpc: str  # host:port
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
def served(queued: int = QUEUED, *, within: Path | None = None) -> Iterator[Served]:
    """`tutelage labeler serve` that was asked so many comparisons of texts, its folder in `within`."""
    with tempfile.TemporaryDirectory(dir=within) as name:
        folder = Path(name)
        tokens = folder / "tokens"
        tokens.write_text("sesame trainer trainer\n")
        command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", name]
        options = ["--address", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0", "--token-file", str(tokens)]
        process = subprocess.Popen(
            [*command, *options, "--repeats", "0", "--overlap", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            said = _said(process.stdout)
            submit(said["gRPC"], queued)
            port = int(said["labeler"].rpartition(":")[2])
            yield Served(port, said["gRPC"], folder, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def _said(lines: Iterable[str]) -> dict[str, str]:
    """First and last word of each line until the service has said everything."""
    said: dict[str, str] = {}
    for line in lines:
        if line.startswith("Ctrl-C"):
            break
        said[line.split()[0]] = line.split()[-1]
    return said


def submit(address: str, queued: int) -> None:
    """As a trainer does; returns when all of them can be leased."""
    labeler = LabelerClient(address, token="sesame")
    for start in range(0, queued, 5000):
        labeler.submit([comparison(n) for n in range(start, min(start + 5000, queued))])
    while labeler.stats().depth.get("text", 0) < queued:
        time.sleep(0.1)


def comparison(n: int) -> Query:
    options = [f"the first answer to {n}", f"the second answer to {n}"]
    return Query(f"q{n}", "text", options, {"prompt": f"question {n}"})


class Person:
    """Somebody's browser, by a socket of its own: the cheapest client that there can be, so that the service
    is what is measured."""

    def __init__(self, port: int, cookie: str, csrf: str) -> None:
        self._port = port
        self._head = (
            f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
            f"Cookie: {COOKIE}_{port}={cookie}\r\n"
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


def waited(within: Path | None) -> Iterable[Row]:
    """200 people at the pace of people, with 100,000 questions in the queue."""
    where = "in memory" if within else "on the disk"
    with served(within=within) as at:
        before, people = at.rss_mib(), come_in(at, PEOPLE)
        cpu = at.cpu_s()
        took = 1e3 * np.array(asyncio.run(all_work(people, SECONDS, THINK_S)))
        cpu_ms = 1e3 * (at.cpu_s() - cpu) / len(took)
        pace = f"{PEOPLE} people, {len(took) / SECONDS:.0f} answers/s, store {where}"
        for share, reach in ((50, None), (99, 1.0 if within else None)):
            value = float(np.percentile(took, share))
            yield cost(f"answer + lease, p{share}, {pace}", value, "budget", BUDGET_MS, "ms", reach)
        yield cost(
            "CPU of an answer + lease, service and store",
            *(cpu_ms, "2 cores at this pace", 2e3 * SECONDS / len(took), "ms"),
        )
        for what, was, now in zip(("service", "store"), before, at.rss_mib(), strict=True):
            yield cost(f"memory of the {what}", now, "before the answers", was, "MiB")


def machines() -> Iterable[Row]:
    """Scripted labelers over gRPC, one at a time, and what asking costs; 100,000 questions in the queue."""
    began = time.perf_counter()
    with served(within=SHM) as at:
        asked_s = time.perf_counter() - began
        client = LabelerClient(at.grpc, token="sesame")
        cpu = at.cpu_s()
        took = 1e3 * np.array([_one(client, k) for k in range(MACHINE_ANSWERS)])
        cpu_ms = 1e3 * (at.cpu_s() - cpu) / len(took)
        client.close()
    yield row(
        "labeler",
        "asked by gRPC until they can be leased, the start of the service with it",
        ours=QUEUED / asked_s,
        against="one a millisecond",
        reference=1000.0,
        unit="queries/s",
    )
    for share, reach in ((50, None), (99, 1.0)):
        value = float(np.percentile(took, share))
        yield cost(f"answer + lease by gRPC, p{share}", value, "budget", BUDGET_MS, "ms", reach)
    yield cost("CPU of an answer + lease by gRPC, service and store", cpu_ms, "budget", BUDGET_MS, "ms")


def _one(client: LabelerClient, k: int) -> float:
    """Seconds of a lease and an answer."""
    who, began = f"machine-{k % PEOPLE}", time.perf_counter()
    (leased,) = client.lease(who)
    assert client.answer(leased.id, [1, 0], annotator=who)[0] == "accepted"
    return time.perf_counter() - began


def core() -> Iterable[Row]:
    """The labeling itself, in this process: what HTTP and gRPC stand on."""
    with tempfile.TemporaryDirectory(dir=SHM) as name, Embedded(Path(name) / "store") as server:
        folder = Path(name)
        queue, ledger = Queue(server.client(), "bench"), Ledger(folder / "answers.jsonl")
        labeling = Labeling(queue, ledger, _NoClips(), folder, secret=b"s" * 32, repeats=0.0, overlap=0.0)
        for start in range(0, QUEUED, 5000):
            labeling.submit([comparison(n) for n in range(start, start + 5000)])
        labeling.run_once()
        store = psutil.Process(server.pid())
        spent, of_store, took = time.process_time(), sum(store.cpu_times()[:2]), list[float]()
        for k in range(MACHINE_ANSWERS):
            who, began = f"machine-{k % PEOPLE}", time.perf_counter()
            (one,) = labeling.assign(who)
            labeling.answer(one.id, who, [1, 0], started_at=0.0)
            took.append(1e3 * (time.perf_counter() - began))
        cpu_ms = 1e3 * (time.process_time() - spent) / MACHINE_ANSWERS
        store_ms = 1e3 * (sum(store.cpu_times()[:2]) - of_store) / MACHINE_ANSWERS
        memory = store.memory_info().rss / 2**20
        labeling.run_once()
        labeling.stop()
    for share in (50, 99):
        value = float(np.percentile(took, share))
        yield cost(f"answer + lease in the process, p{share}", value, "budget", BUDGET_MS, "ms")
    yield cost("CPU of an answer + lease, labeling", cpu_ms, "its store", store_ms, "ms")
    yield cost("memory of a store with 100,000 questions", memory, "a GiB", 1024.0, "MiB", 1.0)


class _NoClips:
    """Texts need none."""

    def film(self, footage: Any) -> Any:
        raise NotImplementedError

    def path(self, name: str) -> None:
        return None


def cost(
    case: str, ours: float, against: str, reference: float, unit: str, reach: float | None = None
) -> Row:
    return row(
        "labeler",
        case,
        ours=ours,
        against=against,
        reference=reference,
        unit=unit,
        reach=reach,
        smaller_is_better=True,
    )


if __name__ == "__main__":
    run(
        {"load": partial(waited, SHM), "disk": partial(waited, None), "machines": machines, "core": core},
    )
