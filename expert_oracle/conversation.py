"""One stream of the service: questions are read while few are unanswered, answers written as they come.

What a client that names itself was told is remembered until it has heard it: a question that is asked again
after a break of the connection is not put to the expert twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from expert_oracle.desk import Asked, Desk
from tutelage import codec
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb

MAX_UNANSWERED = 64
"""Questions of one stream that are taken before the first of them is answered."""
MAX_UNREAD_BYTES = 256 * 2**20
"""Of all answers together that are there and not sent."""
SPARED_BYTES = 2**16
"""So much each stream and call may have unread when others use up the rest."""
UNREAD = "too many answers are not read; this one did not fit among them"
GARBAGE = "that was no ActRequest"
MAX_PACKED = 256
"""Questions in one message."""
MAX_REMEMBERED = 256
MAX_REMEMBERED_BYTES = 16 * 2**20
MAX_ALL_BYTES = 256 * 2**20
"""Of all clients' answers together."""
FORGET_S = 120.0
"""How long a client that is gone may come back for what it was told."""
MAX_GONE = 1024
"""Clients that are gone and remembered."""


@dataclass(eq=False)
class Memory:
    """What one client asked and may not have heard the answer of, by id and digest of the observations.

    A client that starts anew under its old name may use its old ids for other questions.
    """

    memories: Memories  # where it is one of
    waiting: dict[int, tuple[int, Asked]] = field(default_factory=dict)
    replies: OrderedDict[int, tuple[int, pb.ActReply]] = field(default_factory=OrderedDict)
    size: int = 0  # bytes of the replies
    streams: int = 0  # and calls that are open
    forgotten: bool = False

    def ask(self, desk: Desk, request: pb.ActRequest) -> pb.ActReply | Asked:
        """What is known of the question, or what the desk makes of it."""
        self.forget_before(request.oldest)
        digest = hash(request.obs.SerializeToString(deterministic=True))
        known = self.known(request.id, digest)
        if known is not None:
            desk.figures.repeats += 1
            return known
        reply = desk.take(request, lambda asked: self._keep(asked, digest))
        self.note(reply, digest)
        return reply

    def note(self, reply: pb.ActReply | Asked, digest: int) -> None:
        """What became of a new question."""
        self._drop(reply.id)
        if isinstance(reply, Asked):
            self.waiting[reply.id] = digest, reply
        else:
            self.waiting.pop(reply.id, None)
            self._keep_reply(reply, digest)

    def _keep(self, asked: Asked, digest: int) -> None:
        """The expert has answered, or was spared the question."""
        if self.waiting.get(asked.id) == (digest, asked):
            del self.waiting[asked.id]
            if asked.reply is not None:
                self._keep_reply(asked.reply, digest)

    def _keep_reply(self, reply: pb.ActReply, digest: int) -> None:
        if reply.busy or self.forgotten:
            return  # it is to be asked again
        self.replies[reply.id] = digest, reply
        self._resize(reply.ByteSize())
        while len(self.replies) > MAX_REMEMBERED or self.size > MAX_REMEMBERED_BYTES:
            self.drop_first()
        self.memories.make_room(self)

    def _resize(self, by: int) -> None:
        self.size += by
        self.memories.size += by

    def known(self, request_id: int, digest: int) -> pb.ActReply | Asked | None:
        """The reply that may have been lost, or the question that still waits."""
        asked_digest, asked = self.waiting.get(request_id, (0, None))
        if asked is None or asked_digest != digest or asked.question.answer.cancelled():
            reply_digest, reply = self.replies.get(request_id, (0, None))
            return reply if reply_digest == digest else None
        return asked

    def forget_before(self, oldest: int) -> None:
        """The client has heard all before `oldest`."""
        while self.replies and next(iter(self.replies)) < oldest:
            self.drop_first()

    def drop_first(self) -> None:
        self._drop(next(iter(self.replies)))

    def _drop(self, request_id: int) -> None:
        if request_id in self.replies:
            self._resize(-self.replies.pop(request_id)[1].ByteSize())

    def forget(self) -> None:
        """All of it, and what the expert may answer yet."""
        self.forgotten = True
        self.replies.clear()
        self._resize(-self.size)


class Memories:
    """Those of the clients with an open stream or call, and of those that went a short while ago."""

    def __init__(self) -> None:
        self.size = 0  # bytes of the replies in all of them
        self._of: dict[str, Memory] = {}
        self._gone: OrderedDict[str, asyncio.TimerHandle] = OrderedDict()

    @contextlib.contextmanager
    def of(self, client: str) -> Iterator[Memory]:
        """The client's memory while it has a stream or call open."""
        memory = self._of.setdefault(client, Memory(self))
        memory.streams += 1
        if client in self._gone:
            self._gone.pop(client).cancel()
        try:
            yield memory
        finally:
            memory.streams -= 1
            if not memory.streams:
                self._went(client)

    def _went(self, client: str) -> None:
        self._gone[client] = asyncio.get_running_loop().call_later(FORGET_S, self._forget, client)
        memory = self._of[client]
        if len(self._gone) > MAX_GONE:
            self._forget(next(iter(self._gone)))
        elif not memory.replies and not memory.waiting:
            self._forget(client)

    def _forget(self, client: str) -> None:
        self._gone.pop(client).cancel()
        self._of.pop(client).forget()

    def make_room(self, grown: Memory) -> None:
        """Forget who has been gone for longest; where nobody is, what the one that grew was told first."""
        while self.size > MAX_ALL_BYTES and (self._gone or grown.replies):
            if self._gone:
                self._forget(next(iter(self._gone)))
            else:
                grown.drop_first()


