"""Real processes are killed with SIGKILL during a run; at its end every label is there, counted once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from learner.dataset import Dataset

ROOT = Path(__file__).resolve().parents[1]
LABELS = 20 * 2 * 2 * 32  # rounds × runners × environments × steps
PATIENCE_S = 150


def tutelage(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", *arguments], cwd=ROOT, text=True, **options
    )


def serve(port: int) -> subprocess.Popen:
    """An expert that takes its time, so that there is a run to disturb."""
    expert = "tests/experts_for_runs.py:SlowCartPole"
    process = tutelage(
        "oracle", "serve", expert, "seconds=0.1", "--env", "CartPole-v1", "--address", f"127.0.0.1:{port}",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert str(port) in process.stdout.readline()
    return process


def kill(process: psutil.Process | subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(20)


def rounds(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_rounds(run: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while rounds(run) < count:
        assert process.poll() is None, f"the run ended with {process.returncode} after {rounds(run)} rounds"
        assert time.monotonic() < deadline, f"{rounds(run)} of {count} rounds after {PATIENCE_S} s"
        time.sleep(0.1)


def runners_of(trainer: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(trainer.pid).children(recursive=True)
    return [child for child in children if any("RolloutRunner" in part for part in child.cmdline()[:1])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def processes():
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            for victim in [*children, process]:
                victim.kill()
            process.wait()


def test_a_run_survives_the_death_of_runner_expert_and_trainer(tmp_path, processes):
    run, port = tmp_path / "run", free_port()
    processes.append(serve(port))
    settings = [
        f"expert.oracle=grpc://127.0.0.1:{port}",
        "env_runners.num_env_runners=2",
        "env_runners.num_envs_per_env_runner=2",
        "env_runners.rollout_fragment_length=32",
        "evaluation.evaluation_duration=2",
        f"stop.expert_labels={LABELS}",
        "run.episodes=5",
        "run.baselines=false",
        "run.checkpoint_every_s=2",
    ]
    trainer = tutelage("train", "dagger-cartpole", *settings, "--run", str(run))
    processes.append(trainer)

    wait_for_rounds(run, 3, trainer)
    victims = runners_of(trainer)
    assert len(victims) == 2
    kill(victims[0])

    wait_for_rounds(run, rounds(run) + 2, trainer)
    kill(processes[0])
    time.sleep(5)
    processes[0] = serve(port)

    wait_for_rounds(run, rounds(run) + 2, trainer)
    before = Dataset(run / "dataset", writable=False).labels
    kill(trainer)
    assert before < LABELS

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    resumed = subprocess.run(
        [sys.executable, "-m", "services.cli", "resume", str(run), "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    summary = json.loads(resumed.stdout.splitlines()[-1])
    dataset = Dataset(run / "dataset", writable=False)
    assert summary["expert_labels"] == dataset.labels == dataset.steps == summary["env_steps"] == LABELS
    assert dataset.lost == []
    chunk = next(dataset.batches(rows=2 * LABELS, seed=0, epochs=1, columns=("obs", "round", "runner")))
    assert len(np.unique(chunk["round"])) == LABELS // 128
    assert len(np.unique(chunk["obs"], axis=0)) > 0.99 * LABELS, "rows were stored twice"
    steps = [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
