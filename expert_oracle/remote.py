"""An expert in another process: an `Oracle` over gRPC that survives a restart of the service.

    oracle = RemoteOracle(["host:50051"])       # connects at the first question
    actions = oracle.act(obs)                   # obs [N, ...], in pieces of `max_rows`, several in flight

Every piece has an id. When the connection breaks, what is unanswered is asked again over the next one, of the
same service or of the next address; an answer that comes twice counts once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import tree

from tutelage import codec
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc
from tutelage.types import Tree, check_leading

T = TypeVar("T")

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.max_receive_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials at once, whatever an old one waits for
]
HOPELESS = {  # trying again gives the same
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
BACKOFF_S = (0.1, 1.0)  # first, longest


class RemoteOracle:
    """The expert at one of `addresses`, each host:port; the next is tried where one fails.

    `deadline_s` without any answer, `connect_timeout_s` without anybody there at the first question, and
    `reconnect_timeout_s` after a break end in OracleError. Several threads may ask at once. It is picklable;
    the copy connects anew.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        deadline_s: float = 60.0,
        connect_timeout_s: float = 10.0,
        reconnect_timeout_s: float = 60.0,
        max_rows: int = 1024,
        window: int = 16,
    ) -> None:
        self.addresses = tuple(map(_check_address, addresses))
        self._settings = {
            "deadline_s": deadline_s,
            "connect_timeout_s": connect_timeout_s,
            "reconnect_timeout_s": reconnect_timeout_s,
            "window": window,
        }
        self._max_rows = max_rows
        self._ids = itertools.count(1)
        self._connection = Connection(self.addresses, **self._settings)

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._settings | {"max_rows": self._max_rows}
        return functools.partial(RemoteOracle, self.addresses, **settings), ()

    def act(self, obs: Tree) -> Tree:
        """Actions [N, ...] for observations [N, ...]."""
        pieces = self._pieces(obs)
        try:
            requests = [self._request(piece) for piece in pieces]
        except ValueError as error:
            raise OracleError(f"observations cannot be sent: {error}") from None
        replies = _wait_for(self._connection.ask(requests))
        actions = [self._actions(reply, piece) for reply, piece in zip(replies, pieces, strict=True)]
        if len(actions) == 1:
            return actions[0]
        return tree.map_structure(lambda *leaves: np.concatenate(leaves), *actions)

    def describe(self) -> pb.DescribeReply:
        """What the service says of itself."""
        return _wait_for(self._connection.describe())

    def close(self) -> None:
        """Hang up; the next question would connect anew."""
        _wait_for(self._connection.close())

    def _pieces(self, obs: Tree) -> list[Tree]:
        leaves = [np.asarray(leaf) for leaf in tree.flatten(obs)]
        N = len(leaves[0])
        row_bytes = sum(leaf.nbytes for leaf in leaves) // max(N, 1)
        rows = max(1, min(self._max_rows, codec.MAX_BYTES // 2 // max(row_bytes, 1)))
        if rows >= N:
            return [obs]
        return [_rows(obs, start, start + rows) for start in range(0, N, rows)]

    def _request(self, obs: Tree) -> pb.ActRequest:
        request = pb.ActRequest(id=next(self._ids))
        codec.encode_into(request.obs, obs, "obs")
        return request

    def _actions(self, reply: pb.ActReply, obs: Tree) -> Tree:
        if reply.WhichOneof("result") != "actions":
            raise OracleError(f"the expert at {self._connection.address} could not answer: {reply.error}")
        try:
            actions = codec.decode(reply.actions, "actions")
            check_leading("actions", actions, len(tree.flatten(obs)[0]))
        except ValueError as error:
            raise OracleError(f"the expert at {self._connection.address} sent garbage: {error}") from None
        return actions


def _rows(obs: Tree, start: int, stop: int) -> Tree:
    return tree.map_structure(lambda leaf: leaf[start:stop], obs)


def _check_address(address: str) -> str:
    host, separator, port = address.strip().rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ConfigError(f"expert address {address!r} is not of the form host:port")
    return address.strip()


@dataclass
class Question:
    """A request that waits for its reply."""

    request: pb.ActRequest
    reply: asyncio.Future[pb.ActReply]
    sent_at: float | None = None  # seconds of the loop's clock; None: not on the present stream


class Connection:
    """A stream to one of several addresses, made again when it breaks. All of it runs on the shared loop."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        deadline_s: float,
        connect_timeout_s: float,
        reconnect_timeout_s: float,
        window: int,
    ) -> None:
        self.address = addresses[0]  # the one in use
        self._addresses = itertools.cycle(addresses)
        self._all = ", ".join(f"grpc://{address}" for address in addresses)
        self._several = len(addresses) > 1
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._free = asyncio.Semaphore(window)
        self._open: dict[int, Question] = {}  # asked and not answered, oldest first
        self._stream: Any = None  # gRPC's; None: there is none at the moment
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._lost_at: float | None = None  # unanswered since then, though it has answered before
        self._heard_at = 0.0
        self._description: pb.DescribeReply | None = None

    async def ask(self, requests: Sequence[pb.ActRequest]) -> list[pb.ActReply]:
        """The replies, in the order of the requests."""
        questions: list[Question] = []
        try:
            for request in requests:
                await self._free.acquire()
                questions.append(self._question(request))
                await self._send(questions[-1])
                if questions[-1].reply.done():  # by an error, then the rest is in vain
                    questions[-1].reply.result()
            return [await question.reply for question in questions]
        finally:
            for question in questions:
                self._settle(question, None)

    def _question(self, request: pb.ActRequest) -> Question:
        question = Question(request, asyncio.get_running_loop().create_future())
        self._open[request.id] = question
        if self._task is None or self._task.done():
            met = self._description is not None
            self._lost_at = asyncio.get_running_loop().time() if met else None
            self._task = asyncio.create_task(self._keep_connected())
        return question

    async def _send(self, question: Question) -> None:
        """Write a question to the present stream, once."""
        async with self._writing:
            if self._stream is None or question.sent_at is not None:
                return
            question.sent_at = asyncio.get_running_loop().time()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `_hear` sees it too
                await self._stream.write(question.request)

    def _settle(self, question: Question, result: pb.ActReply | OracleError | None) -> None:
        """Close a question: with a reply, with an error, or with nothing where nobody waits any more."""
        if self._open.pop(question.request.id, None) is None:
            return
        self._free.release()
        if isinstance(result, pb.ActReply):
            question.reply.set_result(result)
        elif result is not None:
            question.reply.set_exception(result)
        else:
            question.reply.cancel()

    async def describe(self) -> pb.DescribeReply:
        if self._description is None:
            channel = await self._reach(self._connect_timeout_s)
            await channel.close()
        assert self._description is not None
        return self._description

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep_connected(self) -> None:
        """Hold a stream open; after a break make the next one, at once where questions wait."""
        try:
            while True:
                channel = await self._reach(self._time_left_s())
                try:
                    await self._talk(channel)
                finally:
                    await channel.close()
                if not self._open:
                    return
                await asyncio.sleep(BACKOFF_S[0])
        except OracleError as error:
            for question in list(self._open.values()):
                self._settle(question, error)

    def _time_left_s(self) -> float:
        if self._lost_at is None:
            return self._connect_timeout_s
        return self._lost_at + self._reconnect_timeout_s - asyncio.get_running_loop().time()

    async def _reach(self, timeout_s: float) -> grpc.aio.Channel:
        """A channel to the first address that answers within the time."""
        loop = asyncio.get_running_loop()
        end, pause_s, reason = loop.time() + timeout_s, BACKOFF_S[0], "no time left"
        while (left_s := end - loop.time()) > 0:
            address = next(self._addresses)
            channel = grpc.aio.insecure_channel(address, options=OPTIONS)
            try:
                stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
                limit_s = min(left_s, 5.0) if self._several else left_s
                self._description = await stub.Describe(pb.DescribeRequest(), timeout=limit_s)
                self.address = address
                return channel
            except grpc.aio.AioRpcError as error:
                await channel.close()
                reason = f"{error.code().name}: {error.details()}"
                if error.code() in HOPELESS:
                    raise OracleError(f"{address} does not serve us as an expert: {reason}") from None
            except BaseException:
                await channel.close()
                raise
            await asyncio.sleep(max(0.0, min(pause_s, end - loop.time())))
            pause_s = min(2 * pause_s, BACKOFF_S[1])
        raise OracleError(self._nobody(reason))

    def _nobody(self, reason: str) -> str:
        if self._lost_at is None:
            what = f"no expert answers at {self._all}: tried for {self._connect_timeout_s:g} s"
        else:
            what = (
                f"the expert at {self._all} went away and is not back after {self._reconnect_timeout_s:g} s"
            )
        return f"{what} ({reason}); is the service running?"

    async def _talk(self, channel: grpc.aio.Channel) -> None:
        """Ask and hear until the stream ends."""
        stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
        self._stream = stream = stub.ActStream()
        others = [asyncio.create_task(self._send_all()), asyncio.create_task(self._watch())]
        try:
            await self._hear(stream)
        except grpc.aio.AioRpcError as error:
            if error.code() in HOPELESS:
                reason = f"{error.code().name}: {error.details()}"
                raise OracleError(f"the expert at {self.address} refused: {reason}") from None
        finally:
            self._hang_up(others)

    async def _send_all(self) -> None:
        """Ask again what the last stream left unanswered."""
        for question in list(self._open.values()):
            await self._send(question)

    async def _hear(self, stream: Any) -> None:
        now = asyncio.get_running_loop().time
        while isinstance(reply := await stream.read(), pb.ActReply):
            self._heard_at, self._lost_at = now(), None
            question = self._open.get(reply.id)
            if question is not None:
                self._settle(question, reply)

    async def _watch(self) -> None:
        """Give up what was asked once the service has been silent for the deadline."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, self._deadline_s / 4))
            for question in list(self._open.values()):
                if question.sent_at and now() - max(question.sent_at, self._heard_at) > self._deadline_s:
                    silence = f"has not answered for {self._deadline_s:g} s"
                    self._settle(question, OracleError(f"the expert at {self.address} {silence}"))

    def _hang_up(self, others: Sequence[asyncio.Task[None]]) -> None:
        for task in others:
            task.cancel()
        self._stream.cancel()
        self._stream = None
        self._lost_at = self._lost_at or asyncio.get_running_loop().time()
        for question in self._open.values():
            question.sent_at = None


class SharedLoop:
    """An event loop that runs on whichever thread waits for it, which spares each call two thread switches.

    gRPC wants one loop for all channels of a process. While one thread runs it, others hand it their
    coroutines; when that thread has its own result, the next one takes over.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._changed = threading.Condition()
        self._running = False

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine."""
        if _in_event_loop():  # a notebook's, say; a thread can run only one
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(self.wait_for, coroutine).result()
        with self._changed:
            lead, self._running = not self._running, True
        if lead:
            return self._run(coroutine)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._notify())
        try:
            return self._follow(future)
        except BaseException:
            future.cancel()
            raise

    def _run(self, awaitable: Awaitable[T]) -> T:
        try:
            return self._loop.run_until_complete(awaitable)
        finally:
            self._notify(running=False)

    def _notify(self, running: bool | None = None) -> None:
        with self._changed:
            if running is not None:
                self._running = running
            self._changed.notify_all()

    def _follow(self, future: concurrent.futures.Future[T]) -> T:
        with self._changed:
            while self._running and not future.done():
                self._changed.wait()
            if future.done():
                return future.result()
            self._running = True
        return self._run(asyncio.wrap_future(future, loop=self._loop))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_loops: dict[int, SharedLoop] = {}
_loops_lock = threading.Lock()


def _wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine on the shared loop of this process (a fork gets its own)."""
    with _loops_lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = SharedLoop()
    return loop.wait_for(coroutine)
