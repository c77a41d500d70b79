"""For tests: a labeler as it is served, in a thread or a process of its own, and people who come in."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx

from services.labeler.access import Role
from services.labeler.serve import Running, Settings, serving
from tutelage.types import Query


def texts(n: int, *, first: int = 0, **settings: Any) -> list[Query]:
    """Comparisons of two texts, q0 and up."""
    return [
        Query(f"q{i}", "text", [f"one {i}", f"two {i}"], {"prompt": "Say something"}, **settings)
        for i in range(first, first + n)
    ]


def wait_for(true: Callable[[], Any], deadline_s: float = 120.0) -> Any:
    """What `true` says once it is true."""
    deadline = time.monotonic() + deadline_s
    while not (said := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return said


@contextlib.contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Running]:
    """A labeler on a free port, in a thread with a loop of its own."""
    ready, over = threading.Event(), threading.Event()
    box: dict[str, Any] = {}
    given = {"address": "127.0.0.1:0", "repeats": 0.0, "overlap": 0.0, **settings}

    async def main() -> None:
        async with serving(Settings(folder, **given)) as running:
            box["running"] = running
            ready.set()
            await asyncio.to_thread(over.wait)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            box["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        if "error" not in box:
            yield box["running"]
    finally:
        over.set()
        thread.join()
        if "error" in box:
            raise box["error"]


class Page(httpx.Client):
    """Somebody's browser: the cookie, and what the page sends along. Tests close all at their ends."""

    opened: ClassVar[list[Page]] = []

    def __init__(self, url: str, *, headers: Mapping[str, str] = {}, **settings: Any) -> None:
        super().__init__(base_url=url, headers={"Origin": url, **headers}, timeout=30, **settings)
        self.opened.append(self)

    @classmethod
    def close_all(cls) -> None:
        while cls.opened:
            cls.opened.pop().close()

    def come_in(self, invite: str, name: str = "") -> Page:
        said = self.post("/api/session", json={"invite": invite, "name": name})
        assert said.status_code == 200, said.text
        return self.load()

    def load(self) -> Page:
        """As a page does first; with access off this lets it in."""
        self.headers["X-Tutelage-CSRF"] = self.get("/api/me").json()["csrf"]
        return self

    def do(self, what: str, **said: Any) -> Any:
        """The answer to a POST that is expected to succeed."""
        answer = self.post(f"/api/{what}", json=said)
        assert answer.status_code == 200, (what, answer.status_code, answer.text)
        return answer.json()


def page(running: Running, name: str = "anna", role: Role = "annotator") -> Page:
    """Somebody who has come in by an invite made out to them."""
    return Page(running.url).come_in(running.access.invite(role, name=name))


@contextlib.contextmanager
def process(
    folder: Path, n: int, address: str = "127.0.0.1:0"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A labeler with `n` comparisons of texts in a process of its own, and its URL; it is killed at the end.

    SIGUSR1 fills its disk, for what it writes itself; SIGUSR2 makes room.
    """
    command = [sys.executable, "-m", "tests.labelers", str(folder), str(n), address]
    with program(command) as (server, line):
        yield server, line


@contextlib.contextmanager
def program(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and the last word of its first line."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line:
            raise RuntimeError(server.communicate()[1])
        yield server, line.split()[-1]
    finally:
        server.kill()
        server.communicate()


async def main(folder: str, n: str, address: str) -> None:
    """What `process` runs."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, resource.setrlimit, resource.RLIMIT_FSIZE, (1000, most))
    loop.add_signal_handler(signal.SIGUSR2, resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    async with serving(Settings(Path(folder), address=address, repeats=0.0, overlap=0.0)) as labeler:
        await asyncio.to_thread(labeler.labeling.submit, texts(int(n)))
        await asyncio.to_thread(labeler.labeling.run_once)
        print(labeler.url, flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
