"""What goes wrong between client and expert service: each question is answered once, or its asker is told."""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_oracle import conversation, links, probing
from expert_oracle.access import ClientAccess, ServerAccess
from expert_oracle.links import Board
from expert_oracle.loading import FunctionOracle
from expert_oracle.remote import RemoteOracle
from expert_oracle.scripted import SCRIPTED
from expert_oracle.shared_loop import shared_loop
from tests.oracle_services import (
    free_port,
    line_to,
    looping,
    process,
    request,
    running,
    scraped,
    serving,
    stub_of,
)
from tutelage import codec, wire
from tutelage.errors import OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc

OBS = np.random.default_rng(0).random((64, 5), np.float32)
FIRST_TWO = FunctionOracle(lambda obs: obs[:, :2])
SERVICE = "/tutelage.v1.ExpertOracle/"


class Counting:
    """Notes every row that it labels; can be made to wait."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.rows = []
        self.go = threading.Event()
        self.go.set()

    def act(self, obs):
        self.go.wait(20)
        if self.seconds:
            time.sleep(self.seconds)
        self.rows += [row.tobytes() for row in obs]
        return obs[:, :2]


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not come about in time"
        time.sleep(0.01)


def total(port, workers, *sample):
    """What all workers have counted, by what they tell at ports in a row."""
    name = (f"tutelage_oracle_{sample[0]}", *sample[1:])
    return sum(scraped(port + k).get(name, 0) for k in range(workers))


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


# Too much at a time


def test_more_than_may_wait_is_refused_and_asked_again_until_all_is_answered():
    expert = Counting(0.01)
    with running(expert, max_waiting=128, max_batch=64) as service:
        oracles = [RemoteOracle([service.address], max_rows=64) for _ in range(8)]
        obs = np.arange(8 * 512 * 2, dtype=np.float32).reshape(8, 512, 2)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda pair: pair[0].act(pair[1]), zip(oracles, obs, strict=True)))
        np.testing.assert_array_equal(answers, obs)
        figures = service.batcher.figures
        assert figures.refusals["busy"] > 0
        assert figures.waiting_rows == figures.waiting_bytes == 0
    assert len(expert.rows) == len(set(expert.rows)) == 8 * 512


def test_busy_is_told_on_the_stream_and_by_status():
    expert = Counting()
    expert.go.clear()
    with serving(expert, max_waiting=64) as address, grpc.insecure_channel(address) as channel:
        stream = Stream(address)
        stream.ask(request(OBS, 1), request(OBS, 2))  # one under way, one waits
        time.sleep(0.3)
        stream.ask(request(OBS, 3))
        assert "64 states wait for the expert already" in stream.hear(1)[3].busy
        with pytest.raises(grpc.RpcError) as info:
            stub_of(channel).Act(request(OBS, 4), timeout=5)
        assert info.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        expert.go.set()
        assert set(stream.hear(2)) == {1, 2}
        stream.end()


def test_a_service_that_stays_busy_is_an_error_after_the_deadline():
    expert = Counting()
    expert.go.clear()
    with serving(expert, max_waiting=1) as address:
        stream = Stream(address)
        stream.ask(request(OBS, 1), request(OBS, 2))
        time.sleep(0.3)
        with pytest.raises(OracleError, match=r"has been busy for 0\.5 s: 64 states wait"):
            RemoteOracle([address], deadline_s=0.5).act(OBS)
        expert.go.set()
        stream.hear(2)


def test_who_does_not_read_is_not_read_from():
    """A client that asks and asks, and reads no answer: the service holds few of its questions."""
    obs = np.zeros((1, 2**17), np.float32)  # 512 KiB, and as much back
    with running(FunctionOracle(lambda obs: obs)) as service:
        stream = Stream(service.address)
        before = psutil.Process().memory_info().rss
        for number in range(1, 401):
            stream.ask(request(obs, number))
        time.sleep(2.0)
        figures = service.batcher.figures
        assert figures.requests["ActStream"] < 150  # what fits into the buffers of both ends
        held = psutil.Process().memory_info().rss - before
        assert held < 400 * obs.nbytes + 150 * 2**20  # the test's own requests, and a bounded rest
        oracle = RemoteOracle([service.address])
        np.testing.assert_array_equal(oracle.act(OBS), OBS)  # others are served
        stream.break_off()
        until(lambda: figures.streams == 1)


def test_unanswered_questions_of_a_stream_are_bounded():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service:
        stream = Stream(service.address)
        for number in range(1, 301):
            stream.ask(request(OBS[:1], number))
        time.sleep(0.5)
        assert service.batcher.figures.requests["ActStream"] == conversation.MAX_UNANSWERED
        expert.go.set()
        assert set(stream.hear(300)) == set(range(1, 301))


def test_a_packed_message_is_taken_as_far_as_there_is_room():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service:
        stream = Stream(service.address)
        stream.ask(*(pb.ActRequest(more=[request(OBS[:1], 100 * k + n) for n in range(100)]) for k in (1, 2)))
        until(lambda: service.batcher.figures.requests["ActStream"] == conversation.MAX_UNANSWERED)
        time.sleep(0.2)
        assert service.batcher.figures.requests["ActStream"] == conversation.MAX_UNANSWERED
        expert.go.set()
        heard = [reply.id for message in stream.end() for reply in message.more or [message]]
        assert sorted(heard) == [*range(100, 300)]


class Wide:
    """Answers each state by 2 MiB."""

    def act(self, obs):
        return np.repeat(obs[:, :1], 2**19, axis=1)


def test_answers_that_nobody_reads_are_bounded(monkeypatch):
    """Who asks little, is answered much and reads nothing has little held, and disturbs few others."""
    monkeypatch.setattr(conversation, "MAX_UNREAD_BYTES", 2**24)
    with running(Wide()) as service, grpc.insecure_channel(service.address) as channel:
        unread, figures = service.service._unread, service.batcher.figures
        deaf, ids = [Stream(service.address) for _ in range(2)], itertools.count()

        def ask_on():  # the transport takes some of what is not read
            for stream in deaf:
                stream.ask(request(OBS[:1, :1], next(ids)))
            return figures.refusals["busy"] > 12

        until(ask_on)
        assert 2**23 < unread.size <= 2**24 + 2 * conversation.SPARED_BYTES
        with pytest.raises(grpc.RpcError, match="too many answers are not read"):
            stub_of(channel).Act(request(OBS[:1, :1]))
        small = stub_of(channel).Act(request(OBS[:0, :1]))  # nobody's small answers are held up
        assert codec.decode(small.actions).shape == (0, 2**19)
        for stream in deaf:
            stream.break_off()
        until(lambda: unread.size == 0)
        large = stub_of(channel).Act(request(OBS[:1, :1]), timeout=20)
        assert codec.decode(large.actions).shape == (1, 2**19)
        until(lambda: unread.size == 0)


# What nobody waits for any more


def test_a_question_that_is_late_is_not_put_to_the_expert():
    expert = Counting()
    expert.go.clear()
    with serving(expert) as address:
        stream = Stream(address)
        stream.ask(request(OBS, 1), request(OBS + 1, 2, timeout_s=0.1), request(OBS + 2, 3, timeout_s=30.0))
        time.sleep(0.4)
        expert.go.set()
        replies = stream.hear(3)
        assert replies[2].error == "not begun within the time that the request allows"
        assert replies[1].WhichOneof("result") == replies[3].WhichOneof("result") == "actions"
    assert len(expert.rows) == 128


def test_who_is_late_is_told_while_the_expert_is_at_work():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service:
        stream = Stream(service.address)
        stream.ask(request(OBS, 1))
        until(lambda: service.batcher.figures.rows == 64)
        until(lambda: service.batcher.figures.waiting_rows == 0)  # it has begun
        stream.ask(request(OBS, 2, timeout_s=0.1))
        assert "not begun within the time" in stream.hear(1)[2].error
        assert service.batcher.figures.waiting_rows == service.batcher.figures.waiting_bytes == 0
        expert.go.set()
        stream.hear(1)


def test_questions_that_were_given_up_make_room_while_the_expert_is_at_work():
    expert = Counting()
    expert.go.clear()
    with running(expert, max_waiting=128) as service:
        figures = service.batcher.figures
        first = Stream(service.address)
        first.ask(request(OBS, 1))
        until(lambda: figures.rows == 64 and not figures.waiting_rows)
        for _ in range(3):  # as one who tries again and again
            stream = Stream(service.address)
            stream.ask(request(OBS + 1, 2), request(OBS + 1, 3))
            until(lambda: figures.waiting_rows == 128)
            stream.break_off()
            until(lambda: not figures.waiting_rows)
        assert not figures.refusals
        expert.go.set()
        first.hear(1)
    assert len(expert.rows) == 64


def test_a_call_that_was_given_up_is_not_put_to_the_expert():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service, grpc.insecure_channel(service.address) as channel:
        stream = Stream(service.address)
        stream.ask(request(OBS, 1))
        time.sleep(0.2)
        with pytest.raises(grpc.RpcError) as info:
            stub_of(channel).Act(request(OBS + 1, 2), timeout=0.3)
        assert info.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        broken = Stream(service.address)
        broken.ask(request(OBS + 2, 3))
        time.sleep(0.2)
        broken.break_off()
        until(lambda: service.batcher.figures.streams == 1)
        expert.go.set()
        stream.hear(1)
        until(lambda: service.batcher.figures.waiting_rows == 0)
    assert len(expert.rows) == 64


# Never twice


def test_an_answer_that_was_lost_is_not_computed_again():
    expert = Counting()
    with running(expert) as service:
        for _ in range(3):  # answered, and lost on the way
            stream = Stream(service.address, "me")
            stream.ask(request(OBS, 7))
            np.testing.assert_array_equal(codec.decode(stream.hear(1)[7].actions), OBS[:, :2])
            stream.break_off()
        assert len(expert.rows) == 64
        assert service.batcher.figures.repeats == 2
        for client in ("you", None, None):  # others have ids of their own, and the nameless none
            stream = Stream(service.address, client)
            stream.ask(request(OBS, 7))
            stream.hear(1)
            stream.break_off()
        assert len(expert.rows) == 4 * 64
        stream = Stream(service.address, "me")
        stream.ask(request(OBS, 8, oldest=8), request(OBS, 7, oldest=7))  # 7 was heard, and is forgotten
        stream.hear(2)
    assert len(expert.rows) == 6 * 64


def test_a_question_under_way_when_the_line_broke_is_not_computed_again():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service:
        first = Stream(service.address, "me")
        first.ask(request(OBS, 1), request(OBS + 1, 2))
        time.sleep(0.3)
        first.break_off()
        until(lambda: service.batcher.figures.streams == 0)
        second = Stream(service.address, "me")
        second.ask(request(OBS, 1), request(OBS + 1, 2))
        time.sleep(0.2)
        expert.go.set()
        assert set(second.hear(2)) == {1, 2}
    assert Counter(expert.rows).most_common(1)[0][1] == 1


def test_another_question_under_an_old_id_is_a_new_one():
    expert = Counting()
    expert.go.clear()
    with running(expert) as service:
        first = Stream(service.address, "me")
        first.ask(request(OBS, 1))
        until(lambda: service.batcher.figures.rows == 64)
        first.break_off()
        until(lambda: service.batcher.figures.streams == 0)
        for k in range(1, 4):  # the client has started anew; the first time its old question is under way
            second = Stream(service.address, "me")
            second.ask(request(OBS + k, 1))
            until(lambda k=k: service.batcher.figures.rows == 64 * (k + 1))
            expert.go.set()
            np.testing.assert_array_equal(codec.decode(second.hear(1)[1].actions), (OBS + k)[:, :2])
            second.break_off()
        assert service.batcher.figures.repeats == 0
    assert Counter(expert.rows).most_common(1)[0][1] == 1


def test_a_call_that_is_tried_again_under_its_id_is_not_computed_again():
    expert, me = Counting(), ((codec.CLIENT, "me"),)
    expert.go.clear()
    with running(expert) as service, grpc.insecure_channel(service.address) as channel:
        act, figures = stub_of(channel).Act, service.batcher.figures
        first = act.future(request(OBS, 1), metadata=me)
        until(lambda: figures.rows == 64 and not figures.waiting_rows)
        first.cancel()
        again = act.future(request(OBS, 1), metadata=me)  # under way
        until(lambda: figures.repeats == 1)
        expert.go.set()
        for call in (again, act.future(request(OBS, 1), metadata=me)):  # and answered
            np.testing.assert_array_equal(codec.decode(call.result().actions), OBS[:, :2])
        assert (figures.repeats, len(expert.rows)) == (2, 64)
        stream = Stream(service.address, "me")  # its answer is the client's, by whichever way
        stream.ask(request(OBS, 1))
        stream.hear(1)
        assert len(expert.rows) == 64
        for metadata, number in ((me, 0), ((), 1)):
            act(request(OBS, number), metadata=metadata)
            act(request(OBS, number), metadata=metadata)
        assert len(expert.rows) == 5 * 64


class Unsteady(oracle_pb2_grpc.ExpertOracleServicer):
    """Answers each call at the third try."""

    def __init__(self):
        self.tries = Counter()

    async def _try(self, rpc, code, context):
        self.tries[rpc] += 1
        if self.tries[rpc] < 3:
            await context.abort(code, "not yet")

    async def Describe(self, request, context):
        await self._try("Describe", grpc.StatusCode.UNAVAILABLE, context)
        return pb.DescribeReply(name="unsteady")

    async def Act(self, request, context):
        await self._try("Act", grpc.StatusCode.RESOURCE_EXHAUSTED, context)
        return pb.ActReply(id=request.id)


def test_the_service_config_has_grpc_try_again():
    async def start():
        service = grpc.aio.server()
        oracle_pb2_grpc.add_ExpertOracleServicer_to_server(unsteady, service)
        port = service.add_insecure_port("127.0.0.1:0")
        await service.start()
        return service, port

    unsteady = Unsteady()
    with looping() as run:
        service, port = run(start())
        with grpc.insecure_channel(f"127.0.0.1:{port}", probing.OPTIONS) as channel:
            assert stub_of(channel).Describe(pb.DescribeRequest(), timeout=20).name == "unsteady"
            assert stub_of(channel).Act(request(OBS, 5), timeout=20).id == 5
        run(service.stop(1.0))
    assert unsteady.tries == {"Describe": 3, "Act": 3}


def test_a_call_that_grpc_tries_again_after_a_break_is_not_computed_again():
    expert = Counting()
    expert.go.clear()
    with (
        running(expert) as service,
        line_to(service.address) as (address, line),
        grpc.insecure_channel(address, probing.OPTIONS) as channel,
    ):
        figures = service.batcher.figures
        call = stub_of(channel).Act.future(request(OBS, 1), metadata=((codec.CLIENT, "me"),))
        until(lambda: figures.rows == 64)
        line("cut")
        until(lambda: figures.repeats == 1)
        expert.go.set()
        np.testing.assert_array_equal(codec.decode(call.result().actions), OBS[:, :2])
    assert len(expert.rows) == 64


def test_the_memory_of_all_clients_together_is_bounded():
    replies = [pb.ActReply(id=number, error="x" * 2**20) for number in range(1, 16)]

    async def come(memories, clients, stay):
        for client in clients:
            memory = stay.enter_context(memories.of(client))
            for reply in replies:
                memory.note(reply, 0)

    async def come_and_go():
        memories = conversation.Memories()
        for number in range(40):
            with contextlib.ExitStack() as stay:
                await come(memories, [f"gone {number}"], stay)
        assert 0.9 * conversation.MAX_ALL_BYTES < memories.size <= conversation.MAX_ALL_BYTES
        with memories.of("gone 39") as last, memories.of("gone 0") as first:
            assert [last.known(reply.id, 0) for reply in replies] == replies
            assert first.known(1, 0) is None
        with contextlib.ExitStack() as stay:
            await come(memories, [f"here {number}" for number in range(40)], stay)
            assert memories.size <= conversation.MAX_ALL_BYTES
            with memories.of("here 0") as first, memories.of("gone 39") as last:
                assert [first.known(reply.id, 0) for reply in replies] == replies
                assert last.known(1, 0) is None
        for client in [*map("here {}".format, range(40))]:
            with memories.of(client) as memory:
                memory.forget_before(16)
        assert memories.size == 0

    asyncio.run(come_and_go())


def test_a_line_that_breaks_again_and_again_costs_no_label_and_doubles_none():
    expert = Counting(0.002)
    obs = np.arange(20_000, dtype=np.float32).reshape(-1, 2)
    with serving(expert, max_batch=32) as target, line_to(target) as (address, line):
        oracle = RemoteOracle([address], max_rows=8)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(oracle.act, obs)
            for _ in range(12):
                time.sleep(0.15)
                line("cut")
            np.testing.assert_array_equal(answer.result(60), obs)
    assert len(expert.rows) == len(set(expert.rows)) == len(obs)


# Lines and services that are gone


def test_a_black_hole_ends_by_the_deadline():
    with serving(FIRST_TWO) as target, line_to(target) as (address, line):
        oracle = RemoteOracle([address], deadline_s=0.8)
        oracle.act(OBS)
        line("hold")
        start = time.monotonic()
        with pytest.raises(OracleError, match=r"has not answered for 0\.8 s"):
            oracle.act(OBS)
        assert 0.7 < time.monotonic() - start < 3
        line("release")
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_a_first_answer_may_take_longer_than_to_connect():
    with serving(Counting(1.0)) as address:
        oracle = RemoteOracle([address], connect_timeout_s=0.4, deadline_s=30.0)
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_a_client_may_pause_between_its_first_words_and_its_first_question():
    with serving(Counting(0.4)) as address:
        oracle = RemoteOracle([address], connect_timeout_s=0.4)
        oracle.describe()
        time.sleep(0.8)
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_an_answer_after_a_break_may_take_longer_than_to_reconnect():
    expert = Counting(1.5)
    with serving(expert) as target, line_to(target) as (address, line), ThreadPoolExecutor(1) as pool:
        oracle = RemoteOracle([address], reconnect_timeout_s=0.6)
        answer = pool.submit(oracle.act, OBS)
        until(lambda: oracle.describe() is not None)
        time.sleep(0.3)
        line("cut")
        np.testing.assert_array_equal(answer.result(20), OBS[:, :2])
    assert len(expert.rows) == 64


def test_who_waits_is_told_when_another_thread_closes():
    expert = Counting()
    expert.go.clear()
    with serving(expert) as address, ThreadPoolExecutor(2) as pool:
        oracle = RemoteOracle([address])
        answers = [pool.submit(oracle.act, OBS) for _ in range(2)]  # one leads the loop, one follows
        time.sleep(0.5)
        oracle.close()
        for answer in answers:
            with pytest.raises(OracleError, match="the connection was closed"):
                answer.result(5)
        expert.go.set()
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_who_asks_while_a_client_hangs_up_is_answered():
    async def ask(address):
        patience = {"deadline_s": 5.0, "connect_timeout_s": 2.0, "reconnect_timeout_s": 2.0}
        loop = asyncio.get_running_loop()
        board = Board([address], ClientAccess(), loop=loop, window=4, **patience)
        await board.ask([request(OBS)])
        closing = board.close()
        (reply,) = await board.ask([request(OBS)])
        await closing
        await board.close()
        return codec.decode(reply.actions)

    with serving(FIRST_TWO) as address:
        np.testing.assert_array_equal(shared_loop().run(ask(address)), OBS[:, :2])


def test_a_break_while_nobody_waits_costs_no_patience():
    with serving(FIRST_TWO) as target, line_to(target) as (address, line):
        idle, other = RemoteOracle([address], reconnect_timeout_s=0.5), RemoteOracle([target])
        idle.act(OBS)
        line("cut")
        for _ in range(10):  # one that keeps the clients' loop running
            other.act(OBS)
            time.sleep(0.1)
        line("hold")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(idle.act, OBS)
            time.sleep(0.3)
            line("release")
            np.testing.assert_array_equal(answer.result(20), OBS[:, :2])


def _interrupted(oracle, obs):
    """Ctrl-C, half a second after the question."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            oracle.act(obs)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_patience_begins_anew_after_an_interruption():
    address = f"127.0.0.1:{free_port()}"
    oracle = RemoteOracle([address], connect_timeout_s=1.5)
    _interrupted(oracle, OBS)
    time.sleep(1.5)
    with serving(FIRST_TWO, address=address):
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_a_question_that_was_interrupted_counts_as_no_silence():
    expert = Counting()
    with serving(expert) as address:
        oracle = RemoteOracle([address], deadline_s=1.5)
        oracle.act(OBS)
        expert.go.clear()
        _interrupted(oracle, OBS)
        time.sleep(1.5)
        expert.go.set()
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])
        assert not oracle._board().open


