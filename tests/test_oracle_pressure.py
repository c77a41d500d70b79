"""An expert service that is asked too much at a time, or what nobody waits for any more: it holds little."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest

from expert_oracle import conversation
from expert_oracle.loading import FunctionOracle
from expert_oracle.remote import RemoteOracle
from tests.oracle_services import OBS, Stream, request, running, serving, stub_of, until
from tests.oracles import Counting
from tutelage import codec
from tutelage.errors import OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb


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
        assert info.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
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
        assert info.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        broken = Stream(service.address)
        broken.ask(request(OBS + 2, 3))
        time.sleep(0.2)
        broken.break_off()
        until(lambda: service.batcher.figures.streams == 1)
        expert.go.set()
        stream.hear(1)
        until(lambda: service.batcher.figures.waiting_rows == 0)
    assert len(expert.rows) == 64
