"""The expert service: `python -m benchmarks.oracle [--json] [CASE...]`.

Service and client talk over the loopback; in turns with them a bare gRPC echo and its client, with asyncio on
both ends, the same bytes and as many messages in flight. Seconds are those of the wall, as two processes are
at work: let nothing else run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import numpy as np

from actors.collect import Collector
from actors.forward import random_actor
from benchmarks.common import Row, row, run
from expert_oracle import probing
from expert_oracle.links import CLIENT_OPTIONS
from expert_oracle.remote import RemoteOracle
from expert_oracle.server import OPTIONS as SERVER_OPTIONS
from expert_oracle.shared_loop import shared_loop
from tutelage import codec
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import EnvRecipe

ENV = "HalfCheetah-v5"
INPUTS, ACTIONS = 17, 6
TURNS = 9
MESSAGES = 400
IN_FLIGHT = 16


def observations(N: int) -> np.ndarray:
    return np.random.default_rng(0).random((N, INPUTS), np.float32)


class Expert:
    """Always the same action, after a while: so long for a call, and so long for each of its states."""

    def __init__(self, seconds: float = 0.0, seconds_a_state: float = 0.0) -> None:
        self.seconds, self.seconds_a_state = seconds, seconds_a_state

    def act(self, obs: np.ndarray) -> np.ndarray:
        if takes := self.seconds + self.seconds_a_state * len(obs):
            time.sleep(takes)
        return np.zeros((len(obs), ACTIONS), np.float32)


@contextlib.contextmanager
def serving(*arguments: str, env: str = ENV) -> Iterator[str]:
    """A service in a process of its own; gives its address."""
    command = [sys.executable, "-m", "services.cli", "oracle", "serve", "benchmarks.oracle:Expert"]
    command += [*arguments, "--env", env, "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().partition("grpc://")[2].split()[0]
        finally:
            child.kill()


# The bare echo


def echo_forever(pipe: Any, reply: bytes) -> None:
    """A server that reads bytes and answers with the ones it was given."""

    async def stream(_: Any, context: Any) -> None:
        while isinstance(await context.read(), bytes):
            await context.write(reply)

    async def unary(_: bytes, context: Any) -> bytes:
        return reply

    methods = {
        "/echo/Stream": grpc.stream_stream_rpc_method_handler(stream),
        "/echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
    }

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
            return methods.get(handler_call_details.method)

    async def serve() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(serve())


class Echo:
    """A client of it, that sends what our client would."""

    def __init__(self, address: str, request: bytes) -> None:
        self.request = request
        self.channel = grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        self.stream: Any = self.channel.stream_stream("/echo/Stream")()
        self.unary: Any = self.channel.unary_unary("/echo/Unary")

    async def one_by_one(self, messages: int) -> list[float]:
        """Seconds of each on the stream."""
        taken = []
        for _ in range(messages):
            start = time.perf_counter()
            await self.stream.write(self.request)
            await self.stream.read()
            taken.append(time.perf_counter() - start)
        return taken

    async def unary_calls(self, messages: int) -> list[float]:
        taken = []
        for _ in range(messages):
            start = time.perf_counter()
            await self.unary(self.request)
            taken.append(time.perf_counter() - start)
        return taken

    async def windowed(self, messages: int) -> float:
        """Seconds for all, with `IN_FLIGHT` under way."""
        room = asyncio.Semaphore(IN_FLIGHT)

        async def write() -> None:
            for _ in range(messages):
                await room.acquire()
                await self.stream.write(self.request)

        start, writer = time.perf_counter(), asyncio.create_task(write())
        for _ in range(messages):
            await self.stream.read()
            room.release()
        await writer
        return time.perf_counter() - start


def wire(batch: int) -> tuple[bytes, bytes]:
    """Request and reply as they travel."""
    request, reply = pb.ActRequest(id=1000, oldest=1000), pb.ActReply(id=1000)
    codec.encode_into(request.obs, observations(batch), "obs")
    codec.encode_into(reply.actions, np.zeros((batch, ACTIONS), np.float32), "actions")
    return request.SerializeToString(), reply.SerializeToString()


@contextlib.contextmanager
def echoing(batch: int) -> Iterator[Echo]:
    request, reply = wire(batch)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=echo_forever, args=(theirs, reply), daemon=True)
    child.start()

    async def connect(address: str) -> Echo:
        return Echo(address, request)

    try:
        yield shared_loop().run(connect(ours.recv()))
    finally:
        child.kill()


# Cases


def in_turns(*sides: Callable[[], float]) -> list[list[float]]:
    """What each side returns, called in turns; the first turn warms up."""
    return list(zip(*[[side() for side in sides] for _ in range(TURNS + 1)][1:], strict=True))  # type: ignore[return-value]


def stream() -> Iterable[Row]:
    """Labels a second at batch 64, with one and with 16 questions in flight."""
    obs = observations(64)
    many = np.concatenate([obs] * MESSAGES)
    with serving() as address, echoing(64) as echo:
        for in_flight, asked, reach in ((IN_FLIGHT, many, 0.8), (1, obs, None)):
            oracle = RemoteOracle([address], max_rows=64, window=in_flight)
            calls = len(many) // len(asked)
            turns = in_turns(
                partial(our_seconds, oracle, asked, calls), partial(echo_seconds, echo, in_flight)
            )
            ours, reference = (64 * MESSAGES / statistics.median(side) for side in turns)
            yield row(
                "oracle",
                f"batch 64 on a stream, {in_flight} in flight",
                ours=ours,
                against="bare gRPC echo",
                reference=reference,
                unit="labels/s",
                reach=reach,
            )


def our_seconds(oracle: RemoteOracle, obs: np.ndarray, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        oracle.act(obs)
    return time.perf_counter() - start


def echo_seconds(echo: Echo, in_flight: int) -> float:
    if in_flight > 1:
        return shared_loop().run(echo.windowed(MESSAGES))
    return sum(shared_loop().run(echo.one_by_one(MESSAGES)))


def latency() -> Iterable[Row]:
    """Milliseconds of one question at a time."""
    with serving() as address:
        oracle = RemoteOracle([address])
        for batch in (1, 64, 1024):
            obs = observations(batch)
            with echoing(batch) as echo:
                for rpc, ours, reference in (
                    ("unary", probing.unary_seconds, echo.unary_calls),
                    ("stream", probing.stream_seconds, echo.one_by_one),
                ):
                    figures = probing.latency(ours(oracle, obs, 2.0))
                    beside = probing.latency(shared_loop().run(reference(4 * MESSAGES)))
                    yield from latency_rows(f"{rpc}, batch {batch}", figures, beside)


def latency_rows(case: str, ours: dict[str, float], reference: dict[str, float]) -> Iterable[Row]:
    for key in ("p50_ms", "p99_ms"):
        yield row(
            "oracle",
            f"{case}, {key.removesuffix('_ms')}",
            ours=ours[key],
            against="bare gRPC echo",
            reference=reference[key],
            unit="ms",
            smaller_is_better=True,
        )


def joining() -> Iterable[Row]:
    """16 callers of an expert that takes 5 ms for a forward of any size."""
    obs = observations(8)
    with serving("seconds=0.005") as joined, serving("seconds=0.005", "--max-batch", "1") as alone:
        rates = [concurrent_rate(address, obs) for address in (joined, alone)]
    yield row(
        "oracle",
        "16 callers of a 5 ms expert, batch 8",
        ours=rates[0],
        against="each question a forward of its own",
        reference=rates[1],
        unit="labels/s",
        reach=2,
    )


def concurrent_rate(address: str, obs: np.ndarray, callers: int = 16, seconds: float = 4.0) -> float:
    """Labels a second of so many threads, each with a client of its own."""
    end = time.perf_counter() + seconds

    def ask(oracle: RemoteOracle) -> int:
        calls = 0
        while time.perf_counter() < end:
            oracle.act(obs)
            calls += 1
        return calls

    with ThreadPoolExecutor(callers) as pool:
        calls = sum(pool.map(ask, [RemoteOracle([address]) for _ in range(callers)]))
    return calls * len(obs) / seconds


def slow_expert() -> Iterable[Row]:
    """Steps a second of DAgger with β = 0 when the expert takes 50 ms for a forward, beside a free one."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with serving("seconds=0.05") as slow, serving() as free, tempfile.TemporaryDirectory() as folder:
        trainers = [trainer(address, f"{folder}/{k}") for k, address in enumerate((slow, free))]
        for each in trainers:
            seconds_per_step(each)
        pairs = [seconds_of_both(trainers, turn) for turn in range(TURNS)]
        for each in trainers:
            each.stop()
    ray.shutdown()
    reference = 1 / statistics.median(free for _, free in pairs)
    ours = reference * statistics.median(free / slow for slow, free in pairs)  # each beside its own neighbour
    yield row(
        "oracle",
        f"a 50 ms expert labels {ENV} in flight, β = 0",
        ours=ours,
        against="a free expert",
        reference=reference,
        unit="steps/s",
        reach=0.95,
    )