@dataclass(eq=False)
class Unread:
    """Answers of all streams and calls that are there and not sent."""

    size: int = 0  # bytes

    def grow(self, by: int) -> None:
        self.size += by

    def has_room(self, size: int, own: int) -> bool:
        """For an answer of one that has `own` bytes of them."""
        return self.size + size <= MAX_UNREAD_BYTES or own + size <= SPARED_BYTES


def ask(desk: Desk, request: pb.ActRequest, memory: Memory | None) -> pb.ActReply | Asked:
    """From memory, or from the expert."""
    return memory.ask(desk, request) if memory is not None and request.id else desk.take(request)


class Conversation:
    """A stream, from its first question to its last answer."""

    def __init__(self, context: Any, desk: Desk, memory: Memory | None, unread: Unread) -> None:
        self._context = context
        self._desk = desk
        self._memory = memory
        self._waiting: dict[Asked, None] = {}  # for the expert; oldest first
        self._waiting_bytes = 0
        self._outbox: list[tuple[pb.ActReply, int]] = []  # with their bytes
        self._unread = unread
        self._unsent = 0  # bytes of what is in the outbox or being written
        self._writing = False
        self._writer: asyncio.Task[None] | None = None  # of what is answered later
        self._packs = False  # the client takes several replies in one message
        self._changed = asyncio.Event()  # something was answered or written
        self._task: asyncio.Task[Any] | None = None
        self._reading = False
        self._draining = False
        self._ended = False

    def drain(self) -> None:
        """Read no more questions; the stream ends once what was asked is answered."""
        self._draining = True
        if self._reading and self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            while (message := await self._read()) is not None:
                if len(message.more) > MAX_PACKED:
                    await self._refuse(f"more than {MAX_PACKED} questions in one message")
                await self._take(message)
                await self._write()
                await self._until(self._has_room)
            await self._until(self._is_done)
        finally:
            self._abandon()

    async def _refuse(self, why: str) -> None:
        await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)

    async def _read(self) -> pb.ActRequest | None:
        """The next message; None once the client has no more, or the service drains."""
        if self._draining:
            return None
        self._reading = True
        try:
            message = await self._context.read()
        except asyncio.CancelledError:
            if self._draining:
                return None
            raise
        finally:
            self._reading = False
        if isinstance(message, str):  # why it is none
            await self._refuse(message)
        return message if isinstance(message, pb.ActRequest) else None

    async def _take(self, message: pb.ActRequest) -> None:
        """Answer what can be answered at once; the rest is written when the expert has answered."""
        requests = message.more or (message,)
        self._packs = self._packs or len(requests) > 1
        for request in requests:
            if not self._has_room():
                await self._write()
                await self._until(self._has_room)
            self._desk.figures.requests["ActStream"] += 1
            reply = ask(self._desk, request, self._memory)
            if isinstance(reply, Asked):
                self._await(reply)
            else:
                self._post(reply)

    def _await(self, asked: Asked) -> None:
        asked.owner = self
        asked.question.resume()
        if asked not in self._waiting:
            self._waiting[asked] = None
            self._waiting_bytes += asked.question.size
        asked.question.answer.add_done_callback(lambda _: self._hear(asked))

    def _hear(self, asked: Asked) -> None:
        """The expert has answered; what it answers at the same time is written together."""
        if asked in self._waiting:
            del self._waiting[asked]
            self._waiting_bytes -= asked.question.size
        self._changed.set()
        if asked.reply is None or self._ended:
            return
        self._post(asked.reply)
        if not self._writing:
            self._writing = True
            self._writer = asyncio.create_task(self._write_all())

    def _post(self, reply: pb.ActReply) -> None:
        """Have the reply written; where too much is not read its question is to be asked again."""
        size = reply.ByteSize()
        if not self._unread.has_room(size, self._unsent):
            self._desk.figures.refusals["busy"] += 1
            reply = pb.ActReply(id=reply.id, busy=UNREAD)
            size = reply.ByteSize()
        self._outbox.append((reply, size))
        self._grow(size)

    def _grow(self, by: int) -> None:
        self._unsent += by
        self._unread.grow(by)

    def _has_room(self) -> bool:
        """Otherwise no more is taken: who does not read answers is not asked for more questions."""
        unanswered = len(self._waiting) + len(self._outbox)
        return unanswered < MAX_UNANSWERED and self._waiting_bytes + self._unsent < codec.MAX_BYTES

    def _is_done(self) -> bool:
        return not self._waiting and not self._outbox and not self._writing

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _write(self) -> None:
        """Write what there is; whoever is at it takes along what comes meanwhile."""
        if not self._writing:
            self._writing = True
            await self._write_all()

    async def _write_all(self) -> None:
        try:
            while self._outbox:
                message, size = self._next()
                await self._context.write(message)
                self._grow(-size)
        finally:
            self._writing = False
            self._changed.set()

    def _next(self) -> tuple[pb.ActReply, int]:
        """One reply, or several in one message, and their bytes."""
        if len(self._outbox) == 1 or not self._packs:
            return self._outbox.pop(0)
        size = count = 0
        for _, each in self._outbox:
            size += each
            count += 1
            if size > codec.PACKED_BYTES:
                break
        packed, self._outbox = self._outbox[:count], self._outbox[count:]
        return pb.ActReply(more=[reply for reply, _ in packed]), size

    def _abandon(self) -> None:
        """Spare the expert what nobody waits for: a stream that broke takes its questions back."""
        self._ended = True
        for asked in self._waiting:
            if asked.owner is self:
                asked.question.withdraw()
        if self._writer is not None:
            self._writer.cancel()
        self._grow(-self._unsent)