class Hasty(oracle_pb2_grpc.ExpertOracleServicer):
    """A service that is well until it is asked something."""

    async def Describe(self, request, context):
        return pb.DescribeReply(name="hasty")

    async def ActStream(self, request_iterator, context):
        await context.read()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def test_a_service_that_goes_away_at_each_question_is_an_error():
    async def start():
        service = grpc.aio.server()
        oracle_pb2_grpc.add_ExpertOracleServicer_to_server(Hasty(), service)
        port = service.add_insecure_port("127.0.0.1:0")
        await service.start()
        return service, port

    with looping() as run:
        service, port = run(start())
        with pytest.raises(OracleError, match=r"went away and is not back after 1 s \(UNAVAILABLE: gone\)"):
            RemoteOracle([f"127.0.0.1:{port}"], reconnect_timeout_s=1.0).act(OBS)
        run(service.stop(1.0))


def test_a_black_hole_at_the_start_ends_by_the_patience():
    with serving(FIRST_TWO) as target, line_to(target) as (address, line):
        line("hold")
        with pytest.raises(OracleError, match=r"no expert answers at .*: tried for 1 s"):
            RemoteOracle([address], connect_timeout_s=1.0).act(OBS)


def test_what_a_black_hole_swallowed_is_asked_of_the_other_service():
    with (
        serving(FIRST_TWO) as good,
        serving(FIRST_TWO) as target,
        line_to(target) as (address, line),
    ):
        oracle = RemoteOracle([address, good], max_rows=4, deadline_s=0.8)
        oracle.act(OBS)
        line("hold")
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_several_services_share_the_questions():
    experts = [Counting(0.005), Counting(0.005), Counting(0.005)]
    obs = np.arange(6_000, dtype=np.float32).reshape(-1, 2)
    with serving(experts[0]) as a, serving(experts[1]) as b, serving(experts[2]) as c:
        oracle = RemoteOracle([a, b, c], max_rows=4)
        oracle.act(obs[:1])
        time.sleep(0.3)
        np.testing.assert_array_equal(oracle.act(obs), obs)
    shares = [len(expert.rows) for expert in experts]
    assert sum(shares) == len(obs) + 1
    assert min(shares) > len(obs) / 10


