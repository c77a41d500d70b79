"""Runs that learn from comparisons: a hidden reward from few answers; kills in turn; people and machines."""

import contextlib
import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from actors.collect import Collector
from actors.forward import random_actor
from learner.comparisons import Comparisons
from services.labeler.answering import worker
from services.labeler.beside import GRPC
from services.labeler.ledger import Ledger
from services.labeler.serve import Running
from services.overrides import load_config
from services.preferences import LabelerSpec, Preferences
from services.settings import build_config
from services.trainer_config import TrainerConfig
from tests.browser import CHROMIUM, GUIDED, GUIDES, SETTLED, chromium
from tests.labelers import Page, page, served, wait_for
from tutelage.errors import ServiceError, Unreachable

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240
SMALL = [
    *("method.comparisons=40", "method.first_share=0.5", "method.batch=5", "method.segment_length=12"),
    *("env_runners.num_envs_per_env_runner=4", "env_runners.rollout_fragment_length=64"),
    *("run.episodes=5", "run.baselines=false", "evaluation.evaluation_interval=null"),
]


def tutelage(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def summary_of(process: subprocess.Popen) -> dict:
    out, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error[-2000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def processes():
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        process.communicate()


class Machine(threading.Thread):
    """A teacher in the name of somebody, who goes on whatever becomes of the service."""

    def __init__(self, address: str, token: Path, annotator: str, **habits):
        super().__init__(daemon=True)
        self.address, self.over = address, threading.Event()
        self.habits = {"token_file": str(token), "annotator": annotator, "n": 2, **habits}
        self.start()

    def run(self):
        while not self.over.is_set():
            with contextlib.suppress(Unreachable, ServiceError):
                one = worker(self.address, "oracle", {**self.habits, "answers": 5})
                try:
                    one.work()
                finally:
                    one.client.close()
                if self.habits.get("answers"):
                    return


@pytest.mark.slow
def test_an_upright_pole_is_learnt_from_300_answers_that_never_mention_its_end(tmp_path, processes):
    run = tmp_path / "run"
    quick = ["run.baselines=false", "run.episodes=30", "evaluation.evaluation_interval=null"]
    processes.append(tutelage("train", "preference-cartpole", *quick, "--run", str(run), "--json"))
    summary = summary_of(processes[-1])
    assert summary["comparisons"] <= 300
    assert summary["return_mean"] >= 475  # at random: 22


def test_nothing_is_lost_or_counted_twice_when_trainer_labeler_and_store_are_killed(tmp_path, processes):
    run, folder, token = tmp_path / "run", tmp_path / "labeler", tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    machines = tmp_path / "machines"
    machines.write_text(f"{token.read_text()} trainer trainer\n")

    def serve(address):
        process = tutelage(
            *("labeler", "serve", "--folder", str(folder), "--grpc-address", address),
            *("--address", "127.0.0.1:0", "--token-file", str(machines)),
            *("--repeats", "0", "--overlap", "0", "--gold", "0"),
        )
        processes.append(process)
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.strip().startswith(GRPC))
        return process, line.strip().removeprefix(GRPC).strip()

    service, address = serve("127.0.0.1:0")
    settings = [
        f"feedback.labeler=grpc://{address}",
        f"feedback.arguments.token_file={token}",
        *("stop.env_steps=null", "stop.comparisons=40", "method.ask_until=2000", "run.checkpoint_every_s=1"),
    ]
    trainer = tutelage("train", "preference-cartpole", *SMALL, *settings, "--run", str(run), "--json")
    processes.append(trainer)
    machine = Machine(address, token, "anna", delay_s=0.1)

    def until(answers):
        deadline = time.monotonic() + PATIENCE_S
        while len(known := list(Ledger(folder / "answers.jsonl"))) < answers:
            assert trainer.poll() is None, trainer.communicate()
            assert time.monotonic() < deadline, f"{len(known)} answers"
            time.sleep(0.1)

    until(5)
    (store,) = [p for p in psutil.Process(service.pid).children() if "valkey" in " ".join(p.cmdline())]
    store.kill()
    until(12)
    service.kill()
    for child in (p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or ())):
        child.wait(20)  # its store ends with it
    service, again = serve(address)
    assert again == address
    until(22)
    trainer.kill()
    trainer = tutelage("resume", str(run), "--json")
    processes.append(trainer)
    summary = summary_of(trainer)
    machine.over.set()

    answered = [(event.question, event.annotator) for event in Ledger(folder / "answers.jsonl")]
    assert len(answered) == len(set(answered)), "an answer was counted twice"
    lines = [json.loads(line) for line in (run / "preferences" / "index.jsonl").read_text().splitlines()]
    heard = [(line["query"], line["annotator"]) for line in lines if "query" in line]
    assert len(heard) == len(set(heard)) == summary["comparisons"] == 40
    assert set(heard) <= set(answered)
    assert len({line["asked"] for line in lines if "asked" in line}) == 40
    assert len(Comparisons(run / "preferences")) >= 35  # ties and all; only doubts teach nothing


