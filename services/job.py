"""A job: one training run from its configuration to its summary, safe to stop at any moment."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError
from rich.console import Console

from actors.environments import make_env
from actors.evaluation import evaluate
from expert_oracle.checkpoint import load_checkpoint
from expert_oracle.human import KIND as ACTION
from expert_oracle.human import context_of
from services import report
from services.labeler.beside import beside
from services.labeler.client import LabelerClient
from services.preferences import PEOPLE
from services.progress import Progress
from services.run_directory import RunDirectory
from services.settings import PAGE, RunSettings, Sections, Stop, build_config, preflight, settings_of
from services.trainer import Trainer, result_seeds
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError, OracleError, TrainingError
from tutelage.protocols import Oracle
from tutelage.types import EnvRecipe

CONTROL = "control.json"  # a request to a run that goes on
STARTS = 2
RESTARTS = 3  # in a row, of a trainer whose learner died, from the last checkpoint
SPARE_CPUS = 16  # of a Ray started here, for `tutelage scale`: they are tickets, not cores


def start_ray(config: TrainerConfig, *, spare_cpus: int = 0) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one here that has room for this job.

    A Ray started here listens on the network: it gets a token of its own that dies with this process, unless
    the environment says otherwise (RAY_AUTH_MODE, RAY_AUTH_TOKEN).
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # warnings of Ray's core that users cannot act on
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cpus = max(os.cpu_count() or 1, cpus_wanted(config)) + spare_cpus
    with nothing_on_stderr():
        start_here(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


def start_here(**settings: Any) -> None:
    """Start a Ray on this machine; once more where it was too busy to start within Ray's half a minute.

    Raises TrainingError where that did not help.
    """
    for attempt in range(STARTS):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray raises no type of its own
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == STARTS - 1:
                raise TrainingError("Ray did not start in a minute; is the machine overloaded?") from error


@contextlib.contextmanager
def nothing_on_stderr() -> Iterator[None]:
    """Ray's core greets on the descriptor itself, in the middle of whatever is drawn there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def cpus_wanted(config: TrainerConfig) -> int:
    """CPUs that one job takes, its own process included."""
    per_learner = config.num_cpus_per_learner
    of_learners = (config.num_learners or 0) * (per_learner if isinstance(per_learner, int | float) else 1)
    of_runners = config.num_env_runners * (config.num_cpus_per_env_runner or 1)
    return math.ceil(of_learners + of_runners) + 1