def test_one_of_two_services_killed_in_mid_stream_costs_nothing():
    slow = ("tests/oracles.py:Slow", "127.0.0.1:0", "seconds=0.02", "--max-batch", "16")
    obs = np.arange(4_000, dtype=np.float32).reshape(-1, 2)
    with process(*slow) as (first, a), process(*slow) as (_, b), ThreadPoolExecutor(1) as pool:
        oracle = RemoteOracle([a, b], max_rows=16, connect_timeout_s=30.0)
        oracle.act(obs[:64])
        answer = pool.submit(oracle.act, obs)
        time.sleep(0.5)
        first.kill()
        np.testing.assert_array_equal(answer.result(60), obs)
        np.testing.assert_array_equal(oracle.act(obs[:64]), obs[:64])


def test_services_of_other_spaces_do_not_stand_in():
    with (
        serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as a,
        serving(SCRIPTED["pendulum"], env_id="Pendulum-v1") as b,
    ):
        oracle = RemoteOracle([a, b])
        obs = np.zeros((4, 4), np.float32)
        for _ in range(5):
            try:
                assert oracle.act(obs).shape == (4,)
            except OracleError:  # the other one was met first, and refuses these states
                assert oracle.describe().env_id == "Pendulum-v1"
                break
            time.sleep(0.1)
    with serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as a:
        oracle = RemoteOracle([a])
        oracle.act(obs)
    with (
        serving(SCRIPTED["pendulum"], env_id="Pendulum-v1", address=a),
        pytest.raises(OracleError, match=r"serves another expert: it acts from .* to Box"),
    ):
        oracle.act(obs)


