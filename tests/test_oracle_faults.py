"""Lines and expert services that are gone: each question is answered once, or its asker is told."""

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from expert_oracle.access import ClientAccess
from expert_oracle.links import Board
from expert_oracle.remote import RemoteOracle
from expert_oracle.shared_loop import shared_loop
from tests.oracle_services import FIRST_TWO, OBS, free_port, line_to, looping, request, serving, until
from tests.oracles import Counting
from tutelage import codec
from tutelage.errors import OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.proto.tutelage.v1 import oracle_pb2_grpc


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
