"""The expert service over real sockets, in this process and in others that are killed."""

import asyncio
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from expert_oracle import batching, server
from expert_oracle.human import HumanOracle
from expert_oracle.loading import FunctionOracle, OracleSpec, checked
from expert_oracle.remote import RemoteOracle
from expert_oracle.scripted import SCRIPTED
from tests.oracle_services import (
    FIRST_TWO,
    OBS,
    ROOT,
    SERVE,
    free_port,
    process,
    request,
    running,
    serving,
    stub_of,
)
from tutelage import codec, plugins
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb

HERE = str(Path(__file__).with_name("oracles.py"))
Slow = plugins.load(f"{HERE}:Slow")


def forged(**tensor):
    return pb.ActRequest(id=3, obs=pb.Tree(tensor=pb.Tensor(**tensor)))


def test_describe_act_and_stream():
    with serving(SCRIPTED["cartpole"], name="me", env_id="CartPole-v1") as address:
        oracle = RemoteOracle([address])
        description = oracle.describe()
        assert (description.name, description.env_id) == ("me", "CartPole-v1")
        assert codec.space_text(description.action_space) == "Discrete(2)"
        obs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        expected = SCRIPTED["cartpole"].act(obs)
        np.testing.assert_array_equal(oracle.act(obs), expected)
        with grpc.insecure_channel(address) as channel:
            reply = stub_of(channel).Act(request(obs, 7))
        assert reply.id == 7
        np.testing.assert_array_equal(codec.decode(reply.actions), expected)
        oracle.close()


def test_nested_observations_and_actions():
    swap = FunctionOracle(lambda obs: {"arm": obs["b"][0], "leg": obs["a"]})
    with serving(swap) as address:
        oracle = RemoteOracle([address], max_rows=3)
        actions = oracle.act({"a": OBS, "b": (OBS + 1, OBS)})
    np.testing.assert_array_equal(actions["arm"], OBS + 1)
    np.testing.assert_array_equal(actions["leg"], OBS)


def test_large_requests_are_split_and_come_back_in_order():
    obs = np.arange(10_007 * 5, dtype=np.float64).reshape(-1, 5)
    slow = Slow(0.001)
    with serving(slow) as address:
        np.testing.assert_array_equal(RemoteOracle([address], max_rows=64).act(obs), obs[:, :2])
    assert sum(slow.batches) == len(obs)
    assert len(slow.batches) < 10_007 / 64  # pieces in flight at once shared a forward


def test_images_beyond_the_default_message_limit():
    frames = np.random.default_rng(0).integers(0, 255, (1100, 84, 84, 1), np.uint8)
    with serving(FunctionOracle(lambda obs: obs[:, 0, 0])) as address:
        np.testing.assert_array_equal(RemoteOracle([address]).act(frames), frames[:, 0, 0])


def test_concurrent_callers_share_a_forward():
    slow = Slow(0.02)
    with serving(slow, max_delay_s=0.05, max_batch=512) as address:
        oracles = [RemoteOracle([address]) for _ in range(8)]

        def ask(oracle):
            for _ in range(5):
                np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, oracles))
    assert sum(slow.batches) == 8 * 5 * 64
    assert len(slow.batches) <= 20  # of 40 calls
    assert max(slow.batches) <= 512