class NotWaited(BaseException):
    """A first signal came while people were waited for."""


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag; the second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._waits = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interruption]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # a trial of Tune, which has its own way of stopping
            return
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        at_once = self._waits or self.signal is not None
        self.signal = self.signal or signal.Signals(number).name
        if at_once:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may take days: the first signal ends it by NotWaited."""
        self._waits = True
        try:
            if self.signal is not None:
                raise NotWaited
            yield
        except KeyboardInterrupt:
            raise NotWaited from None
        finally:
            self._waits = False


class Job:
    """Trains in a run directory until a stop criterion or a signal; then measures and summarises."""

    def __init__(self, run: RunDirectory, sections: Sections) -> None:
        self.run = run
        self.sections = sections
        self.stop: Stop = settings_of(Stop, "stop", sections)
        self.settings: RunSettings = settings_of(RunSettings, "run", sections)
        self.config = build_config(sections, run)
        self.recipe: EnvRecipe = self.config.env_recipe()
        self.expert = self.config.oracle_spec  # as it is written down
        self.before = run.read_summary()  # of an earlier part of this run
        self.known = self._known_baselines()
        self.trainer: Trainer | None = None
        self.interruption = Interruption()
        self.saved = time.monotonic()  # when the last checkpoint was written
        self.wall_before = float((run.metrics() or [{}])[-1].get("wall_s", 0.0))

    def execute(self, progress: Progress) -> dict[str, Any]:
        """Train to the end; the summary."""
        started = time.monotonic()
        self._begin_summary()  # by which its labeler, too, knows that it goes on
        start_ray(self.config, spare_cpus=SPARE_CPUS)
        with Interruption().caught() as interruption, self._people(progress):
            self.interruption = interruption
            try:
                self.trainer = self._restore_or_build(progress)
                self._measure_baselines(progress)
                why = self._train(started, progress, interruption)
                return self._summarise(why, started)
            finally:
                if self.trainer is not None:
                    self.trainer.stop()

    @contextlib.contextmanager
    def _people(self, progress: Progress) -> Iterator[None]:
        """The way to people, where they are asked: a labeler that is served, or one of this run."""
        compares = self.config.labeler_spec
        if compares is not None and compares.labeler == PEOPLE:
            given = dict(compares.arguments)
            with beside(self.run.path, given.pop(PAGE, "")) as labeler:
                progress.say(labeler.links)
                self.config.feedback(arguments={**given, **labeler.connection})
                yield
            return
        if self.expert is None or self.expert.inside != PEOPLE:
            yield
            return
        given = dict(self.expert.arguments)
        page = "" if given.get("address") else given.pop(PAGE, "")
        env = make_env(self.recipe)
        given["context"] = {**context_of(env, self.recipe), **given.get("context", {})}
        env.close()
        with contextlib.ExitStack() as stack:
            if not given.get("address"):
                labeler = stack.enter_context(beside(self.run.path, page))
                progress.say(labeler.links)
                given |= labeler.connection
                forget_old_questions(labeler.connection)
            self.config.expert(arguments=given)
            yield

    def _restore_or_build(self, progress: Progress, rescued: Sequence[Any] = ()) -> Trainer:
        """The trainer of the last checkpoint or a new one, with all that is on disk or was rescued."""
        checkpoint = self.run.latest_checkpoint()
        if checkpoint is None:
            trainer = Trainer(config=self.config)
        else:
            trainer = Trainer.restored(checkpoint, self.config)
        trainer.stopping = lambda: self.interruption.signal is not None
        trainer.waiting, trainer.note = self.interruption.waiting, progress.note
        if rescued:
            trainer.store(rescued)
        self.run.truncate_after(trainer.round - 2 if trainer.behind else trainer.round - 1)
        if trainer.catch_up():
            trainer.figures["wall_s"] = self.wall_before
            self.run.log(trainer.figures, step=trainer.env_steps)
        return trainer

    def _measure_baselines(self, progress: Progress) -> None:
        """The expert's and a random policy's return, on the seeds of the final measurement."""
        assert self.trainer is not None
        if not self.settings.baselines:
            return
        seeds = result_seeds(self.config.seed, self.settings.episodes)
        wanted = {"random_return": "random"} | (
            {"expert_return": "oracle"} if self.expert and not self.expert.asks_people else {}
        )
        for key, policy in wanted.items():
            if key not in self.known:
                progress.note(f"measuring the {'expert' if policy == 'oracle' else 'random policy'}")
                returns, _ = self.trainer.measure(seeds, policy)  # type: ignore[arg-type]
                mean, low, high = report.mean_ci95(returns)
                self.known |= {key: mean, key.replace("return", "ci95"): [low, high]}
        self._begin_summary()

    def _begin_summary(self) -> None:
        self.run.write_summary({**self.before, **self._facts(), **self.known, "stopped_because": None})

    def _train(self, started: float, progress: Progress, interruption: Interruption) -> str:
        """Rounds until a criterion or a signal, across deaths of learners; what ended them."""
        (self.run.path / CONTROL).unlink(missing_ok=True)
        deaths = 0
        while True:
            try:
                if why := interruption.signal or self._reached():
                    self._finish(progress)
                    return why
                self._round(started, progress)
                deaths = 0
            except NotWaited:
                progress.note("people are not waited for; what they have answered stays in the labeler")
            except (RayActorError, ObjectLostError) as error:  # a learner is gone: RLlib cannot go on, we can
                deaths += 1
                self._go_on_after(error, deaths, progress)

    def _reached(self) -> str | None:
        assert self.trainer is not None
        figures = {**self.trainer.figures, "round": self.trainer.round - 1}
        return self.stop.reached(figures, self.known.get("expert_return"))

    def _round(self, started: float, progress: Progress) -> None:
        assert self.trainer is not None
        self.trainer.train()
        figures = self.trainer.figures
        figures["wall_s"] = self.wall_before + time.monotonic() - started
        self.run.log(figures, step=figures["env_steps"])
        progress.update({**figures, "goal": self.stop.goal(self.known.get("expert_return"))})
        self._obey_control(progress)
        if time.monotonic() - self.saved > self.settings.checkpoint_every_s:
            self._checkpoint()

    def _go_on_after(self, error: Exception, deaths: int, progress: Progress) -> None:
        """Go on from the last checkpoint. Raises TrainingError if that has not helped RESTARTS times."""
        assert self.trainer is not None
        if deaths > RESTARTS:
            words = str(error).splitlines()[0]
            raise TrainingError(f"learners died {deaths} times in a row: {words}") from error
        progress.note(f"a learner died ({type(error).__name__}): going on from the last checkpoint")
        rescued = self.trainer.rescue()
        self.trainer.stop()
        self.trainer = self._restore_or_build(progress, rescued)

    def _finish(self, progress: Progress) -> None:
        assert self.trainer is not None
        wait = self.interruption.signal is None or not self.trainer.asks_people
        if self.config.asynchronous and wait:
            progress.note("waiting for labels that are under way")
        self.trainer.store_the_rest(wait=wait)
        self._checkpoint()

    def _obey_control(self, progress: Progress) -> None:
        """Requests that `tutelage scale` left in the run directory."""
        path = self.run.path / CONTROL
        if not path.exists():
            return
        request = json.loads(path.read_text())
        path.unlink()
        assert self.trainer is not None
        try:
            self.trainer.scale(int(request["num_env_runners"]))
        except ConfigError as error:
            progress.note(str(error))
            return
        progress.note(f"now {request['num_env_runners']} env runners")
        of_runners = {**(self.sections.get("env_runners") or {}), **request}
        self.sections = {**self.sections, "env_runners": of_runners}
        self.run.write_config(self.sections)  # so that a resume has as many

    def _checkpoint(self) -> None:
        assert self.trainer is not None
        with self.run.new_checkpoint(self.trainer.round, keep=self.settings.keep_checkpoints) as folder:
            self.trainer.save_to_path(str(folder.resolve()))
            self.trainer.save_policy(folder)
        self.saved = time.monotonic()

    def _facts(self) -> dict[str, Any]:
        return {
            "method": self.config.method_name,
            "env": str(self.config.env),
            "seed": self.config.seed,
            "expert": self.expert.oracle if self.expert else None,
            "expert_arguments": dict(self.expert.arguments) if self.expert else {},
            "episodes": self.settings.episodes,
        }

    def _known_baselines(self) -> dict[str, Any]:
        """What an earlier part of this run measured, unless a resume changed what is to be measured."""
        facts = self._facts()
        if self.before.get("episodes") != facts["episodes"]:
            return {}
        same = all(self.before.get(key) == facts[key] for key in ("expert", "expert_arguments"))
        keys = [f"{who}_{what}" for who in ("expert", "random") for what in ("return", "ci95")]
        known = {key: self.before[key] for key in keys if self.before.get(key) is not None}
        return {key: value for key, value in known.items() if same or key.startswith("random")}

    def _summarise(self, why: str, started: float) -> dict[str, Any]:
        """Measure the best policy on seeds that it was not chosen by."""
        assert self.trainer is not None
        policy = load_checkpoint(str(self.run.path))
        returns = measure(policy, self.recipe, result_seeds(self.config.seed, self.settings.episodes))
        mean, low, high = report.mean_ci95(returns)
        summary = {
            **self._facts(),
            "return_mean": mean,
            "return_ci95": [low, high],
            "expert_return": None,
            "random_return": None,
            **self.known,
            "env_steps": self.trainer.env_steps,
            "rounds": self.trainer.round,
            "expert_labels": self.trainer.figures.get("expert_labels", 0),
            "attended_steps": self.trainer.figures.get("attended_steps", 0),
            "takeovers": self.trainer.figures.get("takeovers", 0),
            "comparisons": int(self.trainer.figures.get("comparisons", 0)),
            "wall_s": self.wall_before + time.monotonic() - started,
            "stopped_because": why,
        }
        self.run.write_summary(summary)
        if any("validation_mean" in line for line in self.run.metrics()):
            report.plot([self.run.path], self.run.returns_png)
        return summary


def forget_old_questions(connection: Mapping[str, Any]) -> None:
    """What a run that was interrupted had asked and would not learn from: its rounds begin anew."""
    client = LabelerClient(**connection)
    client.withdraw(kind=ACTION)
    client.close()


def measure(policy: Oracle, recipe: EnvRecipe, seeds: list[int]) -> np.ndarray:
    """Undiscounted returns [n] of whole episodes, one a seed."""
    return evaluate(policy.act, recipe, seeds, num_envs=min(len(seeds), 16))[0]


def new_run(sections: Sections, path: Path) -> RunDirectory:
    """Check everything, then make the run directory with its `config.yaml`."""
    preflight(sections)
    return RunDirectory.create(path, sections)


def execute(run: RunDirectory, sections: Sections, *, quiet: bool) -> dict[str, Any]:
    """Run a job with its live table; afterwards the returns as a table."""
    job = Job(run, sections)
    stop = {name: value for name, value in asdict(job.stop).items() if value is not None}
    try:
        with Progress(str(run.path), stop, quiet=quiet) as progress:
            summary = job.execute(progress)
    except OracleError as error:  # what was collected is stored
        error.args = (f"{error}; then go on with `tutelage resume {run.path}`",)
        raise
    if not quiet:
        Console().print(report.table(report.rows(report.read_groups([run.path]))))
        print(last_words(run, summary["stopped_because"]))
        if job.config.labeler_spec is not None and job.config.labeler_spec.asks_people:
            print(unanswered(run, summary["stopped_because"]), end="")
    return summary


def unanswered(run: RunDirectory, why: str) -> str:
    """A line about people whom a run, which ended by `why`, did not wait for; empty: there is none."""
    newest = (run.metrics() or [{}])[-1]
    asked, unanswered = int(newest.get("asked", 0)), int(newest.get("unanswered", 0))
    if not unanswered:
        return ""
    more = "" if why in signal.Signals.__members__ else f" stop.env_steps={2 * int(newest['env_steps'])}"
    return (
        f"{unanswered} of {asked} comparisons are unanswered; `tutelage resume {run.path}{more}` goes on "
        "when they are\n"
    )


def last_words(run: RunDirectory, why: str) -> str:
    """Why a run ended, how it goes on, and where its plot is."""
    goes_on = f"; go on with `tutelage resume {run.path}`" if why in signal.Signals.__members__ else ""
    curve = f"; learning curve: {run.returns_png}" if run.returns_png.exists() else ""
    return f"{run.path} ended by {why}{goes_on}{curve}"
