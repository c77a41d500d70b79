"""What a service tells its operator: figures for Prometheus, events as lines, `ping` and `bench`."""

import json
import logging
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest

from expert_oracle.metrics import LOG, Histogram, JsonFormatter, TextFormatter, event, fault
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
    scraped,
    serving,
    stub_of,
)
from tutelage import plugins

Slow = plugins.load(str(ROOT / "tests" / "oracles.py") + ":Slow")


def tutelage(*arguments):
    command = [sys.executable, "-m", "services.cli", "oracle", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def ended(child):
    """What a service that ends without an error has written to stderr."""
    assert child.wait(20) == 0
    return child.stderr.read()


def test_prometheus_is_told_what_happened():
    with running(Slow(0.001), metrics_address="127.0.0.1:0") as service:
        port = service.metrics.server_port
        oracle = RemoteOracle([service.address])
        oracle.act(OBS)
        with grpc.insecure_channel(service.address) as channel:
            stub_of(channel).Act(request(OBS))
            stub_of(channel).Act(request(OBS[:, 0] * np.nan))
            stub_of(channel).Act(request(-OBS))
        now = scraped(port)
        name = "tutelage_oracle_"
        assert now[f"{name}requests_total", "ActStream"] == 1
        assert now[f"{name}requests_total", "Act"] == 3
        assert now[f"{name}requests_total", "Describe"] == 1
        assert now[f"{name}refusals_total", "malformed"] == 1
        assert now[f"{name}refusals_total", "failed"] == 1
        assert now[f"{name}rows_total",] == 4 * 64
        assert now[f"{name}streams",] == 1
        assert now[f"{name}waiting_rows",] == 0
        assert now[f"{name}batch_rows_sum",] == 3 * 64
        assert now[f"{name}batch_rows_bucket", "64"] - now[f"{name}batch_rows_bucket", "16"] == 3
        assert now[f"{name}forward_seconds_count",] == 3
        assert now[f"{name}latency_seconds_count",] == 2
        assert 0.002 < now[f"{name}latency_seconds_sum",] < 1
    with pytest.raises(OSError, match="refused"):
        scraped(port)


def test_every_worker_has_figures_of_its_own():
    port = free_port()
    more = ("--workers", "2", "--metrics-address", f"127.0.0.1:{port}")
    with process("scripted:cartpole", "127.0.0.1:0", *more) as (_, address):
        RemoteOracle([address]).act(np.zeros((7, 4), np.float32))
        rows = [scraped(port + k)["tutelage_oracle_rows_total",] for k in range(2)]
    assert sorted(rows) == [0, 7]


def test_a_taken_port_for_metrics_is_one_line():
    with serving(FIRST_TWO) as address:
        for given, words in (
            ("127.0.0.1:nine", "--metrics-address: '127.0.0.1:nine' is not of the form HOST:PORT"),
            (address, f"cannot answer Prometheus on {address}: Address already in use"),
        ):
            done = tutelage(
                "serve", "scripted:cartpole", "--address", "127.0.0.1:0", "--metrics-address", given
            )
            assert (done.returncode, done.stderr) == (2, f"error: {words}\n")


def test_buckets_are_cumulative():
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 2, 30):
        histogram.observe(value)
    assert histogram.buckets() == [("1", 2), ("10", 3), ("+Inf", 4)]
    assert histogram.total == 33.5


def test_events_are_lines(caplog):
    caplog.set_level(logging.INFO, LOG.name)
    LOG.propagate = True
    event("serving", address="a:1", tls=False)
    for _ in range(3):
        fault("test refused", reason="no token\nat all")
    assert len(caplog.records) == 2  # a fault that repeats is not repeated
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert lines[0] | {"event": "serving", "level": "info", "address": "a:1", "tls": False} == lines[0]
    assert lines[1]["reason"] == "no token\nat all"
    assert TextFormatter().format(caplog.records[0]) == "info: serving (address=a:1, tls=False)"


def test_the_log_of_a_service_in_json():
    with process("tests/oracles.py:Slow", "0.0.0.0:0", "--log-format", "json") as (child, address):
        oracle = RemoteOracle([address.replace("0.0.0.0", "127.0.0.1")])
        for _ in range(2):
            with pytest.raises(Exception, match="negative numbers"):
                oracle.act(-OBS)
        child.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in ended(child).splitlines()]
    assert [line["event"].split(" ", 1)[0] for line in lines] == [
        "0.0.0.0:0", "serving", "expert", "draining", "stopped",
    ]  # fmt: skip
    assert lines[0]["level"] == lines[2]["level"] == "warning"
    assert "has no TLS" in lines[0]["event"]
    assert lines[2]["error"] == "RuntimeError: negative numbers"


