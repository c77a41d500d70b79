"""For tests: a labeler as it is served, in a thread or a process of its own, and people who come in."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """Somebody's browser: the cookie, and what the page sends along."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(base_url=url, headers={"Origin": url}, timeout=30, **settings)

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
def process(folder: Path, *options: str, address: str = "127.0.0.1:0") -> Iterator[tuple[Any, str]]:
    """`tutelage labeler serve` as a process, and its address; it is killed at the end, if it still runs."""
    command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", str(folder)]
    server = subprocess.Popen(
        [*command, "--address", address, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line:
            assert server.stderr is not None
            raise RuntimeError(server.stderr.read())
        yield server, line.split()[-1]
    finally:
        server.kill()
        server.communicate()