def seconds_of_both(trainers: Sequence[Any], turn: int) -> tuple[float, float]:
    """Of both trainers, now this one first, now the other."""
    order = (0, 1) if turn % 2 == 0 else (1, 0)
    seconds = {n: seconds_per_step(trainers[n]) for n in order}
    return seconds[0], seconds[1]


def trainer(address: str, folder: str) -> Any:
    from services.trainer_config import TrainerConfig

    config = (
        TrainerConfig()
        .environment(ENV)
        .env_runners(num_env_runners=1, num_envs_per_env_runner=16, rollout_fragment_length=128)
        .expert(oracle=f"grpc://{address}")
        .method("dagger", beta="0")
        .training(num_epochs=1, minibatch_size=4096)  # the learner is not what is measured
        .collection(asynchronous=True)
        .evaluation(evaluation_interval=None)
        .storage(run_directory=folder)
    )
    return config.build_algo()


def seconds_per_step(trainer: Any, rounds: int = 8) -> float:
    before, start = trainer.env_steps, time.perf_counter()
    for _ in range(rounds):
        trainer.train()
    return (time.perf_counter() - start) / (trainer.env_steps - before)


def halves() -> Iterable[Row]:
    """Steps a second of the mixture; the expert takes as long for a state as the environment for a step."""
    with serving("seconds_a_state=0.0002") as address:
        turns = in_turns(*(partial(_mixed_seconds, address, in_halves) for in_halves in (True, False)))
    ours, reference = (1 / statistics.median(side) for side in turns)
    yield row(
        "oracle",
        f"an expert of 0.2 ms a state acts in 32 {ENV}, β = 0.5, asked in halves",
        ours=ours,
        against="asked about all at once",
        reference=reference,
        unit="steps/s",
    )


def _mixed_seconds(address: str, in_halves: bool, steps: int = 100, num_envs: int = 32) -> float:
    """Seconds a step."""
    collector = Collector(EnvRecipe(ENV), num_envs, reproducible=True, in_halves=in_halves)
    oracle = RemoteOracle([address])
    act = random_actor(collector.envs.action_space, 0)
    collector.collect(act, 2, beta=0.5, oracle=oracle)
    start = time.perf_counter()
    collector.collect(act, steps, beta=0.5, oracle=oracle)
    seconds = time.perf_counter() - start
    collector.close()
    oracle.close()
    return seconds / (steps * num_envs)


CASES: dict[str, Any] = {
    "stream": stream,
    "latency": latency,
    "joining": joining,
    "slow-expert": slow_expert,
    "halves": halves,
}

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(CASES)
