"""An expert service in the long run: clients come and go, workers share a port, are killed, and end."""

import gc
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest

from expert_oracle.remote import RemoteOracle
from tests.oracle_services import OBS, Stream, free_port, process, request, scraped, stub_of, until
from tutelage import codec


def total(port, workers, *sample):
    """What all workers have counted, by what they tell at ports in a row."""
    name = (f"tutelage_oracle_{sample[0]}", *sample[1:])
    return sum(scraped(port + k).get(name, 0) for k in range(workers))


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
