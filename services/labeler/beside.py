"""The labeler that a run has beside it, in a process of its own, while it is trained by people.

    with beside(run, page="") as labeler:
        labeler.links                # what people open
        labeler.connection           # arguments of the way to it: address, token_file

It ends with the trainer, however that ends; what was asked and answered stays in the run's folder. Where it
dies before, it is started again at the same addresses: pages that are open and the trainer go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ServiceError

LOG = logging.getLogger(__name__)
START_S = 60.0
STOP_S = 30.0
LOOK_S = 0.5  # how often it is seen to that the trainer lives
ANY_PORT = "127.0.0.1:0"
GRPC = "gRPC for machines"
LAST_WORDS = "Ctrl-C"


@dataclass(frozen=True)
class Beside:
    """A labeler that answers. Made by: `beside`. Eaten by: the job."""

    links: tuple[str, ...]  # lines for people: what to open
    connection: Mapping[str, Any]


@contextlib.contextmanager
def beside(run: Path, page: str = "") -> Iterator[Beside]:
    """The labeler in the run's folder; `page` is where people reach it, by default where they did before.

    Raises ServiceError where it does not start.
    """
    folder = run / "labeler"
    folder.mkdir(mode=0o700, exist_ok=True)
    token, machines = _token(folder)
    pages = [page] if page else [*_last(folder / "page"), ANY_PORT]
    process, said = _start(run, pages, machines, [*_last(folder / "grpc"), ANY_PORT])
    lines = [line.strip() for line in said]
    address = next(line.removeprefix(GRPC).strip() for line in lines if line.startswith(GRPC))
    page = lines[0].rpartition("//")[2]
    (folder / "page").write_text(page)
    (folder / "grpc").write_text(address)
    links = [line for line in lines if not line.startswith(LAST_WORDS)]
    keeper = Keeper(process, lambda: _start(run, [page], machines, [address])[0])
    keeper.start()
    try:
        yield Beside(tuple(links), {"address": address, "token_file": str(token)})
    finally:
        keeper.stop()


class Keeper(threading.Thread):
    """Starts a process again when it dies, until it is told to stop."""

    def __init__(self, process: subprocess.Popen[str], again: Callable[[], subprocess.Popen[str]]) -> None:
        super().__init__(name="labeler", daemon=True)
        self._process, self._again = process, again
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            status = self._process.wait()
            if self._stopping.wait(LOOK_S):
                return
            LOG.warning("the labeler died (%s) and is started again", reason(status))
            try:
                self._process = self._again()
            except ServiceError as error:  # the trainer notices when it asks the next time
                LOG.error("%s", error)
                return

    def stop(self) -> None:
        """End the process."""
        self._stopping.set()
        _stop(self._process)
        self.join()
        _stop(self._process)  # one that was being started


def reason(status: int) -> str:
    """What ended a process, by its exit status."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _token(folder: Path) -> tuple[Path, Path]:
    """The trainer's token, and the service's file of those that it knows."""
    token, machines = folder / "token", folder / "machines"
    for path in (token, machines):
        path.touch(mode=0o600)
    if not token.read_text():
        token.write_text(secrets.token_urlsafe(32))
    machines.write_text(f"{token.read_text()} trainer trainer\n")
    return token, machines


def _last(path: Path) -> list[str]:
    """Where pages that are still open, and machines, look for it."""
    return [path.read_text()] if path.exists() else []


def _start(
    run: Path, pages: list[str], machines: Path, addresses: list[str]
) -> tuple[subprocess.Popen[str], list[str]]:
    """The process, and what it says once it answers; the next of the addresses where one is taken."""
    deadline = time.monotonic() + START_S
    journal = run / "labeler" / "service.log"
    while True:
        where = [str(run), pages[0], str(machines), addresses[0]]
        command = [sys.executable, "-m", "services.labeler.beside", *where]
        with journal.open("ab") as errors:
            began = errors.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        too_late = threading.Event()
        timer = threading.Timer(START_S, _give_up, (process, too_late))
        timer.start()
        said = list(_until_ready(process))
        timer.cancel()
        if said and said[-1].startswith(LAST_WORDS):
            return process, said
        _stop(process)
        if too_late.is_set():
            raise ServiceError(f"the labeler of {run} does not answer after {START_S:.0f} s (see {journal})")
        words = journal.read_bytes()[began:].decode(errors="replace").strip().splitlines() or [
            f"no reason given ({reason(process.returncode)})"
        ]
        taken = addresses if f"listen on {addresses[0]}" in words[-1] else pages
        if len(taken) > 1 and "cannot listen" in words[-1]:
            del taken[0]
        elif "in use" not in words[-1] or time.monotonic() > deadline:  # by one that is about to end
            raise ServiceError(f"the labeler of {run} does not start: {words[-1]} (all of it in {journal})")
        time.sleep(LOOK_S)


def _give_up(process: subprocess.Popen[str], too_late: threading.Event) -> None:
    too_late.set()
    process.kill()


def _until_ready(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line.startswith(LAST_WORDS):
            return


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def main(run: str, page: str, machines: str, address: str) -> None:
    """In the process: serve until told to stop, or until the trainer is gone."""
    from expert_oracle.metrics import log_to_stderr
    from services.labeler.serve import Settings, serve_command

    log_to_stderr("text")
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    settings = Settings(
        Path(run) / "labeler", run=Path(run), address=page, grpc_address=address, token_file=machines
    )
    serve_command(settings, invite=True, demo=False)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