def test_all_refusals_are_told_where_every_address_refuses(tmp_path):
    (tmp_path / "token").write_text("sesame")
    access = ServerAccess(token_file=str(tmp_path / "token"))
    with serving(FIRST_TWO, access=access) as a, serving(FIRST_TWO, access=access) as b:
        with pytest.raises(OracleError, match=f"{a} does not .*; {b} does not"):
            RemoteOracle([a, b]).act(OBS)
        with serving(FIRST_TWO) as c:
            oracle = RemoteOracle([a, c])
            for _ in range(3):
                np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_addresses_that_all_refused_are_tried_again_at_the_next_question(tmp_path):
    access = ServerAccess(token_file=str(_written(tmp_path / "tokens", "sesame")))
    mine = _written(tmp_path / "mine", "wrong")
    with serving(FIRST_TWO, access=access) as a, serving(FIRST_TWO, access=access) as b:
        oracle = RemoteOracle([a, b], token_file=str(mine))
        with pytest.raises(OracleError, match="not known"):
            oracle.act(OBS)
        _written(mine, "sesame")
        np.testing.assert_array_equal(oracle.act(OBS), OBS[:, :2])


def test_an_address_that_refused_is_tried_again_during_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "REFUSED_S", 0.2)
    tokens, slow = _written(tmp_path / "tokens", "other"), Counting()
    slow.go.clear()
    access = ServerAccess(token_file=str(tokens))
    with serving(FIRST_TWO, access=access) as a, serving(slow) as b, ThreadPoolExecutor(1) as pool:
        oracle = RemoteOracle([a, b], token="sesame")
        both = oracle._board()._links
        answer = pool.submit(oracle.act, OBS)
        until(lambda: both[0].refusal)
        _written(tokens, "sesame")
        until(lambda: all(link.stream for link in both))
        slow.go.set()
        np.testing.assert_array_equal(answer.result(20), OBS[:, :2])


