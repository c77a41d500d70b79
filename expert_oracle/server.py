"""The expert service: any `Oracle` behind gRPC, with the questions that wait joined into one forward.

    serve(OracleSpec("scripted:cartpole").build(), env_id="CartPole-v1", address="127.0.0.1:50051")

is what `tutelage oracle serve` does. It prints one line when it is ready. SIGTERM and SIGINT end it once what
was asked is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import tutelage
from expert_oracle.access import ServerAccess
from expert_oracle.batching import Batcher
from expert_oracle.conversation import (
    GARBAGE,
    MAX_PACKED,
    SPARED_BYTES,
    UNREAD,
    Conversation,
    Memories,
    Memory,
    Unread,
    ask,
)
from expert_oracle.desk import Asked, Desk
from expert_oracle.fitting import QuicklyChecked
from expert_oracle.loading import checked, described
from expert_oracle.metrics import Figures, event, expose
from tutelage import codec, wire
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.protocols import Oracle

SERVICE = pb.DESCRIPTOR.services_by_name["ExpertOracle"].full_name
SERVED = ("", SERVICE)
"""What the health service knows of; empty: all that is here."""
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.max_receive_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),  # a client that was busy sends its keepalives in a burst
    ("grpc.max_connection_age_ms", 30 * 60_000),  # spreads clients over new replicas
    ("grpc.max_connection_age_grace_ms", 60_000),
]
MAX_RPCS = 4096
"""Streams and calls that are open at a time."""
GRACE_S = 10.0
OPEN = ServerAccess()
REASONS = {
    errno.EADDRINUSE: "the port is taken; choose another with {option}, e.g. 127.0.0.1:0 for any free one",
    errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 are all that it has",
    errno.EACCES: "not permitted; ports below 1024 are not for everybody",
}


class ExpertOracleService:
    """The RPCs of `oracle.proto`."""

    def __init__(self, description: pb.DescribeReply, desk: Desk, *, asks_for_token: bool) -> None:
        self._description = description
        self._desk = desk
        self._asks_for_token = asks_for_token
        self.figures = desk.figures
        self._memories = Memories()
        self._unread = Unread()
        self._conversations: set[Conversation] = set()
        self._draining = False

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
        self.figures.requests["Describe"] += 1
        if not self._asks_for_token and "authorization" in dict(context.invocation_metadata()):
            context.set_trailing_metadata(((codec.NEEDLESS, "token"),))
        return self._description

    async def Act(self, request: pb.ActRequest | str, context: Any) -> pb.ActReply:
        self.figures.requests["Act"] += 1
        if isinstance(request, str):
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request)
        with self._memory_of(context) as memory:
            reply = ask(self._desk, request, memory)
            if not isinstance(reply, pb.ActReply):
                reply = await _awaited(reply)
        reply = self._held(reply, context)
        if reply.busy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy: {reply.busy}")
        return reply

    def _held(self, reply: pb.ActReply, context: Any) -> pb.ActReply:
        """The reply of a call, counted until it is sent where it is large."""
        size, unread = reply.ByteSize(), self._unread
        if not unread.has_room(size, 0):
            self.figures.refusals["busy"] += 1
            return pb.ActReply(id=reply.id, busy=UNREAD)
        if size > SPARED_BYTES:
            unread.grow(size)
            context.add_done_callback(lambda _: unread.grow(-size))
        return reply

    async def ActStream(self, request_iterator: Any, context: Any) -> None:
        """Answers are written as they come; the stream ends when all that was asked is answered."""
        with self._memory_of(context) as memory:
            conversation = Conversation(context, self._desk, memory, self._unread)
            self._conversations.add(conversation)
            if self._draining:  # the stream was on its way when the service was told to end
                conversation.drain()
            self.figures.streams += 1
            try:
                await conversation.run()
            finally:
                self.figures.streams -= 1
                self._conversations.discard(conversation)

    def _memory_of(self, context: Any) -> contextlib.AbstractContextManager[Memory | None]:
        """That of the client; None where it has no name."""
        client = dict(context.invocation_metadata()).get(codec.CLIENT)
        return self._memories.of(client) if client else contextlib.nullcontext()

    def drain(self) -> None:
        """Read no more questions; streams end once theirs are answered."""
        self._draining = True
        for conversation in list(self._conversations):
            conversation.drain()


class Health(health_pb2_grpc.HealthServicer):
    """gRPC's health service. Who watches is told of the end, and does not hold it up."""

    def __init__(self) -> None:
        self._ending = asyncio.Event()

    def end(self) -> None:
        self._ending.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        if request.service not in SERVED:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return self._status(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        await context.write(self._status(request.service))
        await self._ending.wait()
        await context.write(self._status(request.service))

    def _status(self, served: str) -> health_pb2.HealthCheckResponse:
        word = "NOT_SERVING" if self._ending.is_set() else "SERVING"
        return health_pb2.HealthCheckResponse(status=word if served in SERVED else "SERVICE_UNKNOWN")


async def _awaited(asked: Asked) -> pb.ActReply:
    asked.owner = own = object()
    asked.question.resume()
    try:
        await asyncio.wait([asked.question.answer])
    finally:
        if asked.owner is own:
            asked.question.withdraw()  # where nobody waits any more
    return asked.reply or pb.ActReply(id=asked.id, busy="another call under the same id was given up")


@dataclass(frozen=True)
class RunningServer:
    """A service that answers until it is stopped."""

    server: grpc.aio.Server
    service: ExpertOracleService
    batcher: Batcher
    health: Health
    address: str  # host:port
    metrics: Any  # the HTTP server that Prometheus asks, or None

    async def stop(self, grace_s: float) -> bool:
        """Say NOT_SERVING and answer what was asked, for at most `grace_s`. Whether the expert is left."""
        event("draining", waiting_rows=self.batcher.figures.waiting_rows)
        self.health.end()
        self.service.drain()
        await self.server.stop(grace_s)
        is_left = self.batcher.close()
        if self.metrics is not None:
            self.metrics.shutdown()
            self.metrics.server_close()
        if is_left:
            event("left the expert in mid-call", logging.WARNING, grace_s=grace_s)
        event("stopped")
        return is_left


def leave() -> NoReturn:
    """End the process, whose last thread would otherwise be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def start(
    oracle: Oracle,
    *,
    address: str,
    name: str = "expert",
    env_id: str = "",
    max_batch: int = 4096,
    max_delay_s: float = 0.0,
    max_waiting: int = 65_536,
    access: ServerAccess = OPEN,
    metrics_address: str = "",
    share_port: bool = False,
) -> RunningServer:
    """Serve `oracle` on `host:port`, where port 0 is any free one. Returns when it answers.

    With `share_port` several processes may listen on the same port; each connection goes to one of them.
    """
    at_once, figures = not asks_people(oracle), Figures()
    oracle, description = _described(oracle, name, env_id)
    batcher = Batcher(
        oracle,
        max_batch=max_batch,
        max_delay_s=max_delay_s,
        max_waiting=max_waiting,
        at_once=at_once,
        figures=figures,
    )
    space = description.observation_space if description.HasField("observation_space") else None
    desk = Desk(batcher, space, figures)
    service = ExpertOracleService(description, desk, asks_for_token=bool(access.token_file))
    health_service = Health()
    server = _server(service, health_service, access, share_port)
    port = listen(server, address, access)
    metrics = expose(figures, metrics_address) if metrics_address else None
    await server.start()
    bound = f"{address.rpartition(':')[0]}:{port}"
    event("serving", address=bound, expert=name, env=env_id, tls=bool(access.tls_cert))
    return RunningServer(server, service, batcher, health_service, bound, metrics)


def _server(
    service: ExpertOracleService, health_service: Health, access: ServerAccess, share_port: bool
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=access.interceptors(service.figures),
        options=[*OPTIONS, ("grpc.so_reuseport", int(share_port))],
        maximum_concurrent_rpcs=MAX_RPCS,
    )
    server.add_generic_rpc_handlers((_handler(service),))
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


def _handler(service: ExpertOracleService) -> grpc.GenericRpcHandler:
    """As the generated code has it, but for requests that cannot be parsed: they are no error of ours."""
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    describe = unary(service.Describe, _unread, pb.DescribeReply.SerializeToString)
    act = unary(service.Act, _parsed, pb.ActReply.SerializeToString)
    act_stream = stream(service.ActStream, _parsed, pb.ActReply.SerializeToString)
    methods = {"Describe": describe, "Act": act, "ActStream": act_stream}
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _parsed(data: bytes) -> pb.ActRequest | str:
    """The request, or why it is none."""
    if (why := wire.fault(data, pb.ActRequest.DESCRIPTOR)) is not None:
        return f"{GARBAGE}: {why}"
    try:
        return pb.ActRequest.FromString(data)
    except DecodeError:
        return GARBAGE


def _unread(_: bytes) -> pb.DescribeRequest:
    """It has no fields; whatever else is sent is not looked at."""
    return pb.DescribeRequest()


def listen(server: grpc.aio.Server, address: str, access: ServerAccess, *, option: str = "--address") -> int:
    """The port that it listens on. Raises OracleError where it cannot."""
    credentials = access.credentials()
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        bindable(address, option)
        raise OracleError(f"cannot listen on {address}: {error}") from None


def bindable(address: str, option: str = "--address") -> tuple[Any, ...]:
    """What `getaddrinfo` says of `host:port`. OracleError, with what to do, where one cannot listen."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0]) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(found[4])
    except socket.gaierror as error:
        raise OracleError(f"cannot listen on {address}: {host} is not known: {error.strerror}") from None
    except (OSError, OverflowError) as error:
        why = REASONS.get(getattr(error, "errno", 0), "").format(option=option)
        raise OracleError(f"cannot listen on {address}: {why or error}") from None
    return found


def asks_people(oracle: Any) -> bool:
    """Whether people answer, be it as one of several: they are quick with what they were asked before."""
    if getattr(oracle, "asks_people", False):
        return True
    members = getattr(oracle, "members", None)
    inside = [getattr(oracle, "oracle", None), *(members if isinstance(members, list) else [])]
    return any(asks_people(one) for one in inside if isinstance(one, Oracle))


def _described(oracle: Oracle, name: str, env_id: str) -> tuple[Oracle, pb.DescribeReply]:
    """What the service says of itself; with an environment the expert is held to its spaces."""
    description = pb.DescribeReply()
    if (said := described(oracle, name)) is not None:
        description.CopyFrom(said)
    description.name, description.version, description.max_packed = name, tutelage.__version__, MAX_PACKED
    if env_id:
        observation_space, action_space = _spaces(env_id)
        oracle = QuicklyChecked(checked(oracle, observation_space, action_space, name))
        description.env_id = env_id
        description.observation_space.CopyFrom(codec.describe_space(observation_space))
        description.action_space.CopyFrom(codec.describe_space(action_space))
    return oracle, description


def _spaces(env_id: str) -> tuple[Any, Any]:
    import gymnasium

    try:
        env = gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"environment {env_id!r} cannot be made: {error}") from None
    with env:
        return env.observation_space, env.action_space


def serve(
    oracle: Oracle,
    *,
    address: str = "127.0.0.1:50051",
    name: str = "expert",
    grace_s: float = GRACE_S,
    **settings: Any,
) -> None:
    """Serve `oracle` until SIGTERM or SIGINT; `settings` are those of `start`."""

    async def run() -> bool:
        stop = asked_to_end()
        running = await start(oracle, address=address, name=name, **settings)
        print(f"expert {name} answers on grpc://{running.address}", flush=True)
        await stop.wait()
        return await running.stop(grace_s)

    if asyncio.run(run()):
        leave()


def asked_to_end(parent: int | None = None) -> asyncio.Event:
    """Set by SIGTERM and SIGINT, and when the parent at the other end of a pipe is gone."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent is not None:
        loop.add_reader(parent, stop.set)
    return stop
