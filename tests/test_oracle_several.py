"""A client of several expert services: they share its questions, and stand in for one another."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expert_oracle import links
from expert_oracle.access import ServerAccess
from expert_oracle.remote import RemoteOracle
from expert_oracle.scripted import SCRIPTED
from tests.oracle_services import FIRST_TWO, OBS, line_to, process, serving, until
from tests.oracles import Counting
from tutelage.errors import OracleError


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