def _written(path, text):
    path.write_text(text)
    return path


def test_an_error_that_nobody_expected_is_told_to_who_waits():
    class Broken(ClientAccess):
        def metadata(self):
            raise ValueError("two\nlines")

    async def ask(address):
        patience = {"deadline_s": 600.0, "connect_timeout_s": 600.0, "reconnect_timeout_s": 600.0}
        board = Board([address], Broken(), loop=asyncio.get_running_loop(), window=4, **patience)
        try:
            await board.ask([request(OBS)])
        finally:
            await board.close()

    with (
        serving(FIRST_TWO) as address,
        pytest.raises(OracleError, match=f"{address} cannot be asked: ValueError: two lines"),
    ):
        shared_loop().run(ask(address))


# What comes over the line


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.full((3, 4), np.nan, np.float32), "obs: NaN in 3 of 3 states"),
        (np.array([[0, 1, 2, 3], [0, np.nan, 2, 3]], np.float16), "obs: NaN in 1 of 2 states"),
        (np.zeros((3, 4), np.int64), "obs: expected floating-point numbers, got int64"),
        (np.zeros((3, 5), np.float32), "obs: expected shape (N, 4), got (3, 5)"),
        ((np.zeros((3, 4)), np.zeros((2, 4))), "obs.1: expected leading axes (3,)"),
    ],
)
def test_what_is_no_observation_is_refused(obs, words):
    with running(SCRIPTED["cartpole"], env_id="CartPole-v1") as service:
        with pytest.raises(OracleError) as info:
            RemoteOracle([service.address]).act(obs)
        assert words in str(info.value)
        assert service.batcher.figures.refusals == {"malformed": 1}