RESTLESS = "environment.env=tests.environments_for_tests:Restless-v0"


def machines_of(folder: Path) -> tuple[Path, Path]:
    """A trainer's token, and the file by which a labeler knows it."""
    token, machines = folder / "token", folder / "machines"
    token.write_text("0123456789abcdef0123456789abcdef")
    machines.write_text(f"{token.read_text()} trainer trainer\n")
    return token, machines


def looked_at(anna: Page, running: Running, n: int) -> list[str]:
    """The next `n` questions, once their clips show what was observed: `Restless` says it by its greys."""
    asked = wait_for(lambda: len(found := anna.do("lease", n=n)["questions"]) == n and found)
    for question in asked:
        segments = running.labeling.query(question["id"]).options
        for panel in question["view"]["panels"]:
            shown = greys(anna.get(f"/clips/{panel['clip']}").content)
            assert shown.shape == (13,)  # one before each step, and the last
            np.testing.assert_allclose(shown[:12], segments[panel["option"]].obs[:, 0], atol=0.03)
    return [question["id"] for question in asked]


def test_people_see_what_was_drawn_where_nothing_can_be_replayed_also_after_a_restart(tmp_path):
    token, machines = machines_of(tmp_path)
    config = build_config(load_config("preference-cartpole", [*SMALL, RESTLESS, "method.comparisons=4"]))
    labelers = {"grpc_address": "127.0.0.1:0", "token_file": str(machines), "gold": 0.0}
    seen = list[list[str]]()
    for folder in ("first", "second"):  # which knows of nothing: what is open is asked there, whole
        with served(tmp_path / folder, **labelers) as running:
            spec = LabelerSpec(f"grpc://{running.grpc_address}", {"token_file": str(token)})
            config.feedback(labeler=spec.labeler)
            collector = Collector(config.env_recipe(), 4, drawn=config.drawn_if_not_replayed())
            act = random_actor(collector.envs.action_space, 0)
            settings, envs = config.reward_settings(), collector.envs
            assert settings is not None
            spaces = envs.observation_space, envs.action_space
            preferences = Preferences(settings, spaces, tmp_path / "preferences", spec, 0)
            preferences.advance([] if seen else [collector.collect(act, 64) for _ in range(2)], 0)
            with contextlib.closing(page(running)) as anna:
                seen.append(looked_at(anna, running, 2))
                if len(seen) == 2:
                    for id in seen[-1]:
                        anna.do("answer", question=id, value=[1, 0])
                    assert wait_for(lambda side=preferences: side.advance([], 0).ready)
            preferences.close()
    assert sorted(seen[0]) == sorted(seen[1])


