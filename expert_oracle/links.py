"""Streams to the processes of an expert service, and the questions that wait for an answer on them.

A question goes to the link with the fewest; when a link breaks, what it left unanswered goes to the others,
or is asked again over the same one once it is back. All of it runs on the shared loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from expert_oracle.access import TOKEN, ClientAccess
from tutelage import codec
from tutelage.errors import OracleError, TutelageError, Unreachable, show_traceback
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc

CLIENT_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.max_receive_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials at once, whatever an old one waits for
    ("grpc.enable_http_proxy", 0),  # a proxy for the web, from the environment, does not carry streams
]
HOPELESS = {  # trying again gives the same
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
}
BACKOFF_S = (0.1, 1.0)  # first, longest
BUSY_S = (0.05, 2.0)
DESCRIBE_S = 5.0
"""For one try to reach one of several addresses."""
REFUSED_S = 30.0
"""Before an address that refused is tried again, where others are up."""
TICK_S = 0.1


@dataclass(eq=False)
class Ask:
    """Requests that were made together, and their replies."""

    done: asyncio.Future[list[pb.ActReply]]
    replies: list[Any]
    left: int


@dataclass(slots=True, eq=False)
class Unanswered:
    """A request that waits for its reply."""

    request: pb.ActRequest
    ask: Ask
    place: int  # among the replies
    size: int  # bytes
    given_at: float = 0.0  # to its link, in seconds of the loop's clock
    silences: int = 0  # links that did not answer it
    busy_since: float | None = None
    busy_times: int = 0


class Board:
    """The links to all addresses, and what waits."""

    def __init__(
        self,
        addresses: Sequence[str],
        access: ClientAccess,
        *,
        loop: asyncio.AbstractEventLoop,
        deadline_s: float,
        connect_timeout_s: float,
        reconnect_timeout_s: float,
        window: int,
    ) -> None:
        self.access = access
        self.description: pb.DescribeReply | None = None
        self.client = uuid.uuid4().hex
        self.open: dict[int, Unanswered] = {}  # asked and not answered, oldest first
        self.reason = "no time left"  # for which the last try to connect failed
        self._loop = loop
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._window = window
        self._links = [Link(self, address, loop) for address in addresses]
        self._all = ", ".join(f"grpc://{address}" for address in addresses)
        self._queue: deque[Unanswered] = deque()  # for the next link that has room
        self._ids = itertools.count(1)
        self._turns = itertools.cycle(range(len(addresses)))
        self._hopes: list[asyncio.Future[pb.DescribeReply]] = []  # of those who wait for a description
        self._down_since: float | None = None  # somebody waits, and no link is up
        self._down_s = 0.0  # for how long that was so before, since the last answer
        self._watching: asyncio.Task[None] | None = None

    def ask(self, requests: Sequence[pb.ActRequest]) -> asyncio.Future[list[pb.ActReply]]:
        """The replies, in the order of the requests, which get their ids here."""
        self._forget_given_up()
        ask = Ask(self._loop.create_future(), [None] * len(requests), len(requests))
        ask.done.add_done_callback(lambda done: self._forget_given_up() if done.cancelled() else None)
        for place, request in enumerate(requests):
            request.id = next(self._ids)
            question = Unanswered(request, ask, place, request.ByteSize())
            self.open[request.id] = question
            self._queue.append(question)
        self._start()
        self.assign()
        return ask.done

    def describe(self) -> asyncio.Future[pb.DescribeReply]:
        self._forget_given_up()
        hope: asyncio.Future[pb.DescribeReply] = self._loop.create_future()
        if self.description is not None:
            hope.set_result(self.description)
        else:
            self._hopes.append(hope)
            self._start()
        return hope

    def _forget_given_up(self) -> None:
        """Drop what nobody waits for any more, as after Ctrl-C. Where nobody waits at all, the loop may have
        stood still since, and all clocks begin anew."""
        given_up = [number for number, question in self.open.items() if question.ask.done.done()]
        for number in given_up:
            del self.open[number]
            for link in self._links:
                link.open.pop(number, None)
        self._hopes = [hope for hope in self._hopes if not hope.done()]
        if not self.is_wanted():
            self._forget_down()

    def close(self) -> asyncio.Future[Any]:
        """Hang up; who waits is told. Who asks meanwhile has links again once these have ended."""
        self.fail(OracleError("the connection was closed while an answer was awaited"))
        tasks = [task for task in (self._watching, *(link.task for link in self._links)) if task is not None]
        for task in tasks:
            task.cancel()
        self._watching = None
        return asyncio.ensure_future(self._ended(tasks), loop=self._loop)

    def _rest(self) -> None:
        """Watch no more. Where it is the loop's last act, the task sees its end before who waits is told."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _ended(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.is_wanted():
            self._start()

    def _start(self) -> None:
        """Have links at work, those that are not."""
        if self._watching is None:
            self._watching = self._loop.create_task(self._watch())
        up = self.is_up()
        for link in self._links:
            link.start(at_once=not up)
        if not up:
            self.note_down()

    def is_up(self) -> bool:
        return any(link.stream is not None for link in self._links)

    def is_wanted(self) -> bool:
        """Somebody waits."""
        return bool(self.open or self._hopes)

    def note_down(self) -> None:
        """Somebody waits, and no link is up."""
        if self._down_since is None:
            self._down_since = self._loop.time()

    def note_up(self) -> None:
        """A stream is open. Only an answer renews the patience: a stream may break at each question."""
        if self._down_since is not None:
            self._down_s += self._loop.time() - self._down_since
            self._down_since = None

    def _forget_down(self) -> None:
        self._down_since, self._down_s = None, 0.0

    def _patience_s(self) -> float:
        return self._connect_timeout_s if self.description is None else self._reconnect_timeout_s

    def assign(self) -> None:
        """Give what is queued to links that have room."""
        while self._queue:
            link = self._freest()
            if link is None:
                return
            question = self._queue.popleft()
            if question.ask.done.done():  # nobody waits for it any more
                self.open.pop(question.request.id, None)
            else:
                link.give(question)

    def _freest(self) -> Link | None:
        """The link that is up with the fewest questions, in turns where they have as many."""
        if len(self._links) == 1:
            up = self._links if self._links[0].stream is not None else []
        else:
            first = next(self._turns)
            up = [link for link in self._links[first:] + self._links[:first] if link.stream is not None]
        best = min(up, key=lambda link: len(link.open), default=None)
        return best if best is not None and len(best.open) < self._window else None

    def met(self, description: pb.DescribeReply) -> str | None:
        """A service says who it is; returns why it cannot stand in for the ones met before."""
        if self.description is not None:
            return _difference(description, self.description)
        self.description = description
        self._forget_down()
        for hope in self._hopes:
            if not hope.done():
                hope.set_result(description)
        self._hopes.clear()
        return None

    def settle(self, question: Unanswered, reply: pb.ActReply, address: str) -> None:
        """A link has heard the reply to a question."""
        self._forget_down()
        if reply.busy:
            self._ask_later(question, reply.busy, address)
            return
        self.open.pop(question.request.id, None)
        ask = question.ask
        if reply.error:
            _fail(ask, OracleError(f"the expert at {address} could not answer: {reply.error}"))
            return
        ask.replies[question.place] = reply
        ask.left -= 1
        if not ask.left and not ask.done.done():
            ask.done.set_result(ask.replies)

    def _ask_later(self, question: Unanswered, why: str, address: str) -> None:
        """The service refuses to queue more: ask again after a pause that grows."""
        now = self._loop.time()
        question.busy_since = question.busy_since or now
        if now - question.busy_since > self._deadline_s:
            self._give_up(
                question, f"the expert at {address} has been busy for {self._deadline_s:g} s: {why}"
            )
            return
        question.busy_times += 1
        pause_s = min(BUSY_S[0] * 2**question.busy_times, BUSY_S[1]) * random.uniform(0.5, 1.0)
        self._loop.call_later(pause_s, self.requeue, [question])

    def requeue(self, questions: Sequence[Unanswered]) -> None:
        """Ask again what a link left unanswered, before all others."""
        self._queue.extendleft(reversed(questions))
        self.assign()

    def _give_up(self, question: Unanswered, why: str) -> None:
        self.open.pop(question.request.id, None)
        _fail(question.ask, Unreachable(why))

    def fail(self, error: OracleError) -> None:
        """All who wait get the error."""
        for question in self.open.values():
            _fail(question.ask, error)
        for hope in self._hopes:
            if not hope.done():
                hope.set_exception(error)
        self.open.clear()
        self._queue.clear()
        self._hopes.clear()
        self._forget_down()

    def refused(self) -> None:
        """A link gave up: so do all if the others have."""
        reasons = [link.refusal for link in self._links]
        if all(reasons):
            self._rest()
            self.fail(OracleError("; ".join(filter(None, reasons))))

    async def _watch(self) -> None:
        """Give up on links that are silent, and on all if nobody comes back; try again what refused."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            for link in self._links:
                if link.silence_s(now) > self._deadline_s:
                    self._hang_up(link)
                if self.is_wanted():
                    link.start(at_once=False)
            if self._down_since is None:
                continue
            if self.is_wanted() and self._down_s + now - self._down_since > self._patience_s():
                self.fail(Unreachable(self._nobody()))

    def _hang_up(self, link: Link) -> None:
        """Ask the others; if none has answered, tell who waits."""
        for question in list(link.open.values()):
            question.silences += 1
            if question.silences >= len(self._links):
                del link.open[question.request.id]
                silence = f"has not answered for {self._deadline_s:g} s"
                self._give_up(question, f"the expert at {link.address} {silence}")
        link.hang_up()

    def _nobody(self) -> str:
        if self.description is None:
            what = f"no expert answers at {self._all}: tried for {self._patience_s():g} s"
        else:
            what = f"the expert at {self._all} went away and is not back after {self._patience_s():g} s"
        unknown = any(words in self.reason for words in ("Domain name not found", "DNS resolution failed"))
        return f"{what} ({self.reason}); {'is the name right?' if unknown else 'is the service running?'}"


def _fail(ask: Ask, error: OracleError) -> None:
    if not ask.done.done():
        ask.done.set_exception(error)


def _difference(a: pb.DescribeReply, b: pb.DescribeReply) -> str | None:
    if a.action_space == b.action_space and a.observation_space == b.observation_space:
        return None
    spaces = [
        f"{codec.space_text(one.observation_space)} to {codec.space_text(one.action_space)}" for one in (a, b)
    ]
    return f"it acts from {spaces[0]}, another of the service from {spaces[1]}"


class Link:
    """A stream to one address, made again when it breaks."""

    def __init__(self, board: Board, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.open: dict[int, Unanswered] = {}  # given to this link and not answered, oldest first
        self.stream: Any = None  # gRPC's; None: there is none at the moment
        self.task: asyncio.Task[None] | None = None
        self.refusal: str | None = None
        self._board = board
        self._loop = loop
        self._outbox: deque[Unanswered] = deque()
        self._more = asyncio.Event()
        self._heard_at = 0.0
        self._max_packed = 0
        self._hung_up = False
        self._retry_at = 0.0

    def start(self, *, at_once: bool) -> None:
        """Be at work; `at_once` also where it refused a moment ago."""
        if self.task is None and (at_once or self._loop.time() >= self._retry_at):
            self.refusal = None
            self.task = self._loop.create_task(self._run())

    def give(self, question: Unanswered) -> None:
        question.given_at = self._loop.time()
        self.open[question.request.id] = question
        self._outbox.append(question)
        self._more.set()

    def silence_s(self, now: float) -> float:
        """For how long the oldest question has waited without any answer here."""
        oldest = next(iter(self.open.values()), None)
        return 0.0 if oldest is None else now - max(oldest.given_at, self._heard_at)

    def hang_up(self) -> None:
        """The service sees it, and spares its expert what it has not begun."""
        if self.stream is not None:
            self._hung_up = True
            self.stream.cancel()

    async def _run(self) -> None:
        """Hold a stream open while somebody waits; it stays open after."""
        try:
            while self._board.is_wanted():
                channel = await self._reach()
                try:
                    await self._talk(channel)
                finally:
                    await channel.close()
                await asyncio.sleep(BACKOFF_S[0])
        except TutelageError as error:
            self._refused(str(error))
        except Exception as error:  # in a task of its own, nobody else would hear of it
            show_traceback()
            text = " ".join(str(error).split())
            self._refused(f"{self.address} cannot be asked: {type(error).__name__}: {text}")
        finally:
            self.task = None
        if self.refusal is not None:
            self._board.refused()

    def _refused(self, why: str) -> None:
        self.refusal, self._retry_at = why, self._loop.time() + REFUSED_S

    async def _reach(self) -> grpc.aio.Channel:
        """A channel to a service that has said who it is. OracleError where trying again is in vain."""
        pause_s = BACKOFF_S[0]
        while True:
            channel = self._board.access.channel(self.address, CLIENT_OPTIONS)
            try:
                await self._describe(channel)
                return channel
            except grpc.aio.AioRpcError as error:
                await channel.close()
                await self._judge(error)
            except BaseException:
                await channel.close()
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _describe(self, channel: grpc.aio.Channel) -> None:
        stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
        metadata = self._board.access.metadata()
        description = await stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_S, metadata=metadata)
        self._max_packed = description.max_packed
        difference = self._board.met(description)
        if difference is not None:
            raise OracleError(f"{self.address} serves another expert: {difference}")

    async def _judge(self, error: grpc.aio.AioRpcError) -> None:
        """Remember why a try failed; raise OracleError where the next one would too."""
        self._board.reason = reason = f"{error.code().name}: {error.details()}"
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            source = self._board.access.token_source()
            reason += f"; it is that of {source}" if source else f"; give token_file=PATH, or set {TOKEN}"
        why = reason if _is_hopeless(error) else None
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            why = await self._board.access.explain(self.address)
        if why is not None:
            raise OracleError(f"{self.address} does not serve us as an expert: {why}")

    async def _talk(self, channel: grpc.aio.Channel) -> None:
        """Ask and hear until the stream ends."""
        stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
        names = ((codec.CLIENT, self._board.client), *self._board.access.metadata())
        self._hung_up = False
        self.stream = stream = stub.ActStream(metadata=names)
        self._board.note_up()
        writer = self._loop.create_task(self._write(stream))
        self._board.assign()
        try:
            await self._hear(stream)
        except grpc.aio.AioRpcError as error:
            self._board.reason = reason = f"{error.code().name}: {error.details()}"
            if _is_hopeless(error):
                raise OracleError(f"the expert at {self.address} refused: {reason}") from None
        except asyncio.CancelledError:
            if not self._hung_up:
                raise
        finally:
            writer.cancel()
            stream.cancel()
            self._break()

    def _break(self) -> None:
        """Hand back what is unanswered."""
        self.stream = None
        unanswered = list(self.open.values())
        self.open.clear()
        self._outbox.clear()
        if self._board.is_wanted() and not self._board.is_up():
            self._board.note_down()
        self._board.requeue(unanswered)

    async def _write(self, stream: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `_hear` sees it too
            while True:
                while self._outbox:
                    await stream.write(self._next())
                self._more.clear()
                await self._more.wait()

    def _next(self) -> pb.ActRequest:
        """The next request, with those behind it where they are small and the service takes several."""
        question = self._outbox.popleft()
        packed, size = [question.request], question.size
        packed[0].oldest = next(iter(self._board.open), 0)
        while self._outbox and len(packed) < self._max_packed:
            size += self._outbox[0].size
            if size > codec.PACKED_BYTES:
                break
            packed.append(self._outbox.popleft().request)
        return packed[0] if len(packed) == 1 else pb.ActRequest(more=packed)

    async def _hear(self, stream: Any) -> None:
        while isinstance(message := await stream.read(), pb.ActReply):
            self._heard_at = self._loop.time()
            for reply in message.more or (message,):
                question = self.open.pop(reply.id, None)
                if question is not None:
                    self._board.settle(question, reply, self.address)
            self._board.assign()


def _is_hopeless(error: grpc.aio.AioRpcError) -> bool:
    too_large = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in str(error.details())
    return too_large or error.code() in HOPELESS
