"""Jobs on real Ray: what a run leaves behind when learners die, runners are added and settings change."""

import os
import signal
from typing import Any

import pytest

from learner.dataset import Dataset
from services.commands import more_than, scale_command
from services.job import Job, cpus_wanted, last_words, unanswered
from services.progress import Progress
from services.run_directory import RunDirectory
from services.settings import build_config
from services.trainer import Trainer
from tutelage.errors import ConfigError, OracleError

pytestmark = pytest.mark.usefixtures("ray_session")


def sections(**more):
    """DAgger on CartPole, small; `more` is merged by section."""
    config = {
        "environment": {"env": "CartPole-v1"},
        "env_runners": {
            "num_env_runners": 0,
            "num_envs_per_env_runner": 4,
            "rollout_fragment_length": 32,
        },
        "expert": {"oracle": "scripted:cartpole"},
        "method": {"name": "dagger"},
        "training": {"minibatch_size": 64},
        "evaluation": {"evaluation_duration": 2},
        "run": {"episodes": 3, "baselines": False, "checkpoint_every_s": 0.0},
        "stop": {"rounds": 4},
        "debugging": {"seed": 1},
    }
    return config | {name: {**config.get(name, {}), **values} for name, values in more.items()}


class Watcher(Progress):
    """A view of a run that does something after some rounds."""

    def __init__(self, actions=()):
        super().__init__("run", {}, quiet=True)
        self.actions = dict(actions)  # number of rounds seen -> function of the job
        self.job: Any = None
        self.seen, self.notes = 0, []

    def note(self, words):
        self.notes.append(words)

    def update(self, figures):
        self.seen += 1
        self.actions.get(self.seen, lambda job: None)(self.job)


def execute(run, config, watcher=None):
    watcher = watcher or Watcher()
    watcher.job = Job(run, config)
    return watcher.job.execute(watcher)