def test_two_threads_share_one_client():
    with serving(Slow(0.005)) as address:
        oracle = RemoteOracle([address], max_rows=16)

        def ask(k):
            for i in range(20):
                np.testing.assert_array_equal(oracle.act(OBS * k + i), OBS[:, :2] * k + i)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, [1, 2]))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.ActRequest(id=3), "obs: empty"),
        (
            pb.ActRequest(id=3, obs=pb.Tree(tensor=pb.Tensor(dtype="object", shape=[1]))),
            "unknown dtype 'object'",
        ),
        (forged(dtype="float32", shape=[2**40, 4]), "0 bytes do not make float32"),
        (request(np.zeros((4, 3), np.float32), 3), "obs: expected shape (N, 4), got (4, 3)"),
        (request(np.zeros((4, 4), int), 3), "obs: expected floating-point numbers, got int64"),
        (request(np.float32(1), 3), "obs: expected arrays with a leading axis N"),
        (request({"a": np.zeros((4, 4))}, 3), "obs: expected a tensor, got a map with ['a']"),
    ],
)
def test_bad_requests_are_answered_on_their_id_and_the_stream_goes_on(message, words):
    obs = np.ones((2, 4), np.float32)
    with (
        serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as address,
        grpc.insecure_channel(address) as channel,
    ):
        replies = list(stub_of(channel).ActStream(iter([request(obs, 1), message, request(obs, 2)])))
    by_id = {reply.id: reply for reply in replies}
    assert sorted(by_id) == [1, 2, 3]
    assert words in by_id[3].error
    assert by_id[1].WhichOneof("result") == by_id[2].WhichOneof("result") == "actions"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            forged(dtype="float32", shape=[2**31 - 1, 0]),
            "2,147,483,647 states in one question, more than",
        ),
        (forged(dtype="float32", shape=[5, 3, 0]), "obs: 5 states that hold nothing"),
        (request((np.zeros((3, 0)), np.zeros((3, 0))), 3), "obs: 3 states that hold nothing"),
        (request(np.zeros((65_537, 1), np.uint8), 3), "obs: 65,537 states in one question, more than 65,536"),
    ],
)
def test_more_states_than_anybody_asks_for_are_not_put_to_the_expert(message, words):
    expert = Slow(0.0)
    with running(expert) as service, grpc.insecure_channel(service.address) as channel:
        replies = list(stub_of(channel).ActStream(iter([message, request(OBS, 1)])))
        assert service.service.figures.rows == 64
    by_id = {reply.id: reply for reply in replies}
    assert words in by_id[3].error
    assert by_id[1].WhichOneof("result") == "actions"
    assert expert.batches == [64]


def test_some_parts_of_a_state_may_hold_nothing():
    expert = FunctionOracle(lambda obs: obs["a"])
    with serving(expert, max_waiting=16) as address:
        actions = RemoteOracle([address]).act({"a": OBS, "b": np.zeros((64, 0))})
    np.testing.assert_array_equal(actions, OBS)


def test_garbage_ends_its_own_stream_only():
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        raw = channel.stream_stream("/tutelage.v1.ExpertOracle/ActStream")
        with pytest.raises(grpc.RpcError):
            list(raw(iter([b"\xff" * 100])))
        np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


def test_an_expert_that_fails_answers_only_the_guilty_with_an_error():
    with serving(Slow(0.05), max_delay_s=0.1) as address:
        good, bad = RemoteOracle([address]), RemoteOracle([address])
        with ThreadPoolExecutor(2) as pool:
            answers = pool.submit(good.act, OBS), pool.submit(bad.act, -OBS)
            np.testing.assert_array_equal(answers[0].result(), OBS[:, :2])
            with pytest.raises(
                OracleError, match=f"{address} could not answer: RuntimeError: negative numbers$"
            ):
                answers[1].result()
        np.testing.assert_array_equal(bad.act(OBS), OBS[:, :2])


class Choosy:
    """Fails by `error` where a row is among the guilty; notes how large its batches were."""

    def __init__(self, guilty, error=RuntimeError):
        self.guilty, self.error = guilty, error
        self.go = threading.Event()
        self.batches = []

    def act(self, obs):
        self.batches.append(len(obs))
        if obs[0, 0] < 0:
            self.go.wait(20)
        elif np.isin(obs[:, 0], self.guilty).any():
            raise self.error("no")
        return obs


def told(call, number):
    """The reply of a call, or one that says that the service is busy."""
    if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return pb.ActReply(id=number, busy=call.details())
    return call.result()


def joined(service, expert, n, then=lambda: None):
    """The replies of n questions that share one call, by their ids, and how large that call's parts were."""
    with grpc.insecure_channel(service.address) as channel:
        stub = stub_of(channel)
        first = stub.Act.future(request(np.full((1, 1), -1.0)))
        while not expert.batches:
            time.sleep(0.01)
        others = [stub.Act.future(request(np.full((1, 1), float(k)), k)) for k in range(n)]
        while service.batcher.figures.waiting_rows < n:
            time.sleep(0.01)
        then()
        expert.go.set()
        first.result()
        replies = [told(other, k) for k, other in enumerate(others)]
    return {reply.id: reply for reply in replies}, expert.batches[1:]