def test_infinities_are_observations():
    obs = np.array([[np.inf, -np.inf, 3e38, 3e38]], np.float32)
    with serving(FIRST_TWO) as address:
        np.testing.assert_array_equal(RemoteOracle([address]).act(obs), obs[:, :2])


def test_100_mb_are_refused_on_both_ends():
    obs = np.zeros((1, 25 * 2**20), np.float32)
    options = [("grpc.max_send_message_length", -1)]
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address, options=options) as channel:
        with pytest.raises(OracleError, match="cannot be sent: obs: 104,857,600 bytes, more than the limit"):
            RemoteOracle([address]).act(obs)
        message = pb.ActRequest(id=1)
        codec.encode_into(message.obs, obs, "obs", max_bytes=2**30)
        with pytest.raises(grpc.RpcError) as info:
            stub_of(channel).Act(message, timeout=20)
        assert info.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
NOISE = np.random.default_rng(1).bytes(4096)
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": NOISE,
    "frame of 16 MB that does not come": PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100,
    "noise after the preface": PREFACE + NOISE,
    "tls": b"\x16\x03\x01\xff\xff" + NOISE[:64],
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_the_socket_disturbs_nobody_else(data):
    with serving(FIRST_TWO) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data)
            np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


def test_too_many_questions_in_one_message_end_the_stream():
    with serving(FIRST_TWO) as address:
        stream = Stream(address)
        stream.ask(pb.ActRequest(more=[pb.ActRequest()] * (conversation.MAX_PACKED + 1)))
        with pytest.raises(grpc.RpcError, match="more than 256 questions in one message"):
            stream.hear(1)


