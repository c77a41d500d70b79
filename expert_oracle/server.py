"""The expert service: any `Oracle` behind gRPC, with the questions that wait joined into one forward.

    serve(OracleSpec("scripted:cartpole").build(), env_id="CartPole-v1", address="127.0.0.1:50051")

is what `tutelage oracle serve` does. It prints one line when it is ready. SIGTERM and SIGINT end it once what
was asked is answered.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import tutelage
from expert_oracle.batching import Batcher
from expert_oracle.loading import checked, described
from tutelage import codec
from tutelage.errors import ConfigError, OracleError, TutelageError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc
from tutelage.protocols import Oracle
from tutelage.types import Tree

SERVICE = pb.DESCRIPTOR.services_by_name["ExpertOracle"].full_name
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.max_receive_message_length", codec.MAX_BYTES + 2**20),
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a replica
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),  # a client that was busy sends its keepalives in a burst
    ("grpc.max_connection_age_ms", 30 * 60_000),  # spreads clients over new replicas
    ("grpc.max_connection_age_grace_ms", 60_000),
]


class ExpertOracleService(oracle_pb2_grpc.ExpertOracleServicer):
    """The RPCs of `oracle.proto`."""

    def __init__(self, description: pb.DescribeReply, batcher: Batcher) -> None:
        self._description = description
        self._batcher = batcher
        self._idle: set[asyncio.Task[Any]] = set()  # streams that wait for a question
        self._draining = False

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
        return self._description

    async def Act(self, request: pb.ActRequest, context: Any) -> pb.ActReply:
        answer = self._ask(request)
        if not answer.done():
            await asyncio.wait([answer])
        return _reply(request.id, answer)

    async def ActStream(self, request_iterator: Any, context: Any) -> None:
        """Answers are written as they come; the stream ends when all that was asked is answered."""
        writing = asyncio.Lock()
        unanswered: set[asyncio.Task[None]] = set()

        async def write(request_id: int, answer: asyncio.Future[Tree]) -> None:
            if not answer.done():
                await asyncio.wait([answer])
            async with writing:
                await context.write(_reply(request_id, answer))

        async for request in self._requests(context):
            answer = self._ask(request)
            if answer.done():
                await write(request.id, answer)
            else:
                task = asyncio.create_task(write(request.id, answer))
                unanswered.add(task)
                task.add_done_callback(unanswered.discard)
        if unanswered:
            await asyncio.wait(unanswered)

    async def _requests(self, context: Any) -> AsyncIterator[pb.ActRequest]:
        """What the client asks, until it hangs up or the service drains."""
        task = asyncio.current_task()
        assert task is not None
        while not self._draining:
            self._idle.add(task)
            try:
                request = await context.read()
            except asyncio.CancelledError:
                if self._draining:
                    return
                raise
            finally:
                self._idle.discard(task)
            if not isinstance(request, pb.ActRequest):
                return
            yield request

    def _ask(self, request: pb.ActRequest) -> asyncio.Future[Tree]:
        try:
            obs = codec.decode(request.obs, "obs")
            if self._description.HasField("observation_space"):
                codec.check_batch(obs, self._description.observation_space, "obs")
            return self._batcher.ask(obs)
        except ValueError as error:
            refused: asyncio.Future[Tree] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    def drain(self) -> None:
        """Read no more questions; streams end once theirs are answered."""
        self._draining = True
        for task in list(self._idle):
            task.cancel()


def _reply(request_id: int, answer: asyncio.Future[Tree]) -> pb.ActReply:
    error = answer.exception()
    try:
        if error is None:
            reply = pb.ActReply(id=request_id)
            codec.encode_into(reply.actions, answer.result(), "actions")
            return reply
    except ValueError as encoding_error:
        error = encoding_error
    return pb.ActReply(id=request_id, error=_one_line(error))


def _one_line(error: BaseException) -> str:
    kind = "" if isinstance(error, ValueError | TutelageError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


@dataclass(frozen=True)
class RunningServer:
    """A service that answers until it is stopped."""

    server: grpc.aio.Server
    service: ExpertOracleService
    batcher: Batcher
    health: Any  # grpc_health's servicer
    address: str  # host:port

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, answer what was asked, for at most `grace_s`, and leave."""
        await self.health.enter_graceful_shutdown()
        self.service.drain()
        await self.server.stop(grace_s)
        self.batcher.close()


async def start(
    oracle: Oracle,
    *,
    address: str,
    name: str = "expert",
    env_id: str = "",
    max_batch: int = 4096,
    max_delay_s: float = 0.0,
) -> RunningServer:
    """Serve `oracle` on `host:port`, where port 0 is any free one. Returns when it answers."""
    oracle, description = _described(oracle, name, env_id)
    batcher = Batcher(oracle, max_batch=max_batch, max_delay_s=max_delay_s)
    service = ExpertOracleService(description, batcher)
    health_service: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    server = grpc.aio.server(options=OPTIONS)
    oracle_pb2_grpc.add_ExpertOracleServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OracleError(f"cannot listen on {address}; is the port taken? ({error})") from None
    await server.start()
    for served in ("", SERVICE):
        await health_service.set(served, health_pb2.HealthCheckResponse.SERVING)
    return RunningServer(server, service, batcher, health_service, f"{address.rpartition(':')[0]}:{port}")


def _described(oracle: Oracle, name: str, env_id: str) -> tuple[Oracle, pb.DescribeReply]:
    """What the service says of itself; with an environment the expert is held to its spaces."""
    description = pb.DescribeReply()
    if (said := described(oracle, name)) is not None:
        description.CopyFrom(said)
    description.name, description.version = name, tutelage.__version__
    if env_id:
        observation_space, action_space = _spaces(env_id)
        oracle = checked(oracle, observation_space, action_space, name)
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
    env_id: str = "",
    max_batch: int = 4096,
    max_delay_s: float = 0.0,
    grace_s: float = 10.0,
) -> None:
    """Serve `oracle` until SIGTERM or SIGINT. `max_batch`: rows in one forward, of several questions."""

    async def run() -> None:
        running = await start(
            oracle, address=address, name=name, env_id=env_id, max_batch=max_batch, max_delay_s=max_delay_s
        )
        print(f"expert {name} answers on grpc://{running.address}", flush=True)
        await _signalled()
        await running.stop(grace_s)

    asyncio.run(run())


async def _signalled() -> None:
    """Return once the process is asked to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
