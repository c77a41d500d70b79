"""The labeler over gRPC, for machines: trainers that ask, scripted labelers that answer.

    running = await start(labeling, "127.0.0.1:50061", access)
    ...
    await running.stop(grace_s=10)

It runs in the event loop of whoever starts it; what blocks goes to threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
import redis
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from expert_oracle.access import ServerAccess
from expert_oracle.server import MAX_RPCS, OPEN, OPTIONS, listen
from services.labeler.access import Access, Refused
from services.labeler.labeling import Assignment, Labeling
from services.labeler.messages import (
    answered_message,
    query_message,
    query_of,
    without_pictures,
    without_rewards,
)
from services.labeler.queue import Banned
from tutelage import codec
from tutelage.errors import ServiceError
from tutelage.proto.tutelage.v1 import labeler_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Labeler"].full_name
THREADS = 16  # for calls
MAX_STREAMS = 64  # of answers, each with a thread and a connection to the store
LOOK_S = 1.0  # how long a stream waits before it looks whether it is to end
MAX_LEASED = 256
MAX_REASON = 4000  # characters


@dataclass(frozen=True)
class Caller:
    """Who calls. Without access control everybody is a trainer."""

    name: str
    role: str

    def annotator(self, given: str) -> str:
        """In whose name it answers. Raises PermissionError, ValueError."""
        if self.role != "annotator":
            if not given:
                raise ValueError(
                    f"annotator: missing; the token is that of a {self.role}, who answers in anybody's name: "
                    "say in whose by annotator=NAME"
                )
            return given
        if given not in ("", self.name):
            raise PermissionError(f"annotator: the token is that of {self.name}, not of {given}")
        return self.name


ANYBODY = Caller("", "trainer")
ANSWERING = ("annotator", "operator", "trainer")
ROLES = {
    "Submit": ("trainer",),
    "Withdraw": ("trainer",),
    "Answers": ("operator", "trainer"),
    "Stats": ("operator", "trainer"),
    "Lease": ANSWERING,
    "Answer": ANSWERING,
    "Beat": ANSWERING,
    "Undo": ANSWERING,
    "GiveBack": ANSWERING,
}
"""Who may call what."""
REQUESTS: dict[str, type[Message]] = {name: getattr(pb, f"{name}Request") for name in ROLES}


class Calls:
    """What each RPC does; it may block."""

    def __init__(self, labeling: Labeling) -> None:
        self.labeling = labeling

    def Submit(self, request: pb.SubmitRequest, caller: Caller) -> pb.SubmitReply:
        gold = {id: _json(known, f"gold, {id}") for id, known in request.gold.items()}
        queries = [query_of(query) for query in request.queries]
        only, never = (
            {id: list(names.names) for id, names in by_id.items()} for by_id in (request.only, request.never)
        )
        return pb.SubmitReply(ids=self.labeling.submit(queries, gold, only=only, never=never))

    def Lease(self, request: pb.LeaseRequest, caller: Caller) -> pb.LeaseReply:
        annotator, n = caller.annotator(request.annotator), min(request.n or 1, MAX_LEASED)
        assigned = self.labeling.assign(annotator, n, list(request.kinds))
        return pb.LeaseReply(assignments=[self._assignment(one, caller) for one in assigned])

    def _assignment(self, one: Assignment, caller: Caller) -> pb.Assignment:
        query = without_pictures(self.labeling.query(one.query))
        if caller.role == "annotator":  # is not told that it is asked again, either
            query = replace(without_rewards(query), id=one.id)
        return pb.Assignment(
            id=one.id,
            kind=one.kind,
            query=query_message(query),
            view=json.dumps(one.view),
            ends_at=one.ends_at,
            began_at=one.began_at,
        )

    def Answer(self, request: pb.AnswerRequest, caller: Caller) -> pb.AnswerReply:
        value = None
        match request.WhichOneof("said"):
            case "json":
                value = _json(request.json, "json")
            case "value":
                value = codec.decode_tensor(request.value, "value").tolist()
            case None if not request.cannot_tell:
                raise ValueError("value: missing; give one, or set cannot_tell")
        outcome, event = self.labeling.answer(
            request.question,
            caller.annotator(request.annotator),
            value,
            cannot_tell=request.cannot_tell,
            started_at=request.started_at,
            extra={"reason": request.reason[:MAX_REASON]} if request.reason else {},
        )
        return pb.AnswerReply(outcome=outcome, event=event)

    def Beat(self, request: pb.BeatRequest, caller: Caller) -> pb.BeatReply:
        kept = self.labeling.beat(caller.annotator(request.annotator), list(request.questions))
        return pb.BeatReply(kept=kept)

    def Undo(self, request: pb.UndoRequest, caller: Caller) -> pb.UndoReply:
        became = self.labeling.undo(request.question, caller.annotator(request.annotator))
        return pb.UndoReply(undone=became == "undone")

    def GiveBack(self, request: pb.GiveBackRequest, caller: Caller) -> pb.GiveBackReply:
        annotator = caller.annotator(request.annotator)
        given_back = self.labeling.give_back(request.question, annotator, request.broken[:500])
        return pb.GiveBackReply(given_back=given_back)

    def Withdraw(self, request: pb.WithdrawRequest, caller: Caller) -> pb.WithdrawReply:
        withdrawn = self.labeling.withdraw(list(request.ids), kind=request.kind)
        return pb.WithdrawReply(withdrawn=withdrawn)

    def Stats(self, request: pb.StatsRequest, caller: Caller) -> pb.StatsReply:
        queue = self.labeling.queue
        return pb.StatsReply(
            counts=queue.counts(),
            depth=queue.depth(),
            oldest_wait_s=queue.oldest_wait_s(),
            waiting=self.labeling.waiting(),
            fault=self.labeling.fault,
        )


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: no JSON: {error}") from None


@dataclass(eq=False)
class LabelerService:
    """The RPCs of `labeler.proto`: lets in who may, and says in one line what was wrong."""

    calls: Calls
    access: Access | None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "labeler-rpc"))
    waiting: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_STREAMS, "labeler-answers")
    )
    streams: int = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """As the generated code has it, but for requests that cannot be parsed: they are no error of ours."""
        methods = {}
        for name, request in REQUESTS.items():
            streams = name == "Answers"
            make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            serve = self.answers if streams else partial(self.unary, name)
            methods[name] = make(serve, partial(_parsed, request), _serialized)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def unary(self, name: str, request: Any, context: Any) -> Any:
        caller = await self._caller(name, request, context)
        async with _refusing(context):
            return await self._in_thread(getattr(self.calls, name), request, caller)

    async def answers(self, request: Any, context: Any) -> AsyncIterator[pb.AnswersReply]:
        """From the cursor to the newest, and if asked on and on; ends when the service does."""
        await self._caller("Answers", request, context)
        if self.streams >= MAX_STREAMS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} streams of answers are open already"
            )
        cursor, wait_s = request.cursor or "0", 0.0
        self.streams += 1
        try:
            while not self.stopping.is_set():
                if wait_s:  # its token may have been revoked meanwhile
                    await self._caller("Answers", request, context)
                async with _refusing(context):
                    before, labeling = cursor, self.calls.labeling
                    found, cursor = await self._in_thread(
                        labeling.events, cursor, wait_s, pool=self.waiting if wait_s else None
                    )
                newest = cursor == before
                if found or (newest and not request.follow) or not wait_s:
                    answers = [answered_message(event) for event in found]
                    yield pb.AnswersReply(answers=answers, cursor=cursor)
                if newest and not request.follow:
                    return
                wait_s = LOOK_S if newest else 0.0
        finally:
            self.streams -= 1

    async def _in_thread(self, call: Callable[..., Any], *args: Any, pool: Any = None) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool or self.threads, call, *args)

    async def _caller(self, name: str, request: Any, context: Any) -> Caller:
        """Who calls, if it may."""
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this service")
        if self.access is None:
            return ANYBODY
        given = dict(context.invocation_metadata()).get("authorization", "")
        kind, _, token = given.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this service asks for a token, and none was sent"
            )
        async with _refusing(context):
            found = await self._in_thread(self.access.machine, token.strip())
        if found is None or not found.machine:
            self.access.audit.note("refused", address=context.peer(), why="a token that is not known")
            return await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "the token is not known to this service"
            )
        if found.role not in ROLES[name]:
            allowed = " or ".join(ROLES[name])
            self.access.audit.note("refused", by=found.name, why=f"{name} is for {allowed}")
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{name} is for {allowed}; the token is that of {found.role}",
            )
        if found.role != "trainer":  # they ask in bulk
            async with _refusing(context):
                self.access.check_rate(found)
        return Caller(found.name, found.role)

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.waiting.shutdown(wait=False, cancel_futures=True)


def _serialized(reply: Message) -> bytes:
    return reply.SerializeToString()


def _parsed(request: type[Message], data: bytes) -> Message | None:
    try:
        return request.FromString(data)
    except DecodeError:
        return None


@contextlib.asynccontextmanager
async def _refusing(context: Any) -> AsyncIterator[None]:
    """Errors as the status that tells a client whether to try again."""
    try:
        yield
    except (ValueError, KeyError) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _line(error))
    except (PermissionError, Banned) as error:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, _line(error))
    except Refused as error:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _line(error))
    except redis.RedisError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store cannot be reached: {_line(error)}")
    except ServiceError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, _line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:1000] or type(error).__name__


@dataclass(frozen=True)
class Running:
    """A service that answers until it is stopped."""

    server: grpc.aio.Server
    service: LabelerService
    health: Any  # grpc_health's servicer
    address: str  # host:port

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, end the streams, let calls finish for at most `grace_s`, and leave."""
        await self.health.enter_graceful_shutdown()
        self.service.stopping.set()
        await self.server.stop(grace_s)
        self.service.close()


async def start(
    labeling: Labeling, address: str, access: Access | None = None, *, tls: ServerAccess = OPEN
) -> Running:
    """Answer on `host:port`, where port 0 is any free one. `access` None: everybody may do everything."""
    service = LabelerService(Calls(labeling), access)
    options = [*OPTIONS, ("grpc.so_reuseport", 0)]  # else two could listen on the same port
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_RPCS)
    server.add_generic_rpc_handlers((service.handler(),))
    health_service: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = listen(server, address, tls, option="--grpc-address")
    await server.start()
    for served in ("", SERVICE):
        await health_service.set(served, health_pb2.HealthCheckResponse.SERVING)
    return Running(server, service, health_service, f"{address.rpartition(':')[0]}:{port}")
