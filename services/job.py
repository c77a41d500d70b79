"""A job: one training run from its configuration to its summary, safe to stop at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from actors.collect import evaluate
from actors.environments import make_env
from expert_oracle.checkpoint import load_policy
from expert_oracle.loading import checked
from services import report
from services.overrides import check_arguments, to_yaml
from services.progress import Progress
from services.run_directory import RunDirectory
from services.trainer import Trainer, TrainerConfig, test_seeds
from tutelage.errors import ConfigError
from tutelage.protocols import Oracle
from tutelage.types import EnvRecipe

Sections = Mapping[str, Mapping[str, Any]]
FLUENT = ("environment", "env_runners", "expert", "method", "collection", "training", "learners", "rl_module",
          "evaluation", "debugging", "fault_tolerance")  # fmt: skip
RESTARTS = 3  # of a trainer whose learner died, from the last checkpoint


@dataclass(frozen=True)
class Stop:
    """When a run ends: at the first of these. The section `stop`."""

    rounds: int | None = None
    env_steps: int | None = None
    expert_labels: int | None = None
    validation_return: float | None = None  # mean return on the validation seeds
    expert_fraction: float | None = None  # of the expert's return, by the validation return
    wall_s: float | None = None

    def reached(self, figures: Mapping[str, Any], expert_return: float | None) -> str | None:
        """The criterion that is met, as `name=value`."""
        limits = {
            "rounds": (figures.get("round", -1) + 1, self.rounds),
            "env_steps": (figures.get("env_steps", 0), self.env_steps),
            "expert_labels": (figures.get("expert_labels", 0), self.expert_labels),
            "validation_return": (figures.get("validation_mean", -np.inf), self.validation_return),
            "expert_fraction": (figures.get("validation_mean", -np.inf), self.goal(expert_return)),
            "wall_s": (figures.get("wall_s", 0.0), self.wall_s),
        }
        for name, (value, limit) in limits.items():
            if limit is not None and value >= limit:
                return f"{name}={getattr(self, name):g}"
        return None

    def goal(self, expert_return: float | None) -> float | None:
        """The return that `expert_fraction` asks for; for negative returns, as far below the expert's."""
        if self.expert_fraction is None or expert_return is None:
            return None
        return expert_return - (1 - self.expert_fraction) * abs(expert_return)


@dataclass(frozen=True)
class RunSettings:
    """What is measured and kept besides training itself. The section `run`."""

    checkpoint_every_s: float = 60.0
    keep_checkpoints: int = 3
    episodes: int = 50  # by which the result is measured, on seeds that no policy was chosen by
    baselines: bool = True  # measure the expert and a random policy on the same seeds


def build_config(sections: Sections, run: RunDirectory | None = None) -> TrainerConfig:
    """The TrainerConfig that the sections describe. Raises ConfigError naming what is unknown or wrong."""
    config = TrainerConfig()
    given = {name: dict(sections.get(name) or {}) for name in FLUENT}
    if "name" not in given["method"]:
        raise ConfigError("method.name is missing, e.g. method.name=dagger")
    for name in ("method", *(section for section in FLUENT if section != "method")):
        fluent = getattr(TrainerConfig if name not in ("training",) else TrainerConfig.__base__, name)
        if name != "method":
            check_arguments(name, fluent, given[name])
        getattr(config, name)(**given[name])
    if run is not None:
        config.storage(dataset=run.path / "dataset", best=run.path / "checkpoints" / "best")
    return config


def settings_of(cls: type, section: str, sections: Sections) -> Any:
    """The dataclass of a section that is ours alone (`stop`, `run`)."""
    given = dict(sections.get(section) or {})
    check_arguments(section, cls, given)
    return cls(**given)


def preflight(sections: Sections) -> TrainerConfig:
    """Find what is wrong with a configuration before anything is written or started.

    Makes the environment, connects to the expert and asks it about one state. Raises TutelageError.
    """
    config = build_config(sections)
    settings_of(Stop, "stop", sections)
    settings_of(RunSettings, "run", sections)
    config.storage(dataset="unused").copy(copy_frozen=False).validate()
    env = make_env(config.env_recipe())
    try:
        obs, _ = env.reset(seed=0)
        if config.oracle_spec is not None:
            expert = checked(
                config.oracle_spec.build(), env.observation_space, env.action_space, config.oracle_spec.oracle
            )
            expert.act(batch_of_one(obs))
            close(expert)
    finally:
        env.close()
    return config


def batch_of_one(obs: Any) -> Any:
    """A single observation with a leading axis."""
    import tree

    return tree.map_structure(lambda leaf: np.asarray(leaf)[None], obs)


def close(oracle: Any) -> None:
    with contextlib.suppress(AttributeError):
        oracle.close()


def start_ray(config: TrainerConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, else start one here that has room for this job."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # this cluster is reachable on loopback only
    wanted = config.num_env_runners * (config.num_cpus_per_env_runner or 1) + config.num_learners + 1
    ray.init(num_cpus=max(os.cpu_count() or 1, int(wanted)), include_dashboard=False, **quiet)


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag; the second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interruption]:
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


