"""What a service says of itself and how quick it is: `tutelage oracle ping` and `tutelage oracle bench`."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import tree
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expert_oracle.access import ClientAccess
from expert_oracle.links import CLIENT_OPTIONS
from expert_oracle.remote import RemoteOracle
from expert_oracle.shared_loop import shared_loop
from tutelage import codec
from tutelage.errors import OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc
from tutelage.types import Tree

T = TypeVar("T")

SERVICE_CONFIG = Path(pb.__file__).with_name("service_config.json").read_text()
"""What gRPC itself tries again, for clients in any language."""
OPTIONS = [*CLIENT_OPTIONS, ("grpc.service_config", SERVICE_CONFIG)]
PINGS = 20
TIMEOUT_S = 10.0
IN_FLIGHT = 16


def zeros(space: pb.Space, N: int) -> Tree:
    """Observations [N, ...] of a space, all zero, or the first where zero is not of it."""
    match space.WhichOneof("kind"):
        case "dict":
            return {key: zeros(part, N) for key, part in space.dict.spaces.items()}
        case "tuple":
            return tuple(zeros(part, N) for part in space.tuple.spaces)
        case "discrete":
            return np.full(N, space.discrete.start)
        case "multi_discrete":
            return np.tile(codec.decode_tensor(space.multi_discrete.start), (N, 1))
        case "multi_binary":
            return np.zeros((N, *space.multi_binary.shape), np.int8)
        case "box":
            return np.zeros((N, *space.box.shape), space.box.dtype)
    raise OracleError(
        "the service does not say what observations it takes: serve it with --env, or give --shape"
    )


def ping(oracle: RemoteOracle) -> dict[str, Any]:
    """Who answers, its health, and the milliseconds that `Describe` takes there and back."""
    said = oracle.describe()
    health, needless, seconds = _run(_ping(oracle.addresses[0], oracle.access))
    return {
        "address": oracle.addresses[0],
        "name": said.name,
        "version": said.version,
        "env": said.env_id,
        "observation_space": codec.space_text(said.observation_space),
        "action_space": codec.space_text(said.action_space),
        "health": health,
        "needless_token": oracle.access.token_source() if needless else None,
        **latency(seconds),
    }


async def _ping(address: str, access: ClientAccess) -> tuple[str, bool, list[float]]:
    async with access.channel(address, OPTIONS) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
        names = access.metadata()
        seconds, needless = [], False
        for _ in range(PINGS):
            start = time.perf_counter()
            call = stub.Describe(pb.DescribeRequest(), timeout=TIMEOUT_S, metadata=names)
            await call
            seconds.append(time.perf_counter() - start)
            needless = dict(await call.trailing_metadata() or ()).get(codec.NEEDLESS) == "token"
        return await _health(health), needless, seconds


async def _health(stub: Any) -> str:
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        missing = error.code() == grpc.StatusCode.UNIMPLEMENTED
        return "not offered" if missing else f"unknown ({error.code().name})"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def bench(
    oracle: RemoteOracle, obs: Callable[[int], Tree], *, batches: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """One row for each batch size and way of asking, each measured for so many seconds."""
    for batch in batches:
        one = obs(batch)
        ways = {
            "unary": lambda one=one: unary_seconds(oracle, one, seconds),
            "stream": lambda one=one: stream_seconds(oracle, one, seconds),
        }
        for rpc, measure in ways.items():
            taken = measure()
            yield {"rpc": rpc, "batch": batch, "in_flight": 1, **_rate(batch, taken), **latency(taken)}
        many = tree.map_structure(lambda leaf: np.concatenate([leaf] * IN_FLIGHT), one)
        taken = stream_seconds(oracle.with_settings(max_rows=batch, window=IN_FLIGHT), many, seconds)
        yield {
            "rpc": "stream",
            "batch": batch,
            "in_flight": IN_FLIGHT,
            **_rate(batch * IN_FLIGHT, taken),
            **latency(taken),
        }


def unary_seconds(oracle: RemoteOracle, obs: Tree, seconds: float) -> list[float]:
    """What each call of `Act` took, one after the other."""
    return _run(_unary(oracle.addresses[0], oracle.access, obs, seconds))


async def _unary(address: str, access: ClientAccess, obs: Tree, seconds: float) -> list[float]:
    names, taken = access.metadata(), []
    async with access.channel(address, OPTIONS) as channel:
        stub: Any = oracle_pb2_grpc.ExpertOracleStub(channel)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            request = pb.ActRequest()
            codec.encode_into(request.obs, obs, "obs")
            reply = await stub.Act(request, timeout=TIMEOUT_S, metadata=names)
            if reply.WhichOneof("result") != "actions":
                raise OracleError(f"the expert at {address} could not answer: {reply.error or reply.busy}")
            codec.decode(reply.actions, "actions")
            taken.append(time.perf_counter() - start)
    return taken[len(taken) // 10 :]


def stream_seconds(oracle: RemoteOracle, obs: Tree, seconds: float) -> list[float]:
    """What each call of `act` took, one after the other; the first tenth is for warming up."""
    taken, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        oracle.act(obs)
        taken.append(time.perf_counter() - start)
    return taken[len(taken) // 10 :]


def _rate(rows: int, seconds: Sequence[float]) -> dict[str, float]:
    return {"labels_per_s": round(rows * len(seconds) / sum(seconds), 1)}


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, and what one in a hundred exceeds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": round(1e3 * p50, 3), "p99_ms": round(1e3 * p99, 3)}


def _run(work: Coroutine[Any, Any, T]) -> T:
    """On the loop that all of gRPC shares; what the service refuses is one line."""
    try:
        return shared_loop().run(work)
    except grpc.aio.AioRpcError as error:
        raise OracleError(f"the service refused: {error.code().name}: {error.details()}") from None
