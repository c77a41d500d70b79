"""Several processes that serve one expert on one port: started, watched, started again, drained.

Each makes an expert of its own. The kernel gives each connection to one of them, where it stays.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from expert_oracle import server
from expert_oracle.metrics import event, log_to_stderr
from tutelage.errors import OracleError, TutelageError
from tutelage.protocols import Oracle

PAUSE_S = (0.2, 30.0)
"""Before a worker that died is started again: at first, and at most."""
STEADY_S = 60.0
"""A worker that has lived this long may start again at once."""
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Worker:
    """What one process is to do; goes to it in a pickle."""

    build: Callable[[], Oracle]
    settings: dict[str, Any]  # of `server.start`
    grace_s: float
    log_format: Literal["text", "json"]

    def run(self, parent: Any) -> None:
        """Tell the parent the address, or the error; leave on a signal, or when the parent is gone."""
        log_to_stderr(self.log_format)
        try:
            is_left = asyncio.run(self._serve(parent))
        except TutelageError as error:
            parent.send(error)
        else:
            if is_left:
                server.leave()

    async def _serve(self, parent: Any) -> bool:
        stop = server.asked_to_end(parent.fileno())
        running = await server.start(self.build(), share_port=True, **self.settings)
        parent.send(running.address)
        await stop.wait()
        return await running.stop(self.grace_s)


def serve(
    build: Callable[[], Oracle],
    *,
    workers: int,
    address: str,
    name: str,
    grace_s: float = server.GRACE_S,
    log_format: Literal["text", "json"] = "text",
    metrics_address: str = "",
    **settings: Any,
) -> None:
    """Serve by `workers` processes until SIGTERM or SIGINT; metrics are on as many ports in a row."""
    with _reserve(address) as port:
        bound = f"{address.rpartition(':')[0]}:{port.getsockname()[1]}"
        settings |= {"address": bound, "name": name}
        own = [settings | {"metrics_address": _shifted(metrics_address, k)} for k in range(workers)]
        crew = [Keeper(Worker(build, each, grace_s, log_format)) for each in own]
        asyncio.run(_supervise(crew, f"expert {name} answers on grpc://{bound} with {workers} workers"))


async def _supervise(crew: list[Keeper], ready: str) -> None:
    stopping = asyncio.create_task(server.asked_to_end().wait())
    keeping = asyncio.create_task(_keep(crew, ready))
    try:
        await asyncio.wait([stopping, keeping], return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await asyncio.gather(*(keeper.stop() for keeper in crew))


async def _keep(crew: list[Keeper], ready: str) -> None:
    await asyncio.gather(*(keeper.start() for keeper in crew))
    print(ready, flush=True)
    await asyncio.gather(*(keeper.watch() for keeper in crew))


class Keeper:
    """Keeps one worker alive."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._child: Any = None
        self._pipe: Any = None

    async def start(self) -> None:
        """Returns once the worker answers; raises what it could not start for."""
        self._pipe, theirs = SPAWN.Pipe()
        self._child = SPAWN.Process(target=self._worker.run, args=(theirs,))
        self._child.start()
        theirs.close()
        await _readable(self._pipe.fileno())
        try:
            told = self._pipe.recv()
        except EOFError:
            raise OracleError(f"a worker ended before it answered, exit status {self._status()}") from None
        if isinstance(told, TutelageError):
            raise told

    async def watch(self) -> None:
        """Start the worker again whenever it has ended, for ever."""
        now, pause_s = asyncio.get_running_loop().time, PAUSE_S[0]
        while True:
            since = now()
            await _readable(self._child.sentinel)
            if now() - since > STEADY_S:
                pause_s = PAUSE_S[0]
            event("worker died", logging.WARNING, exit_status=self._status(), again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S[1])
            try:
                await self.start()
            except TutelageError as error:
                event("worker cannot start", logging.WARNING, error=str(error))

    def _status(self) -> int:
        """Negative: the signal that killed it."""
        self._child.join()
        return self._child.exitcode

    async def stop(self) -> None:
        """Let the worker answer what it has accepted; kill it where it does not end."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            async with asyncio.timeout(self._worker.grace_s + 5.0):
                await _readable(self._child.sentinel)
        except TimeoutError:
            self._child.kill()
        self._child.join()


async def _readable(file: int) -> None:
    loop, found = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, found.set)
    try:
        await found.wait()
    finally:
        loop.remove_reader(file)


def _reserve(address: str) -> socket.socket:
    """A socket that keeps the port from others, but not from the workers."""
    found = server.bindable(address)
    shared = socket.socket(found[0])
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(found[4])
    return shared


def _shifted(address: str, by: int) -> str:
    if not address:
        return ""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + by if int(port) else 0}"
