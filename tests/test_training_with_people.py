"""A person is the expert of a run: the labeler beside it, and what becomes of a run whose person leaves."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from expert_oracle.human import context_of
from expert_oracle.loading import OracleSpec
from services.labeler import beside as beside_module
from services.labeler.answering import worker
from services.labeler.beside import GRPC, beside
from services.labeler.ledger import Ledger
from services.labeler.operator import curve_of
from services.overrides import load_config
from services.run_directory import RunDirectory
from services.settings import preflight
from tutelage.errors import ConfigError, ServiceError, Unreachable
from tutelage.types import EnvRecipe

SETTINGS = [
    *("expert.oracle=human", "run.episodes=5", "evaluation.evaluation_duration=5"),
    *("env_runners.rollout_fragment_length=40", "stop.expert_labels=80"),
]


def train(*command):
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", *command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Person:
    """Comes when the run says where, answers a while, and leaves."""

    def __init__(self, run: Path, process):
        assert process.stderr is not None
        self.said = []
        for line in process.stderr:
            self.said.append(line)
            if line.startswith(GRPC):
                break
        self.rest = threading.Thread(target=lambda: self.said.extend(process.stderr), daemon=True)
        self.rest.start()
        self.address = self.said[-1].removeprefix(GRPC).strip()
        self.token = str(run / "labeler" / "token")

    def answer(self, n):
        settings = {"token_file": self.token, "annotator": "anna", "answers": n}
        one = worker(self.address, "checkpoint:cartpole", settings)
        with contextlib.suppress(Unreachable):  # the run has what it wanted
            one.work()
        one.client.close()
        return dict(one.outcomes)


@pytest.mark.slow
def test_a_run_asks_people_and_waits_for_those_who_leave(tmp_path):
    run = tmp_path / "run"
    process = train("train", "dagger-cartpole", *SETTINGS, "--run", str(run))
    person = Person(run, process)
    assert any("/invite/" in line for line in person.said)
    assert person.answer(30) == {"accepted": 30}
    process.kill()  # with the person at work: nothing that was answered is asked again
    process.wait()
    person.rest.join()
    page = (run / "labeler" / "page").read_text()
    process = train("resume", str(run))
    again = Person(run, process)
    assert any(f"http://{page}" in line for line in again.said)
    assert again.address == person.address
    assert again.answer(10)["accepted"] == 10
    time.sleep(2)  # away
    assert process.poll() is None
    helper = threading.Thread(target=again.answer, args=(200,), daemon=True)
    helper.start()
    out, _ = process.communicate(timeout=240)
    summary = json.loads(out.splitlines()[-1])
    assert (summary["expert_labels"], summary["expert_return"]) == (80, None)
    assert (summary["expert"], summary["expert_arguments"]) == ("human", {})
    events = list(Ledger(run / "labeler" / "answers.jsonl"))
    assert len(events) >= 80
    assert len({event.question for event in events}) == len(events)
    assert [point.labels for point in curve_of(run)] == [40, 80]  # what operators see


@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_waits_for_people_is_interrupted_at_once(tmp_path, runners):
    run = tmp_path / "run"
    process = train(
        *("train", "dagger-cartpole", *SETTINGS, f"env_runners.num_env_runners={runners}"),
        *("--run", str(run)),
    )
    person = Person(run, process)
    assert person.answer(3) == {"accepted": 3}  # questions are asked, and the next answers never come
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)  # seconds, where nobody else works; people may take a day
    assert process.returncode == 0, person.said[-5:]
    assert json.loads(out.splitlines()[-1])["stopped_because"] == "SIGINT"
    process = train("resume", str(run))
    again = Person(run, process)
    assert again.answer(37) == {"accepted": 37}  # the three are not asked again
    process.kill()
    process.wait()


def test_the_labeler_ends_with_its_trainer(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from services.labeler.beside import beside\n"
        "with beside(Path(sys.argv[1])) as labeler:\n"
        "    print(labeler.connection['address'], flush=True); time.sleep(60)\n"
    )
    run = RunDirectory.create(tmp_path / "run", {"method": {"name": "dagger"}})
    run.close()
    process = subprocess.Popen([sys.executable, "-c", code, run.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with beside(run.path) as labeler:  # it waits until the folder is free
        client = OracleSpec("human", labeler.connection).build().client  # type: ignore[attr-defined]
        assert client.stats().counts["open"] == 0
        client.close()


def test_a_labeler_that_dies_is_started_again_where_it_was(tmp_path, caplog):
    run = RunDirectory.create(tmp_path / "run", {"method": {"name": "dagger"}})
    run.close()
    with beside(run.path) as labeler:
        client = OracleSpec("human", labeler.connection).build().client  # type: ignore[attr-defined]
        page = (run.path / "labeler" / "page").read_text()
        service = services_of_this_process()
        assert len(service) == 1
        service[0].kill()
        assert client.stats().counts["open"] == 0  # patient until it is back
        urllib.request.urlopen(f"http://{page}/health", timeout=10).close()
        client.close()
    assert "the labeler died (SIGKILL) and is started again" in caplog.text
    assert not services_of_this_process()


def services_of_this_process() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "services.labeler.beside" in child.cmdline()]


def test_what_the_page_needs_to_know_of_an_environment():
    import gymnasium as gym

    def of(env_id, **kwargs):
        with gym.make(env_id, **kwargs) as env:
            return context_of(env, EnvRecipe(env_id, kwargs))

    assert of("CartPole-v1") == {
        "env": "CartPole-v1",
        "space": {"n": 2, "start": 0},
        "draw": {"id": "CartPole-v1", "kwargs": {}},
    }
    pendulum = of("Pendulum-v1", g=9.0)
    assert pendulum["space"] == {"low": [-2.0], "high": [2.0]}
    assert pendulum["draw"] == {"id": "Pendulum-v1", "kwargs": {"g": 9.0}}
    assert "draw" not in of("LunarLander-v3")


def test_a_labeler_that_never_answers_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 600\n")
    mute.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(mute))
    monkeypatch.setattr(beside_module, "START_S", 0.5)
    with (
        pytest.raises(ServiceError, match=r"does not answer after 0 s \(see .*service.log\)"),
        beside(tmp_path),
    ):
        pass


def test_a_labeler_that_is_killed_at_its_start_is_said_to_be(tmp_path, monkeypatch):
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with (
        pytest.raises(ServiceError, match=r"does not start: no reason given \(SIGKILL\)"),
        beside(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "beta"),
    [
        (["expert.oracle=human"], 0),
        (["expert.oracle=human", "method.beta=0.5"], 0.5),
        ([], 1),
    ],
)
def test_people_do_not_act_in_the_first_round_unless_they_are_told_to(settings, beta):
    method = preflight(load_config("dagger-cartpole", settings)).learning_method
    assert method is not None
    assert method.beta_at(0) == beta


@pytest.mark.parametrize("word", ["slow:human", "noisy:human", "watching:human"])
def test_people_behind_wrappers_are_not_asked_at_the_start(word):
    method = preflight(load_config("dagger-cartpole", [f"expert.oracle={word}"])).learning_method
    assert method is not None
    assert method.beta_at(0) == 0
    with pytest.raises(ConfigError, match="'adress'"):
        preflight(load_config("dagger-cartpole", [f"expert.oracle={word}", "expert.arguments.adress=x:1"]))


def test_people_who_watch_by_a_rule_may_take_over():
    preflight(load_config("dagger-cartpole", ["method.name=hg_dagger", "expert.oracle=watching:human"]))
    with pytest.raises(ConfigError, match="slow:human only answers"):
        preflight(load_config("dagger-cartpole", ["method.name=hg_dagger", "expert.oracle=slow:human"]))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["stop.expert_fraction=0.9"], r"expert_fraction can never be reached: people are not measured"),
        (["method.name=hg_dagger"], r"hg_dagger needs an expert that takes over by itself, and human only"),
        (["expert.arguments.adress=x:1"], r"human: .*'adress'"),
        (["expert.arguments.address=nowhere"], r"labeler: 'nowhere' is not of the form HOST:PORT"),
    ],
)
def test_what_people_cannot_do_is_said_before_anything_starts(settings, line):
    with pytest.raises(ConfigError, match=line):
        preflight(load_config("dagger-cartpole", ["expert.oracle=human", *settings]))
    with pytest.raises(ConfigError, match=r"human: where are they\? Set expert.arguments.address"):
        OracleSpec("human").build()
