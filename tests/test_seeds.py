"""Several seeds of one configuration: trained, stopped, gone on with, through the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.run_directory import SEEDS, RunDirectory, is_done
from services.seeds import StopOrRequest, pool, reason, resume_seeds, seeds_of, train_seeds
from services.settings import Stop
from tutelage.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    *("evaluation.evaluation_duration=2", "run.episodes=3", "env_runners.rollout_fragment_length=64"),
    *("expert.oracle=scripted:cartpole", "stop.expert_labels=null"),
]
SECTIONS = {
    "environment": {"env": "CartPole-v1"},
    "expert": {"oracle": "scripted:cartpole"},
    "method": {"name": "dagger"},
    "tune": {"seeds": 2},
}


def started(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", *map(str, arguments), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-2000:]
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1])


def rounds(path: Path) -> list[int]:
    return [len(RunDirectory.open(path / f"seed-{k}").metrics()) for k in (0, 1)]


def test_seeds_are_trained_then_go_on_with_a_later_stop(tmp_path):
    path = tmp_path / "many"
    pooled = ended(started("train", "dagger-cartpole", *QUICK, "stop.rounds=2", "seeds=2", "--run", path))
    assert pooled["seeds"] == len(pooled["returns"]) == 2
    assert pooled["stopped_because"] == "seeds=2"
    assert pooled["expert_labels"] == 2 * 2 * 64
    assert json.loads((path / "summary.json").read_text()) == pooled
    assert (path / "returns.png").exists()
    assert rounds(path) == [2, 2]
    pooled = ended(started("resume", path, "stop.rounds=3"))
    assert rounds(path) == [3, 3]
    assert pooled["expert_labels"] == 2 * 3 * 64
    assert RunDirectory.open(path / "seed-1").config()["stop"]["rounds"] == 3


@pytest.mark.slow
def test_a_signal_ends_all_seeds_after_their_round_and_they_go_on(tmp_path):
    path = tmp_path / "many"
    process = started("train", "dagger-cartpole", *QUICK, "stop.rounds=100000", "seeds=3", "--run", path)
    deadline = time.monotonic() + 120
    while not list(path.glob("seed-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    pooled = ended(process)
    assert pooled["stopped_because"] == "SIGINT"
    begun = [folder.parent for folder in path.glob("seed-*/config.yaml")]
    assert pooled["seeds"] == len(begun) >= 1
    for folder in begun:
        assert RunDirectory.open(folder).read_summary()["stopped_because"] == "SIGINT"
        assert RunDirectory.open(folder).latest_checkpoint()
    pooled = ended(started("resume", path, "stop.rounds=1"))
    assert (pooled["seeds"], pooled["stopped_because"]) == (3, "seeds=3")


@pytest.mark.slow
def test_an_expert_that_fails_is_one_line(tmp_path):
    (tmp_path / "dies.py").write_text(
        "import numpy as np\ncalls = []\ndef act(obs):\n    calls.append(0)\n"
        "    return np.zeros(len(obs), int) if len(calls) < 9 else 1 / 0\n"
    )
    settings = [*QUICK, f"expert.oracle={tmp_path / 'dies.py'}:act", "run.baselines=false", "seeds=1"]
    process = started("train", "dagger-cartpole", *settings, "--run", tmp_path / "many")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "Traceback" not in err
    message = r"error: 1 of 1 seeds failed; first: seed 0: .*ZeroDivisionError.*`tutelage resume .*many`"
    assert re.fullmatch(message, err.strip().splitlines()[-1])


def test_a_folder_that_is_taken_is_refused(tmp_path):
    (tmp_path / SEEDS).write_text("tune: {seeds: 2}")
    with pytest.raises(ConfigError, match=r"already an experiment of several seeds; .*`tutelage resume"):
        train_seeds(SECTIONS, tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"already an experiment of several seeds"):
        RunDirectory.create(tmp_path, SECTIONS)
    RunDirectory.create(tmp_path / "run", SECTIONS).close()
    with pytest.raises(ConfigError, match=r"run is already a run; go on with `tutelage resume"):
        train_seeds(SECTIONS, tmp_path / "run", quiet=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"other things in it"):
        train_seeds(SECTIONS, tmp_path / "other", quiet=True)


def test_nothing_is_written_for_a_configuration_that_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"stop\.rounds: expected a number above 0"):
        train_seeds({**SECTIONS, "stop": {"rounds": 0}}, tmp_path / "many", quiet=True)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.beta=0.5", "method.beta cannot change in a run that goes on"),
        ("seeds=1", "tune.seeds: .* has 2 seeds, so expected at least as many, got 1"),
        ("seeds=null", "tune.seeds is missing"),
        ("seeds=0", "tune.seeds: expected a whole number of at least 1"),
    ],
)
def test_a_resume_refuses_what_would_make_it_another_experiment(tmp_path, override, message):
    (tmp_path / SEEDS).write_text("tune: {seeds: 2}\nmethod: {name: dagger}")
    with pytest.raises(ConfigError, match=message):
        resume_seeds(tmp_path, [override], quiet=True)
    assert (tmp_path / SEEDS).read_text().startswith("tune: {seeds: 2}")
    assert seeds_of({"tune": {"seeds": 4}}) == 4


def test_two_processes_cannot_go_on_with_the_same_seeds(tmp_path):
    from services.run_directory import take_lock

    (tmp_path / SEEDS).write_text("tune: {seeds: 2}")
    with take_lock(tmp_path), pytest.raises(ConfigError, match=f"being trained by process {os.getpid()}"):
        resume_seeds(tmp_path, [], quiet=True)


def test_a_request_comes_before_the_criteria_of_a_seed(tmp_path):
    stop = StopOrRequest(rounds=3, request=tmp_path / "request")
    assert isinstance(stop, Stop)
    assert stop.reached({"round": 0}, None) is None
    assert stop.reached({"round": 2}, None) == "rounds=3"
    (tmp_path / "request").write_text("SIGTERM")
    assert stop.reached({"round": 0}, None) == "SIGTERM"


@pytest.mark.parametrize(("why", "done"), [("rounds=3", True), ("SIGINT", False), (None, False)])
def test_a_seed_is_done_when_a_criterion_ended_it(why, done):
    assert is_done({"stopped_because": why, "return_mean": 3.0}) == done
    assert not is_done({})


def test_seeds_are_pooled():
    seed = {"method": "dagger", "env": "A", "expert_return": 9.0, "random_return": 1.0, "comparisons": 0}
    costs = {"env_steps": 10, "expert_labels": 5, "wall_s": 1.5}
    pooled = pool([{**seed, **costs, "return_mean": value} for value in (1.0, 2.0, 3.0, 100.0)])
    assert (pooled["return_iqm"], pooled["env_steps"], pooled["seeds"]) == (2.5, 40, 4)
    assert pool([]) == {"seeds": 0, "returns": []}


def test_the_reason_of_a_failure_is_its_last_line():
    assert re.match("boom", reason(ValueError("Traceback\n  File x\nboom: it broke\n")))
    assert reason(ValueError()) == "ValueError"