@pytest.mark.parametrize(
    "guilty",
    [[0], [63], [17], [3, 40], [8, 9, 10, 11], [0, 16, 32, 48], [5, 20, 40, 60], [*range(0, 64, 8)]],
)
def test_of_questions_that_share_a_call_the_guilty_are_found_in_halves(guilty):
    expert = Choosy(guilty)
    with running(expert) as service:
        replies, batches = joined(service, expert, 64)
    assert [k for k in range(64) if replies[k].error] == guilty
    assert len(batches) <= 2 * 6 * len(guilty) + 1


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_an_expert_that_always_fails_is_not_asked_for_each(error):
    expert = Choosy(range(64), error)
    with running(expert) as service:
        replies, batches = joined(service, expert, 64)
    words = f"{error.__name__}: no"
    assert sum(reply.error == words for reply in replies.values()) == 8  # alone, one after the other
    assert sum(reply.busy.endswith(f"failed for others: {words}") for reply in replies.values()) == 56
    assert len(batches) == 3 + 15  # joined calls of 64, 32 and 16, and all parts of one of 8


def test_an_expert_that_often_fails_is_not_asked_for_each():
    guilty = [*range(1, 512, 2)]
    expert = Choosy(guilty)
    with running(expert) as service:
        replies, batches = joined(service, expert, 512)
    assert len(batches) < 2 * 64 + 1
    assert all(k in guilty for k in range(512) if replies[k].error)
    assert all(reply.busy for k, reply in replies.items() if k > 200)


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
def test_an_expert_whose_source_is_gone_is_asked_once(error):
    expert = Choosy(range(64), error)
    with running(expert) as service:
        replies, batches = joined(service, expert, 64)
    assert all(f"{error.__name__}: no" in reply.error for reply in replies.values())
    assert len(batches) == 1


def test_innocent_questions_beside_many_bad_ones_are_answered_in_the_end():
    expert = Choosy([*range(1, 512, 2), *range(512, 600)])
    with serving(expert) as address, ThreadPoolExecutor(3) as pool:
        oracles = [RemoteOracle([address], max_rows=1, window=64) for _ in range(3)]
        expert.go.set()
        states = [np.arange(0, 512, 2), np.arange(1, 512, 2), np.arange(512, 600)]
        answers = [
            pool.submit(oracle.act, rows[:, None].astype(np.float32))
            for oracle, rows in zip(oracles, states, strict=True)
        ]
        np.testing.assert_array_equal(answers[0].result(30)[:, 0], states[0])
        for answer in answers[1:]:
            with pytest.raises(OracleError, match=r"could not answer: RuntimeError: no$"):
                answer.result(30)


def test_a_service_behind_a_service_that_is_gone_is_asked_once():
    gone = RemoteOracle([f"127.0.0.1:{free_port()}"], connect_timeout_s=0.3)

    class Behind(Choosy):
        def act(self, obs):
            return gone.act(obs) if obs[0, 0] >= 0 and super().act(obs) is not None else super().act(obs)

    expert = Behind([])
    with running(expert) as service:
        replies, batches = joined(service, expert, 8)
    assert all("no expert answers" in reply.error for reply in replies.values())
    assert batches == [8]


def test_a_call_is_not_repeated_for_questions_that_nobody_waits_for():
    class Left(Choosy):
        """Its first joined call fails once the stream is gone."""

        def act(self, obs):
            if len(obs) == 12:
                call.cancel()
                while service.service.figures.streams:
                    time.sleep(0.01)
            return super().act(obs)

    def messages():
        yield from (request(np.full((1, 1), 90.0), k) for k in range(8))
        over.wait(20)

    expert, over = Left([3]), threading.Event()
    with running(expert) as service, grpc.insecure_channel(service.address) as channel:
        call: Any = None

        def ask_more():
            nonlocal call
            call = stub_of(channel).ActStream(messages())
            while service.batcher.figures.waiting_rows < 12:
                time.sleep(0.01)

        replies, batches = joined(service, expert, 4, ask_more)
        over.set()
    assert [k for k in range(4) if replies[k].error] == [3]
    assert batches[0] == 12
    assert sum(batches[1:]) <= 4 + 4 + 2  # those for which somebody waits, in halves