class Job:
    """Trains in a run directory until a stop criterion, a signal or an error; then measures and summarises."""

    def __init__(self, run: RunDirectory, sections: Sections) -> None:
        self.run = run
        self.sections = sections
        self.stop: Stop = settings_of(Stop, "stop", sections)
        self.settings: RunSettings = settings_of(RunSettings, "run", sections)
        self.config = build_config(sections, run)
        self.recipe: EnvRecipe = self.config.env_recipe()
        self.known = run.read_summary() or {}  # baselines measured before an interruption
        self.trainer: Trainer | None = None
        self.wall_before = float((run.metrics() or [{}])[-1].get("wall_s", 0.0))

    def execute(self, progress: Progress) -> dict[str, Any]:
        """Train to the end; the summary."""
        started = time.monotonic()
        start_ray(self.config)
        with Interruption().caught() as interruption:
            try:
                self.trainer = self._restore_or_build()
                self._measure_baselines(progress)
                why = self._train(started, progress, interruption)
                self._checkpoint()
                return self._summarise(why, started)
            finally:
                if self.trainer is not None:
                    self.trainer.stop()

    def _restore_or_build(self) -> Trainer:
        checkpoint = self.run.latest_checkpoint()
        if checkpoint is None:
            return Trainer(config=self.config)
        trainer = Trainer.from_checkpoint(str(checkpoint))
        self.run.truncate_after(trainer.round - 1)
        return trainer

    def _measure_baselines(self, progress: Progress) -> None:
        """The expert's and a random policy's return, on the seeds of the final measurement."""
        assert self.trainer is not None
        if not self.settings.baselines:
            return
        seeds = test_seeds(self.config.seed, self.settings.episodes)
        wanted = {"random_return": "random"} | ({"expert_return": "oracle"} if self.config.oracle_spec else {})
        for key, policy in wanted.items():
            if key not in self.known:
                progress.note(f"measuring the {'expert' if policy == 'oracle' else 'random policy'}")
                returns, _ = self.trainer.measure(seeds, policy)  # type: ignore[arg-type]
                mean, low, high = report.mean_ci95(returns)
                self.known |= {key: mean, key.replace("return", "ci95"): [low, high]}
        self.run.write_summary({**self._facts(), **self.known, "stopped_because": None})

    def _train(self, started: float, progress: Progress, interruption: Interruption) -> str:
        restarts, saved = 0, time.monotonic()
        while True:
            assert self.trainer is not None
            try:
                self.trainer.train()
            except RayError as error:  # a learner is gone: RLlib cannot go on, we can
                restarts += 1
                if restarts > RESTARTS:
                    raise
                progress.note(f"restarting from the last checkpoint after: {type(error).__name__}")
                self.trainer.stop()
                self.trainer = self._restore_or_build()
                continue
            figures = self.trainer.figures
            figures["wall_s"] = self.wall_before + time.monotonic() - started
            self.run.log(figures, step=figures["env_steps"])
            progress.update({**figures, "goal": self.stop.goal(self.known.get("expert_return"))})
            if interruption.signal:
                return interruption.signal
            if why := self.stop.reached(figures, self.known.get("expert_return")):
                return why
            self._obey_control(progress)
            if time.monotonic() - saved > self.settings.checkpoint_every_s:
                self._checkpoint()
                saved = time.monotonic()

    def _obey_control(self, progress: Progress) -> None:
        """Requests that `tutelage scale` left in the run directory."""
        path = self.run.path / "control.json"
        if not path.exists():
            return
        request = json.loads(path.read_text())
        path.unlink()
        assert self.trainer is not None
        self.trainer.scale(int(request["num_env_runners"]))
        progress.note(f"now {request['num_env_runners']} env runners")

    def _checkpoint(self) -> None:
        assert self.trainer is not None
        with self.run.new_checkpoint(self.trainer.round, keep=self.settings.keep_checkpoints) as folder:
            self.trainer.save_to_path(str(folder))
            self.trainer.save_policy(folder)

    def _facts(self) -> dict[str, Any]:
        return {"method": self.config.method_name, "env": str(self.config.env), "seed": self.config.seed}

    def _summarise(self, why: str, started: float) -> dict[str, Any]:
        """Measure the best policy on seeds that it was not chosen by."""
        assert self.trainer is not None
        best = self.run.path / "checkpoints" / "best"
        policy = load_policy(best if best.exists() else self.run.latest_checkpoint())  # type: ignore[arg-type]
        returns = measure(policy, self.recipe, test_seeds(self.config.seed, self.settings.episodes))
        mean, low, high = report.mean_ci95(returns)
        summary = {
            **self._facts(),
            "return_mean": mean,
            "return_ci95": [low, high],
            "episodes": len(returns),
            "expert_return": None,
            "random_return": None,
            **self.known,
            "env_steps": self.trainer.env_steps,
            "rounds": self.trainer.round,
            "expert_labels": self.trainer.figures.get("expert_labels", 0),
            "comparisons": 0,
            "wall_s": self.wall_before + time.monotonic() - started,
            "stopped_because": why,
        }
        self.run.write_summary(summary)
        report.plot([self.run.path], self.run.path / "returns.png")
        return summary


def measure(policy: Oracle, recipe: EnvRecipe, seeds: list[int]) -> np.ndarray:
    """Undiscounted returns [n] of whole episodes, one a seed."""
    return evaluate(policy.act, recipe, seeds, num_envs=min(len(seeds), 16))[0]


def new_run(sections: Sections, path: Path | None, *, name: str) -> RunDirectory:
    """Check everything, then make the run directory with its `config.yaml`."""
    preflight(sections)
    run = RunDirectory.create(path, name=name)
    (run.path / "config.yaml").write_text(to_yaml(sections))
    return run


def fields_of(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
