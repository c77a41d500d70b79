"""The embedded store: real servers, killed, orphaned, damaged."""

import os
import signal
import subprocess
import sys

import pytest
import redis

from services.labeler.valkey import Embedded
from tutelage.errors import ServiceError

HOLD = """
import sys, time
from services.labeler.valkey import Embedded
server = Embedded(sys.argv[1])
server.start()
server.client().set("kept", 1)
print(server.pid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_what_was_written_is_there_after_a_restart(folder):
    with Embedded(folder) as server:
        server.client().set("a", 1)
        pid = server.pid()
    assert not alive(pid)
    with Embedded(folder) as server:
        assert server.client().get("a") == b"1"


def test_it_is_for_us_only(folder):
    with Embedded(folder) as server:
        assert server.client().config_get("port") == {"port": "0"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(unix_socket_path=str(server.socket)).ping()
        assert server.socket.stat().st_mode & 0o077 == 0
        assert (folder / "password").stat().st_mode & 0o077 == 0
        assert (folder / "valkey.conf").stat().st_mode & 0o077 == 0


def test_a_second_one_in_the_same_folder_is_refused_with_the_first_ones_process(folder):
    with Embedded(folder), pytest.raises(ServiceError, match=f"in use by process {os.getpid()}"):
        Embedded(folder).start()


def test_killed_it_loses_nothing_that_it_acknowledged(folder):
    server = Embedded(folder)
    server.start()
    client = server.client()
    for i in range(200):
        client.rpush("list", i)
    os.kill(server.pid(), signal.SIGKILL)
    server.stop()
    with Embedded(folder) as again:
        assert again.client().llen("list") == 200


def test_one_that_outlived_its_parent_is_taken_over_and_stopped(folder):
    parent = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert alive(pid)
    with Embedded(folder) as server:
        assert server.pid() == pid
        assert server.client().get("kept") == b"1"
    assert not alive(pid)


def test_one_that_is_slow_to_answer_is_not_started_a_second_time(folder, monkeypatch):
    parent = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    with Embedded(folder) as server:
        monkeypatch.setattr("services.labeler.valkey.ANSWER_S", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert not server.restart_if_dead()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert server.pid() == pid
    assert not alive(pid)


def test_a_torn_tail_is_mended_and_damage_is_said(folder):
    with Embedded(folder) as server:
        for i in range(100):
            server.client().set(f"key-{i}", "x" * 50)
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    with Embedded(folder) as server:
        assert server.client().dbsize() == 99
    middle = data.index(b"*3", len(data) // 2)
    file.write_bytes(data[:middle] + b"??" + data[middle + 2 :])
    with pytest.raises(ServiceError, match=r"is damaged; `tutelage doctor --labeler .* --repair`"):
        Embedded(folder).start()


def test_a_long_path_has_its_socket_elsewhere(tmp_path):
    with Embedded(tmp_path / ("x" * 120)) as server:
        assert server.client().ping()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