class Panic(BaseException):
    """What extensions in other languages raise."""


@pytest.mark.parametrize("fault", [SystemExit, Panic, asyncio.CancelledError, KeyboardInterrupt])
def test_an_expert_that_would_end_the_process_ends_nothing(fault):
    def act(obs):
        if (obs < 0).any():
            raise fault("over")
        return obs[:, :2]

    with serving(FunctionOracle(act)) as address:
        oracle = RemoteOracle([address], deadline_s=5.0)
        for _ in range(2):  # in a thread; then on the event loop, once it has been quick
            with pytest.raises(OracleError, match=f"could not answer: {fault.__name__}: over$"):
                oracle.act(-OBS)
            for _ in range(2 * batching.QUICK_RUN):
                np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


class Moody:
    """Notes in which thread it was asked; is slow where a state says so, and quick with others."""

    def __init__(self):
        self.threads = []

    def act(self, obs):
        self.threads.append(threading.current_thread().name)
        if (obs < 0).any():
            raise ValueError("no")
        if (obs == 7).any():
            time.sleep(2 * batching.SLOW_S)
        return obs[:, :1]

    def on_loop(self):
        return not self.threads[-1].startswith("expert")


def test_an_expert_runs_on_the_event_loop_after_many_quick_answers_and_never_again_after_a_slow_one(
    monkeypatch,
):
    monkeypatch.setattr(batching, "QUICK_S", 1.0)  # also where other work goes on
    monkeypatch.setattr(batching, "SLOW_S", 0.25)
    expert, obs = Moody(), np.ones((2, 1), np.float32)
    with serving(expert) as address, grpc.insecure_channel(address) as channel:
        act = stub_of(channel).Act
        for _ in range(batching.QUICK_RUN):
            act(request(-obs))
            act(request(obs[:0]))
            assert not expert.on_loop()  # what fails or is empty says nothing
        for _ in range(2 * batching.QUICK_RUN):
            act(request(obs))
        assert expert.on_loop()
        act(request(np.ones((3, 1), np.float32)))
        assert not expert.on_loop()  # more than it was quick with
        act(request(7 * obs))
        assert expert.on_loop()
        for _ in range(2 * batching.QUICK_RUN):
            act(request(obs))
            assert not expert.on_loop()


def test_quick_answers_of_an_expert_are_noted():
    quick = batching.Quickness(never=False)
    for _ in range(batching.QUICK_RUN):
        assert not quick.covers(64)
        quick.note(1e-4, 64, answered=True)
    assert quick.covers(64)
    assert not quick.covers(65)
    quick.note(0.01, 1024, answered=True)
    assert quick.covers(64)
    quick.note(0.01, 64, answered=True)
    assert not quick.covers(1)


def test_people_are_never_asked_on_the_event_loop():
    class People(Moody):
        asks_people = True

    class Wrapped:
        def __init__(self, oracle):
            self.oracle, self.act = oracle, oracle.act

    class Several(Moody):
        def __init__(self):
            self.members = [Moody(), Wrapped(People())]

    for expert in (People(), Wrapped(People()), Several()):
        assert server.asks_people(expert)
        assert not batching.Batcher(expert, max_batch=1, at_once=False).at_once(OBS, 64)
    assert not server.asks_people(Wrapped(Moody()))
    assert HumanOracle.asks_people


def test_what_the_expert_does_wrong_is_not_its_askers_fault():
    def act(obs):
        if obs[0, 0] == 0:
            raise ValueError("my model file is gone")
        return obs[1:] if obs[0, 0] == 1 else np.full(len(obs), None)

    with running(FunctionOracle(act)) as service:
        oracle, refusals = RemoteOracle([service.address]), service.service.figures.refusals
        for kind, words in (
            (0, "ValueError: my model file is gone"),
            (1, "the expert's actions: expected leading axes"),
            (2, "the expert's actions: dtype object cannot be sent"),
        ):
            with pytest.raises(OracleError, match=words):
                oracle.act(np.full((4, 3), kind, np.float32))
            assert refusals == {"failed": kind + 1}


