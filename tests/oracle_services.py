"""Expert services for tests: in a thread of this process, in processes of their own, behind a bad line."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from expert_oracle import server
from expert_oracle.loading import FunctionOracle
from tutelage import codec
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc

ROOT = Path(__file__).parents[1]
SERVE = [sys.executable, "-m", "services.cli", "oracle", "serve"]
OBS = np.random.default_rng(0).random((64, 5), np.float32)
FIRST_TWO = FunctionOracle(lambda obs: obs[:, :2])


@contextmanager
def looping():
    """An event loop in a thread; gives a function that runs a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@contextmanager
def running(oracle, **settings):
    """A service in a thread of this process."""
    with looping() as run:
        started = run(server.start(oracle, **{"address": "127.0.0.1:0", **settings}))
        try:
            yield started
        finally:
            run(started.stop(5.0))


@contextmanager
def serving(oracle, **settings):
    """The same; gives its address."""
    with running(oracle, **settings) as started:
        yield started.address


@contextmanager
def process(oracle, address="127.0.0.1:0", *more):
    """A service in a process of its own; gives the process and its address."""
    command = [*SERVE, oracle, "--address", address, *more]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child, child.stdout.readline().partition("grpc://")[2].partition(" ")[0].strip()
    finally:
        child.kill()
        child.communicate()


class Line:
    """A TCP proxy before a service; `hold` makes it a black hole, `cut` breaks every connection."""

    def __init__(self, target):
        self._target = target.rpartition(":")
        self._open = asyncio.Event()
        self._open.set()
        self._writers = set()
        self.connections = 0

    async def start(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader, writer):
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(self._target[0], int(self._target[2]))
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(2**16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def hold(self):
        self._open.clear()

    async def release(self):
        self._open.set()

    async def cut(self):
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self):
        self._open.set()
        await self.cut()
        self._server.close()


@contextmanager
def line_to(target):
    """A line to a service: gives its address, and what does `hold`, `release` or `cut`."""
    with looping() as run:
        line = Line(target)
        try:
            yield run(line.start()), lambda what: run(getattr(line, what)())
        finally:
            run(line.stop())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scraped(port):
    """Every sample by its name and labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def request(obs, number=1, **fields):
    return pb.ActRequest(id=number, obs=codec.encode(obs), **fields)


def stub_of(channel):
    return oracle_pb2_grpc.ExpertOracleStub(channel)


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not come about in time"
        time.sleep(0.01)


class Stream:
    """A stream that a test writes and reads by hand, under a client's name."""

    def __init__(self, address, client=None):
        self._channel = grpc.insecure_channel(address)
        self._requests = []
        self._more = threading.Condition()
        self._open = True
        names = ((codec.CLIENT, client),) if client else ()
        self.call = stub_of(self._channel).ActStream(self._write(), metadata=names)

    def _write(self):
        while True:
            with self._more:
                self._more.wait_for(lambda: self._requests or not self._open)
                if not self._requests:
                    return
                message = self._requests.pop(0)
            yield message

    def ask(self, *messages):
        with self._more:
            self._requests += messages
            self._more.notify()

    def hear(self, n):
        """The next n replies, by their id."""
        replies = [next(self.call) for _ in range(n)]
        return {reply.id: reply for reply in replies}

    def break_off(self):
        self.call.cancel()
        self._channel.close()

    def end(self):
        with self._more:
            self._open = False
            self._more.notify()
        return list(self.call)
