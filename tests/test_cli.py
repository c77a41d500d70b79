"""The command line as a user meets it: real processes, one-line errors, nothing half-written."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli import main

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "evaluation.evaluation_duration=2",
    "stop.rounds=2",
    "run.episodes=3",
    "env_runners.rollout_fragment_length=64",
    "expert.oracle=scripted:cartpole",
]


def tutelage(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    done = tutelage("train", "dagger-cartpole", *QUICK, "--run", path, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["stopped_because"] == "rounds=2"
    return path


def test_a_run_leaves_what_the_guide_promises(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "summary.json", "metrics.jsonl", "returns.png", "dataset", "checkpoints"} <= names
    assert {"best", "000002"} <= {path.name for path in (run / "checkpoints").iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["expert_return"] == 500
    assert summary["expert_labels"] == summary["env_steps"] == 2 * 64
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_is_evaluated_and_plotted(run, tmp_path):
    done = tutelage("evaluate", run, "--episodes", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["episodes"] == 3
    assert tutelage("plot", run, "-o", tmp_path / "curve.png").returncode == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_resumed_with_a_later_stop(run):
    done = tutelage("resume", run, "stop.rounds=3", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rounds"], summary["expert_labels"]) == (3, 3 * 64)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.beta=0.5", r"method\.beta cannot change in a run that goes on, only stop, run, .*a new run"),
        ("training.lr=0.1", r"training\.lr cannot change"),
        ("env_runners.num_envs_per_env_runner=2", r"env_runners\.num_envs_per_env_runner cannot change"),
        ("seed=3", r"debugging\.seed cannot change"),
        ("seeds=3", r"tune\.seeds cannot change"),
        ("stop.rouns=3", r"stop\.rouns: unknown key"),
        ("stop.rounds=0", r"stop\.rounds: expected a number above 0"),
    ],
)
def test_a_resume_refuses_what_would_make_it_another_run(run, override, message, monkeypatch, capsys):
    before = (run / "config.yaml").read_text()
    monkeypatch.setattr(sys, "argv", ["tutelage", "resume", str(run), override])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"error: {message}", line), line
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_after_the_round_with_a_checkpoint(tmp_path, number):
    path = tmp_path / "run"
    quick = [setting for setting in QUICK if not setting.startswith("stop")]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "train", "dagger-cartpole", *quick, "stop.rounds=100000",
         "--run", str(path), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err[-2000:]
    summary = json.loads(out.splitlines()[-1])
    assert summary["stopped_because"] == number.name
    assert f"{summary['rounds']:06d}" in {folder.name for folder in (path / "checkpoints").iterdir()}


def nobody() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


BAD = {
    "preset": (["dager-cartpole"], r"no preset named 'dager-cartpole'; did you mean 'dagger-cartpole'"),
    "section": (["dagger-cartpole", "trainin.lr=1"], r"unknown section 'trainin'; did you mean 'training'"),
    "key": (["dagger-cartpole", "training.lrr=1"], r"training\.lrr: unknown key; did you mean 'lr'"),
    "method key": (["dagger-cartpole", "method.bta=1"], r"method\.bta: unknown key; did you mean 'beta'"),
    "stop key": (["dagger-cartpole", "stop.round=1"], r"stop\.round: unknown key; did you mean 'rounds'"),
    "type": (
        ["dagger-cartpole", "env_runners.num_env_runners=four"],
        r"env_runners\.num_env_runners: expected int, got 'four'",
    ),
    "method": (["dagger-cartpole", "method.name=daggr"], r"no method 'daggr'; did you mean 'dagger'"),
    "beta": (
        ["dagger-cartpole", "method.beta=2"],
        r"^error: (method\.)?beta: '2(\.0)?' is 2 at i = 0; probabilities lie in \[0, 1\]$",
    ),
    "environment": (
        ["dagger-cartpole", "environment.env=CartPol-v1"],
        r"'CartPol-v1' does not exist.*CartPole",
    ),
    "action space": (
        ["dagger-cartpole", "expert.oracle=scripted:lunarlander"],
        r"differs from the environment's",
    ),
    "NaN": (
        ["dagger-hopper", "expert.oracle=tests/experts_for_runs.py:nan"],
        r"experts_for_runs\.py:nan.*NaN",
    ),
    "shape": (["dagger-hopper", "expert.oracle=tests/experts_for_runs.py:wrong_shape"], r"shape"),
    "nobody": (
        [
            "dagger-cartpole",
            f"expert.oracle=grpc://127.0.0.1:{nobody()}",
            "expert.arguments.connect_timeout_s=2",
        ],
        r"127\.0\.0\.1:\d+.*2",
    ),
    "expert that cannot be made": (
        ["dagger-cartpole", "expert.oracle=tests/oracles.py:Unlicensed"],
        r"^error: expert tests/oracles\.py:Unlicensed cannot be made: PermissionError: no licence for this",
    ),
    "a setting of RLlib's": (["ppo-cartpole", "training.gamma=0.9"], r"training\.gamma: .*use method\.gamma"),
    "seeds": (["dagger-cartpole", "seeds=0"], r"tune\.seeds: expected a whole number of at least 1, got 0"),
    "seeds with a bad key": (["dagger-cartpole", "seeds=2", "stop.round=1"], r"stop\.round: unknown key"),
    "the expert's argument": (["dagger-cartpole", "gain=2"], "for the expert it is expert.arguments.gain=2"),
    "a served expert's argument": (
        ["dagger-cartpole", "expert.oracle=grpc://h:1", "gain=2"],
        "expert.arguments.gain=2 is for the connection, .* `tutelage oracle serve`",
    ),
    "an expert's file": (["dagger-cartpole", "expert.oracle=sb3:none.zip"], "no such file: .*none.zip"),
    "no expert": (["dagger-cartpole", "expert.oracle=null"], r"needs an expert"),
    "no such expert": (["dagger-cartpole", "expert.oracle=scriptd:cartpole"], r"scripted"),
    "model": (
        ["dagger-cartpole", "rl_module.model_config.fcnet_hidens=[3]"],
        r"did you mean 'fcnet_hiddens'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(case, tmp_path, monkeypatch, capsys):
    """In this process, through the entry point: a process for each would take minutes of imports."""
    arguments, message = BAD[case]
    path = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["tutelage", "train", *arguments, "--run", str(path)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1]), lines
    assert lines[-1].startswith("error: ")
    assert not path.exists(), "something was left behind"


def test_an_error_of_a_process_is_one_line_without_a_traceback(tmp_path):
    done = tutelage("train", "dager-cartpole", "--run", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: no preset named")


def test_a_folder_that_is_a_run_is_refused(run):
    done = tutelage("train", "dagger-cartpole", *QUICK, "--run", run)
    assert done.returncode == 2
    assert re.search(r"is already a run.*tutelage resume", done.stderr)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for command in ("resume", "evaluate", "plot"):
        done = tutelage(command, tmp_path / "none")
        assert done.returncode == 2
        assert "none" in done.stderr.splitlines()[-1]


def test_help_is_quick_and_teaches():
    done = tutelage("train", "--help")
    assert done.returncode == 0
    assert "dagger-cartpole" in done.stdout
    assert "resume" in done.stdout