def test_an_expert_that_returns_too_few_rows_is_an_error():
    with (
        serving(FunctionOracle(lambda obs: obs[1:])) as address,
        pytest.raises(OracleError, match="the expert's actions: expected leading axes"),
    ):
        RemoteOracle([address]).act(OBS)


def test_an_expert_for_another_environment_is_refused_at_the_start():
    import gymnasium as gym

    with serving(SCRIPTED["pendulum"]) as address, gym.make("CartPole-v1") as env:
        oracle = RemoteOracle([address])
        with pytest.raises(OracleError, match=r"Box\(1,\) differs from the environment's Discrete\(2\)"):
            checked(oracle, env.observation_space, env.action_space, f"grpc://{address}")
    with pytest.raises(OracleError, match=r"differs from the environment's Discrete\(2\)"):
        asyncio.run(server.start(SCRIPTED["pendulum"], address="127.0.0.1:0", env_id="CartPole-v1"))
    with pytest.raises(ConfigError, match="'Nowhere-v0' cannot be made"):
        asyncio.run(server.start(SCRIPTED["pendulum"], address="127.0.0.1:0", env_id="Nowhere-v0"))


def test_health_and_reflection():
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tutelage.v1.ExpertOracle"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as info:
            health.Check(health_pb2.HealthCheckRequest(service="another"))
        assert info.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        watched = next(health.Watch(health_pb2.HealthCheckRequest(service="another"), timeout=5))
        assert watched.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(iter([ask]))
        names = [service.name for service in next(answers).list_services_response.service]
        assert "tutelage.v1.ExpertOracle" in names


def test_a_taken_port_is_an_error():
    with serving(FIRST_TWO) as address, pytest.raises(OracleError, match=f"cannot listen on {address}"):
        asyncio.run(server.start(FIRST_TWO, address=address))


def test_nobody_there_is_an_error_after_the_stated_time():
    address = f"127.0.0.1:{free_port()}"
    oracle = RemoteOracle([address], connect_timeout_s=0.7)
    start = time.monotonic()
    with pytest.raises(
        OracleError, match=rf"no expert answers at grpc://{address}: tried for 0\.7 s"
    ) as info:
        oracle.act(OBS)
    assert 0.6 < time.monotonic() - start < 2.5
    assert "\n" not in str(info.value)


def test_somebody_else_there_is_an_error_at_once():
    async def start_other():
        other = grpc.aio.server()
        port = other.add_insecure_port("127.0.0.1:0")
        await other.start()
        return other, port

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    other, port = asyncio.run_coroutine_threadsafe(start_other(), loop).result()
    with pytest.raises(OracleError, match=f"127.0.0.1:{port} does not serve us as an expert: UNIMPLEMENTED"):
        RemoteOracle([f"127.0.0.1:{port}"]).act(OBS)
    asyncio.run_coroutine_threadsafe(other.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)


def test_the_next_address_is_tried():
    dead = f"127.0.0.1:{free_port()}"
    with serving(FIRST_TWO) as address:
        oracle = RemoteOracle([dead, address], connect_timeout_s=5.0)
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_a_silent_expert_is_an_error_after_the_deadline():
    with serving(Slow(1.5)) as address:
        oracle = RemoteOracle([address], deadline_s=0.4)
        with pytest.raises(OracleError, match=r"has not answered for 0\.4 s"):
            oracle.act(OBS)


def test_a_client_is_picklable_before_and_after_it_connected():
    with serving(FIRST_TWO) as address:
        oracle = RemoteOracle([address], max_rows=8)
        for copy in (pickle.loads(pickle.dumps(oracle)), oracle, pickle.loads(pickle.dumps(oracle))):
            np.testing.assert_array_equal(copy.act(OBS), OBS[:, :2])


def test_a_client_works_inside_an_event_loop():
    async def ask(oracle):
        return oracle.act(OBS)

    with serving(FIRST_TWO) as address:
        np.testing.assert_array_equal(asyncio.run(ask(RemoteOracle([address]))), OBS[:, :2])