def kill_the_last_learner(job):
    pid = job.trainer._all_learners(lambda learner: os.getpid())[-1]
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("learners", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_learner_goes_on_from_the_last_checkpoint(tmp_path, learners):
    config = sections(
        learners={"num_learners": learners, "num_cpus_per_learner": 1},
        method={"beta": 0.0},  # then it is asked about whole rollouts
        expert={
            "oracle": "tests/experts_for_runs.py:Counting",
            "arguments": {"file": str(tmp_path / "asked")},
        },
    )
    watcher = Watcher({2: kill_the_last_learner})
    with RunDirectory.create(tmp_path / "run", config) as run:
        summary = execute(run, config, watcher)
    assert any("a learner died" in note for note in watcher.notes)
    assert summary["rounds"] == 4
    labels = Dataset(run.dataset, writable=False).labels
    assert summary["expert_labels"] == summary["env_steps"] == labels == 4 * 128
    assert (tmp_path / "asked").stat().st_size == 4 * 128, "somebody was asked again"
    assert [line["round"] for line in run.metrics()] == [0, 1, 2, 3]


def test_a_run_that_ended_before_its_last_fit_makes_up_for_it(tmp_path):
    config = sections(method={"name": "bc"}, stop={"rounds": 1}, run={"checkpoint_every_s": 60.0})
    config["env_runners"] |= {"rollout_fragment_length": 500}
    with RunDirectory.create(tmp_path / "run", config) as run:
        trainer = Trainer(config=Job(run, config).config)
        try:
            (rollout,) = trainer._collect(beta=1.0)
            trainer.store([("round-00000000", 0, [rollout])])  # and then the process was killed
        finally:
            trainer.stop()
        summary = execute(run, config)
    assert summary["rounds"] == 1
    assert summary["expert_labels"] == 2000
    assert summary["return_mean"] > 100  # chance gets 22
    assert [line["round"] for line in run.metrics()] == [0]


def test_a_run_in_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create("runs/one", sections()) as run:
        assert execute(run, sections())["rounds"] == 4
    with RunDirectory.resume("runs/one") as run:
        assert execute(run, sections(stop={"rounds": 5}))["rounds"] == 5


def test_a_run_is_scaled_as_far_as_there_is_room_and_resumed_with_as_many_runners(tmp_path):
    config = sections(env_runners={"num_env_runners": 1})
    watcher = Watcher({1: lambda job: scale_command(run.path, 99), 2: lambda job: scale_command(run.path, 2)})
    with RunDirectory.create(tmp_path / "run", config) as run:
        summary = execute(run, config, watcher)
    assert any("no room for 99 env runners" in note for note in watcher.notes)
    assert summary["env_steps"] == (2 * 1 + 2 * 2) * 128
    assert run.config()["env_runners"]["num_env_runners"] == 2


def test_asynchronous_labels_under_way_at_the_end_are_kept(tmp_path):
    config = sections(
        env_runners={"num_env_runners": 2},
        collection={"asynchronous": True},
        expert={"oracle": "tests/experts_for_runs.py:SlowCartPole", "arguments": {"seconds": 0.1}},
    )
    with RunDirectory.create(tmp_path / "run", config) as run:
        summary = execute(run, config)
    dataset = Dataset(run.dataset, writable=False)
    assert summary["expert_labels"] == dataset.labels == dataset.steps == summary["env_steps"]
    assert any("-after-" in key for key in dataset.keys), "nothing was under way"


def test_what_others_labelled_is_kept_when_one_runners_expert_fails(tmp_path):
    config = sections(
        env_runners={"num_env_runners": 2},
        expert={"oracle": "tests/experts_for_runs.py:OneFails", "arguments": {"folder": str(tmp_path)}},
    )
    with RunDirectory.create(tmp_path / "run", config) as run, pytest.raises(OracleError, match="had enough"):
        execute(run, config)
    labels = Dataset(run.dataset, writable=False).labels
    assert labels > 0
    assert labels % 256 == 128, "the rollout of the runner whose expert answered"


def test_baselines_are_measured_again_when_the_expert_or_the_episodes_change(tmp_path):
    config = sections(run={"baselines": True}, stop={"rounds": 1})
    with RunDirectory.create(tmp_path / "run", config) as run:
        first = execute(run, config)
        assert Job(run, config).known["expert_return"] == first["expert_return"]
        other = sections(run={"baselines": True}, expert={"oracle": "tests/experts_for_runs.py:SlowCartPole"})
        assert "expert_return" not in Job(run, other).known
        assert Job(run, other).known["random_return"] == first["random_return"]
        assert Job(run, sections(run={"episodes": 5})).known == {}


def test_an_earlier_result_stays_in_the_summary_until_there_is_a_new_one(tmp_path):
    config = sections(run={"baselines": True}, stop={"rounds": 1})
    with RunDirectory.create(tmp_path / "run", config) as run:
        first = execute(run, config)
        job = Job(run, config)
        job.trainer = Trainer(config=job.config)
        try:
            job._measure_baselines(Watcher())
        finally:
            job.trainer.stop()
        summary = run.read_summary()
    assert summary["return_mean"] == first["return_mean"]
    assert summary["stopped_because"] is None


def test_room_that_a_job_takes():
    config = sections(
        env_runners={"num_env_runners": 4}, learners={"num_learners": 2, "num_cpus_per_learner": 3}
    )
    assert cpus_wanted(build_config(config)) == 4 * 1 + 2 * 3 + 1


def test_a_run_without_runners_of_its_own_cannot_be_scaled(tmp_path):
    with (
        RunDirectory.create(tmp_path / "run", sections()) as run,
        pytest.raises(ConfigError, match="own process"),
    ):
        scale_command(run.path, 2)


def test_the_last_words_say_how_to_go_on(tmp_path):
    run = RunDirectory(tmp_path)
    assert last_words(run, "SIGINT") == f"{tmp_path} ended by SIGINT; go on with `tutelage resume {tmp_path}`"
    assert last_words(run, "rounds=4") == f"{tmp_path} ended by rounds=4"


def test_what_people_had_no_time_for_is_counted_at_the_end(tmp_path):
    with RunDirectory.create(tmp_path / "run", sections()) as run:
        assert unanswered(run, "env_steps=5000") == ""
        run.log({"asked": 300.0, "comparisons": 115.0, "unanswered": 196.0, "env_steps": 5000}, step=5000)
        said = unanswered(run, "env_steps=5000")
        assert said.startswith("196 of 300 comparisons are unanswered; `tutelage resume ")
        assert "stop.env_steps=10000" in said
        assert "stop." not in unanswered(run, "SIGINT")


def test_a_hint_gives_more_of_what_a_run_has_ended_by():
    assert more_than("env_steps=8000") == "stop.env_steps=16000"
    assert more_than("rounds=4") == "stop.rounds=8"
    assert more_than("all dead") == "stop.rounds=100"
