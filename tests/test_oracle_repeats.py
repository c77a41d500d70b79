"""Whatever is lost between client and expert service, and asked again, is computed once."""

import asyncio
import contextlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from expert_oracle import conversation, probing
from expert_oracle.remote import RemoteOracle
from tests.oracle_services import OBS, Stream, line_to, looping, request, running, serving, stub_of, until
from tests.oracles import Counting
from tutelage import codec
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc


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