def test_a_server_that_restarts_between_two_questions_goes_unnoticed():
    address = f"127.0.0.1:{free_port()}"
    oracle = RemoteOracle([address], connect_timeout_s=30.0)
    for _ in range(2):
        with process(f"{HERE}:first_two", address):
            np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_what_cannot_be_sent_is_an_error():
    with pytest.raises(OracleError, match="observations cannot be sent: obs: dtype object"):
        RemoteOracle(["127.0.0.1:1"]).act(np.array([None]))


def test_a_killed_server_that_comes_back_costs_no_label():
    """SIGKILL in mid-stream, back after a pause: every state is labelled, once, by its own label."""
    address = f"127.0.0.1:{free_port()}"
    obs = np.arange(4_000, dtype=np.float32).reshape(-1, 2)
    oracle = RemoteOracle([address], max_rows=16, connect_timeout_s=30.0)
    slow = (f"{HERE}:Slow", address, "seconds=0.02", "--max-batch", "16")
    with ThreadPoolExecutor(1) as pool, process(*slow) as (first, bound):
        assert bound == address
        oracle.act(obs[:16])
        answer = pool.submit(oracle.act, obs)
        time.sleep(0.5)
        first.kill()
        first.wait()
        time.sleep(1.0)
        assert not answer.done()
        with process(*slow):
            np.testing.assert_array_equal(answer.result(60), obs)
            np.testing.assert_array_equal(oracle.act(obs[:5]), obs[:5])


def test_a_server_that_stays_away_is_an_error_that_says_how_long():
    with process(f"{HERE}:first_two") as (child, address):
        oracle = RemoteOracle([address], reconnect_timeout_s=1.0, connect_timeout_s=30.0)
        oracle.act(OBS)
        child.kill()
        child.wait()
        start = time.monotonic()
        with pytest.raises(OracleError, match=rf"grpc://{address} went away and is not back after 1 s"):
            oracle.act(OBS)
        assert 0.8 < time.monotonic() - start < 4


def test_sigterm_answers_what_was_asked_and_exits_cleanly():
    slow = (f"{HERE}:Slow", "127.0.0.1:0", "seconds=0.5")
    with ThreadPoolExecutor(1) as pool, process(*slow) as (child, address):
        oracle = RemoteOracle([address], connect_timeout_s=30.0)
        oracle.describe()
        answer = pool.submit(oracle.act, OBS)
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        np.testing.assert_array_equal(answer.result(10), OBS[:, :2])
        assert child.wait(10) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_who_watches_the_health_of_a_service_does_not_hold_up_its_end():
    states = health_pb2.HealthCheckResponse
    with (
        process(f"{HERE}:first_two", "127.0.0.1:0", "--grace-s", "100") as (child, address),
        grpc.insecure_channel(address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watcher = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watcher).status == states.SERVING
        child.send_signal(signal.SIGTERM)
        assert [told.status for told in watcher] == [states.NOT_SERVING]
        assert child.wait(30) == 0


def test_a_stream_that_opens_while_the_service_drains_ends_at_once():
    with running(FIRST_TWO) as started:
        started.service.drain()
        with grpc.insecure_channel(started.address) as channel:
            assert list(stub_of(channel).ActStream(iter([request(OBS)]), timeout=5)) == []


def test_a_client_process_ends_without_noise():
    code = (
        "import sys, numpy as np; from expert_oracle.loading import OracleSpec;"
        "print(OracleSpec(sys.argv[1]).build().act(np.ones((2, 5))).shape)"
    )
    with serving(FIRST_TWO) as address:
        command = [sys.executable, "-c", code, f"grpc://{address}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("(2, 2)\n", "", 0)


def test_the_command_refuses_in_one_line():
    command = [*SERVE, "scripted:cartpol"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: no scripted expert 'cartpol'; did you mean 'cartpole'?\n"


def test_the_word_in_the_config_reaches_a_service():
    with serving(FIRST_TWO) as address:
        oracle = OracleSpec(f"grpc://{address}", {"deadline_s": 5.0}).build()
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])