@pytest.mark.slow
def test_a_run_asks_people_where_nothing_can_be_replayed(tmp_path, processes):
    run, (token, machines) = tmp_path / "run", machines_of(tmp_path)
    labeler = {"grpc_address": "127.0.0.1:0", "token_file": str(machines), "gold": 0.0}
    with served(tmp_path / "labeler", **labeler) as running:
        settings = [
            *(f"feedback.labeler=grpc://{running.grpc_address}", f"feedback.arguments.token_file={token}"),
            *("method.comparisons=4", "stop.comparisons=4", "stop.env_steps=null"),
            *("method.ask_until=1000", "method.batch=2"),
        ]
        trainer = tutelage(
            *("train", "preference-cartpole", *SMALL, RESTLESS, *settings, "--run", str(run), "--json")
        )
        processes.append(trainer)
        with contextlib.closing(page(running)) as anna:
            for _ in range(2):
                for id in looked_at(anna, running, 2):
                    anna.do("answer", question=id, value=[1, 0])
        assert summary_of(trainer)["comparisons"] == 4


def greys(video: bytes) -> np.ndarray:
    """How bright each picture of a video is, from 0 to 1."""
    with av.open(io.BytesIO(video), "r") as container:
        return np.array(
            [frame.to_ndarray(format="rgb24").mean() / 255 for frame in container.decode(video=0)]
        )


SLOW = """
import time
from expert_oracle.synthetic import Teacher

class Slow(Teacher):
    def label(self, queries):
        time.sleep(0.4 if self._seen else 0.0)
        return super().label(queries)
"""


@pytest.mark.usefixtures("ray_session")
def test_the_policy_goes_on_while_somebody_thinks_and_its_reward_is_only_so_old(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    asking = {"comparisons": 40, "first_share": 0.5, "batch": 2, "segment_length": 12, "ask_until": 1500}
    config = (
        TrainerConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=1, num_envs_per_env_runner=4, rollout_fragment_length=32)
        .method("preference", passes=1, members=2, reward_hiddens=(16,), **asking)
        .feedback(
            labeler=f"{tmp_path / 'slow.py'}:Slow",
            arguments={"reward": "expert_oracle.tasks:upright"},
            max_reward_lag=2,
        )
        .collection(asynchronous=True)
        .training(minibatch_size=64, num_epochs=1)
        .evaluation(evaluation_interval=None)
        .storage(run_directory=tmp_path / "run")
        .debugging(seed=1)
    )
    trainer = config.build_trainer()
    rounds = []
    while trainer.env_steps < 1500:
        trainer.train()
        rounds.append(dict(trainer.figures))
    trainer.stop()
    learning = [one for one in rounds if "waiting" not in one]
    assert len(learning) >= 8
    assert all(one["minibatches"] == 2 for one in learning)
    assert max(one["reward_lag"] for one in learning) == 2
    assert rounds[-1]["comparisons"] > learning[0]["comparisons"] == 20
    assert np.isfinite([one["reward_loss"] for one in learning]).all()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")
def test_people_in_the_page_and_machines_teach_the_same_reward(tmp_path, processes):
    run = tmp_path / "run"
    settings = [
        "feedback.labeler=human",
        "stop.env_steps=null",
        "stop.comparisons=40",
        "method.ask_until=2000",
    ]
    process = tutelage("train", "preference-cartpole", *SMALL, *settings, "--run", str(run), "--json")
    processes.append(process)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(GRPC):
            break
    link = next(found[0] for line in said if (found := re.search(r"http://\S+/invite/\S+", line)))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with chromium() as browser:
        page = browser.new_page()
        page.add_init_script(GUIDED % json.dumps(GUIDES))
        page.goto(link)
        page.locator("input").fill("Anna")
        page.keyboard.press("Enter")
        for i in range(8):
            page.wait_for_function(SETTLED, timeout=60_000)
            page.keyboard.press("ArrowLeft" if i % 2 else "ArrowRight")
        page.wait_for_timeout(2000)
    machine = Machine(said[-1].removeprefix(GRPC).strip(), run / "labeler" / "token", "machine")
    assert process.stdout is not None
    summary = json.loads(process.stdout.read().splitlines()[-1])
    machine.over.set()
    data = Comparisons(run / "preferences")
    assert summary["comparisons"] == data.answered >= 40
    assert {"machine"} < set(data.annotators())
    people = [name for name in data.annotators() if name != "machine"]
    assert len(people) >= 6