def test_a_message_that_would_grow_in_memory_is_refused_before_it_is_parsed():
    bushy = b"\x2a\x00" * (wire.SMALL)  # so many empty questions
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        calls = (
            lambda: channel.unary_unary(f"{SERVICE}Act")(bushy, timeout=20),
            lambda: next(channel.stream_stream(f"{SERVICE}ActStream")(iter([bushy]), timeout=20)),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError, match="no ActRequest: more than 131,072 fields") as info:
                call()
            assert info.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert channel.unary_unary(f"{SERVICE}Describe")(bushy, timeout=20)


def test_a_tree_of_too_many_parts_is_refused():
    bushy = pb.Tree(list=pb.TreeList(items=[pb.Tree(list=pb.TreeList())] * 5000))
    with serving(FIRST_TWO) as address:
        stream = Stream(address)
        stream.ask(pb.ActRequest(id=1, obs=bushy))
        assert "more than 4096 parts" in stream.hear(1)[1].error


numbers = st.integers(0, 2**64 - 1)
tensors = st.builds(
    pb.Tensor,
    dtype=st.sampled_from(["float32", "uint8", "int64", "bool", "object", ""]) | st.text(max_size=5),
    shape=st.lists(numbers | st.integers(0, 4), max_size=5),
    data=st.binary(max_size=64),
)
trees = st.recursive(
    st.builds(pb.Tree, tensor=tensors) | st.builds(pb.Tree),
    lambda parts: (
        st.builds(lambda items: pb.Tree(list=pb.TreeList(items=items)), st.lists(parts, max_size=3))
        | st.builds(
            lambda items: pb.Tree(map=pb.TreeMap(items=items)),
            st.dictionaries(st.text(max_size=3), parts, max_size=3),
        )
    ),
    max_leaves=5,
)
questions = st.builds(
    lambda obs, timeout_s, oldest: pb.ActRequest(obs=obs, timeout_s=timeout_s, oldest=oldest),
    trees,
    st.floats(),
    numbers,
)


def fuzzed(examples):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, database=None)


def _fuzz_messages(examples):
    """Whatever is asked, each id gets one reply, and the stream goes on."""
    with serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as address:
        stream = Stream(address)
        good = request(np.zeros((1, 4), np.float32))
        ids = iter(range(1, 10**9))

        @fuzzed(examples)
        @given(st.lists(questions, min_size=1, max_size=4), st.booleans())
        def ask(messages, packed):
            for message in [*messages, good]:
                message.id = next(ids)
            last, wanted = good.id, {message.id for message in messages} | {good.id}
            stream.ask(*([pb.ActRequest(more=messages)] if packed else messages), good)
            heard = {}
            while len(heard) < len(wanted):
                reply = next(stream.call)
                for one in reply.more or [reply]:
                    assert one.id not in heard
                    heard[one.id] = one
            assert set(heard) == wanted
            assert heard[last].WhichOneof("result") == "actions"
            assert all(one.WhichOneof("result") in ("actions", "error") for one in heard.values())

        ask()


def _fuzz_bytes(examples):
    """Bytes that are no message, or nearly one, end their own call at most."""
    valid = request(OBS[:2]).SerializeToString()
    flips = st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), max_size=6)
    cuts = st.integers(0, len(valid)).map(lambda end: valid[:end])

    def flipped(changes):
        data = bytearray(valid)
        for place, byte in changes:
            data[place] = byte
        return bytes(data)

    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        raw = channel.unary_unary(f"{SERVICE}Act")

        @fuzzed(examples)
        @given(st.binary(max_size=300) | flips.map(flipped) | cuts)
        def send(data):
            done = raw.future(data, timeout=10)
            assert done.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
            if done.code() == grpc.StatusCode.OK:
                assert pb.ActReply.FromString(done.result()).WhichOneof("result") in ("actions", "error")

        send()
        np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


def test_fuzzed_messages_are_answered_each():
    _fuzz_messages(60)