def test_the_warning_of_an_open_service_is_one_line():
    with process("scripted:cartpole", "0.0.0.0:0") as (child, _):
        child.terminate()
        assert ended(child) == (
            "warning: 0.0.0.0:0 can be reached from other machines and has no TLS (--tls-cert, --tls-key) "
            "and no tokens (--token-file) or client certificates (--client-ca)\n"
        )


def test_ping_says_who_is_there():
    with serving(SCRIPTED["cartpole"], name="me", env_id="CartPole-v1") as address:
        done = tutelage("ping", f"grpc://{address}", "--json")
        said = json.loads(done.stdout.splitlines()[-1])
        assert done.stdout.startswith(f"{address} is me (version ")
        assert said["health"] == "SERVING"
        assert said["observation_space"] == "Box(4,)"
        assert said["action_space"] == "Discrete(2)"
        assert 0 < said["p50_ms"] <= said["p99_ms"]
        assert said["needless_token"] is None


def test_ping_notices_a_token_that_nobody_asks_for():
    with serving(FIRST_TWO) as address:
        done = tutelage("ping", address, "token=word")
        assert done.stdout.endswith("asks for no token, and was sent that of the argument `token`\n")
        assert "is expert (version " in done.stdout


def test_ping_says_that_health_is_not_offered(monkeypatch):
    monkeypatch.setattr("expert_oracle.server.health_pb2_grpc.add_HealthServicer_to_server", lambda *_: None)
    with serving(FIRST_TWO) as address:
        assert ", health: not offered\n" in tutelage("ping", address).stdout


def test_bench_measures_by_batch():
    with serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as address:
        done = tutelage("bench", address, "--batch", 1, "--batch", 64, "--seconds", 0.1, "--json")
        rows = json.loads(done.stdout.splitlines()[-1])["rows"]
        assert [(row["rpc"], row["batch"], row["in_flight"]) for row in rows] == [
            (rpc, batch, in_flight)
            for batch in (1, 64)
            for rpc, in_flight in (("unary", 1), ("stream", 1), ("stream", 16))
        ]
        assert all(row["labels_per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_ping_and_bench_refuse_in_one_line():
    nobody = f"127.0.0.1:{free_port()}"
    with serving(FIRST_TWO) as address:
        for arguments, words in (
            (
                ["ping", nobody, "connect_timeout_s=0.5"],
                f"no expert answers at grpc://{nobody}: tried for 0.5 s",
            ),
            (["ping", "nowhere"], "expert address 'nowhere' is not of the form HOST:PORT"),
            (["ping", nobody, "tsl=true"], "did you mean 'tls'?"),
            (["ping", "http://localhost:1"], "'http://localhost:1' is not of the form HOST:PORT"),
            (["bench", address], "serve it with --env, or give --shape"),
            (["bench", address, "--shape", "5;3"], "--shape: '5;3' is not of the form 17 or 84,84,3"),
        ):
            done = tutelage(*arguments)
            assert done.returncode == 2
            assert (done.stdout, done.stderr.count("\n")) == ("", 1)
            assert words in done.stderr
        assert tutelage("bench", address, "--shape", "5", "--seconds", "0.1").returncode == 0


@pytest.mark.parametrize("options", [[], ["--workers=2"]])
def test_serving_tries_the_expert_and_names_its_arguments(options):
    for word, words in (
        ("tests/oracles.py:first_two", "returned shape (1, 2), expected (1, 1): 1 of Box(-2.0, 2.0"),
        ("tests/oracles.py:Planner", "missing a required argument: 'horizon'; set horizon=VALUE"),
    ):
        command = [*SERVE, word, "--env", "Pendulum-v1", "--address", "127.0.0.1:0", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: expert {word}")
        assert words in done.stderr


def test_serving_refuses_what_cannot_be():
    for options, words in (
        (["--address", "nowhere"], "--address: 'nowhere' is not of the form HOST:PORT"),
        (["--tls-cert", "x"], "give --tls-cert and --tls-key"),
        (["--address", "203.0.113.1:0"], "cannot listen on 203.0.113.1:0: this machine has no such address"),
        (["--address", "203.0.113.1:0", "--workers=2"], "this machine has no such address"),
        (["--env", "Pendulum-v1"], "scripted:cartpole: expert's action space Discrete(2) differs"),
    ):
        done = subprocess.run(
            [*SERVE, "scripted:cartpole", *options], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert words in done.stderr