def test_fuzzed_bytes_do_no_harm():
    _fuzz_bytes(150)


@pytest.mark.slow
def test_fuzzed_messages_are_answered_each_for_minutes():
    _fuzz_messages(6_000)


@pytest.mark.slow
def test_fuzzed_bytes_do_no_harm_for_minutes():
    _fuzz_bytes(30_000)


# In the long run


def state_of(child):
    return child.num_fds(), child.num_threads(), child.memory_info().rss


def test_a_thousand_clients_that_come_and_go_leave_nothing():
    with process("scripted:cartpole", "127.0.0.1:0", "--env", "CartPole-v1") as (child, address):
        obs = np.zeros((8, 4), np.float32)

        def come_and_go(times):
            for _ in range(times):
                oracle = RemoteOracle([address])
                oracle.act(obs)
                oracle.close()

        come_and_go(100)
        gc.collect()
        both = psutil.Process(child.pid), psutil.Process()
        before = [state_of(one) for one in both]
        come_and_go(1000)
        gc.collect()
        time.sleep(0.5)
        for (fds, threads, rss), after in zip(before, map(state_of, both), strict=True):
            assert after[0] <= fds + 5
            assert after[1] <= threads + 5
            assert after[2] <= rss + 30 * 2**20


def workers_of(child):
    return {one.pid for one in psutil.Process(child.pid).children() if "spawn_main" in str(one.cmdline())}


def test_workers_share_a_port_and_come_back():
    command = ("tests/oracles.py:Slow", "127.0.0.1:0", "seconds=0.02", "--workers", "2", "--max-batch", "16")
    obs = np.arange(1_000, dtype=np.float32).reshape(-1, 2)
    with process(*command) as (child, address), ThreadPoolExecutor(8) as pool:
        workers = workers_of(child)
        assert len(workers) == 2
        oracles = [RemoteOracle([address], max_rows=16, reconnect_timeout_s=3.0) for _ in range(8)]
        answers = [pool.submit(oracle.act, obs) for oracle in oracles]
        time.sleep(0.5)
        os.kill(min(workers), signal.SIGKILL)
        for answer in answers:
            np.testing.assert_array_equal(answer.result(60), obs)


def test_workers_answer_what_they_accepted_before_they_end():
    port = free_port()
    options = ("seconds=0.1", "--workers", "2", "--max-batch", "1", "--metrics-address", f"127.0.0.1:{port}")
    with process("tests/oracles.py:Slow", "127.0.0.1:0", *options) as (child, address):
        workers = workers_of(child)
        streams = [Stream(address) for _ in range(8)]
        for k, stream in enumerate(streams):
            stream.ask(*(request(np.full((1, 2), 10 * k + n, np.float32), n) for n in range(5)))
        until(lambda: total(port, 2, "requests_total", "ActStream") == 40)
        child.send_signal(signal.SIGTERM)
        for k, stream in enumerate(streams):
            replies = {reply.id: codec.decode(reply.actions)[0, 0] for reply in stream.call}
            assert replies == {n: 10 * k + n for n in range(5)}
        assert child.wait(20) == 0
        assert not any(psutil.pid_exists(pid) for pid in workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_expert_that_does_not_come_to_an_end_is_left(workers):
    port = free_port()
    options = ("--workers", str(workers), "--metrics-address", f"127.0.0.1:{port}", "--grace-s", "0.5")
    with (
        process("tests/oracles.py:Slow", "127.0.0.1:0", "seconds=300", *options) as (child, address),
        grpc.insecure_channel(address) as channel,
    ):
        call = stub_of(channel).Act.future(request(OBS))
        until(lambda: total(port, workers, "requests_total", "Act") == 1)
        child.send_signal(signal.SIGTERM)
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert child.wait(30) == 0
        assert child.stderr is not None
        assert child.stderr.read().startswith("warning: left the expert in mid-call (grace_s=0.5)\n")


def test_workers_that_cannot_start_say_why():
    with process("tests/oracles.py:Unlicensed", "127.0.0.1:0", "--workers", "2") as (child, _):
        assert child.wait(30) == 2
        assert child.stderr is not None
        assert "cannot be made: PermissionError: no licence for this machine" in child.stderr.read()
    port = free_port()
    with (
        process("scripted:cartpole", f"127.0.0.1:{port}"),
        process("scripted:cartpole", f"127.0.0.1:{port}", "--workers", "2") as (child, _),
    ):
        assert child.wait(30) == 2
        assert child.stderr is not None
        assert (
            f"cannot listen on 127.0.0.1:{port}: the port is taken; choose another with --address"
            in child.stderr.read()
        )


def test_workers_leave_when_their_parent_is_killed():
    with process("scripted:cartpole", "127.0.0.1:0", "--workers", "2") as (child, _):
        workers = psutil.Process(child.pid).children()
        child.kill()
        _, alive = psutil.wait_procs(workers, timeout=15)
        assert not alive
