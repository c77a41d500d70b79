"""Several seeds of one configuration, through Tune."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services import report
from services.job import Job, start_ray
from services.overrides import changed_for_resume, load_config, to_yaml
from services.progress import Progress
from services.run_directory import (
    SEEDS,
    RunDirectory,
    is_done,
    is_run,
    take_folder,
    take_lock,
    write,
    write_json,
)
from services.settings import Sections, Stop, TuneSettings, preflight, settings_of
from services.trainer import Trainer
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError, TutelageError

REQUEST = "stop.request"  # in the experiment's folder: the signal by which its seeds are to end
FAILED = "failed"  # what a trial reports in place of its figures
TUNE = "tune"  # Tune's own notes; seeds go on from their run directories


def train_seeds(sections: Sections, path: Path, *, quiet: bool) -> dict[str, Any]:
    """Train `tune.seeds` seeds as trials of Tune, as many at once as the cluster has room for.

    Each has its run directory `PATH/seed-K`. The summary has the interquartile mean of their returns.
    """
    config, text = preflight(sections), to_yaml(sections)
    with take_folder(path):
        write(path / SEEDS, text)
        return fit(config, sections, path, quiet=quiet)


def resume_seeds(path: Path, overrides: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """Go on with those seeds that are not done; with a later stop, with all of them. There may be more."""
    with take_lock(path):
        before = load_config(path / SEEDS)
        sections = changed_for_resume(before, overrides, also=("tune.seeds",))
        if seeds_of(sections) < seeds_of(before):
            raise ConfigError(
                f"tune.seeds: {path} has {seeds_of(before)} seeds, so expected at least as many, "
                f"got {seeds_of(sections)}"
            )
        config = preflight(sections)
        write(path / SEEDS, to_yaml(sections))
        return fit(config, sections, path, quiet=quiet)


def seeds_of(sections: Sections) -> int:
    seeds = settings_of(TuneSettings, "tune", sections).seeds
    if seeds is None:
        raise ConfigError("tune.seeds is missing, e.g. tune.seeds=10")
    return seeds


def fit(config: TrainerConfig, sections: Sections, path: Path, *, quiet: bool) -> dict[str, Any]:
    """Run the trials in an experiment's folder; the pooled summary."""
    from ray import tune

    seeds = seeds_of(sections)
    shutil.rmtree(path / TUNE, ignore_errors=True)
    start_ray(config)
    trial = tune.with_resources(
        tune.with_parameters(seed_trial, sections=sections, path=str(path.resolve()), folder=os.getcwd()),
        Trainer.default_resource_request(config),  # type: ignore[arg-type]
    )
    tuner = tune.Tuner(
        trial,
        param_space={"seed": tune.grid_search(list(range(seeds)))},
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(path.resolve()),
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
            callbacks=[] if quiet else [seed_lines()],
        ),
    )
    with stopped_by_signals(path / REQUEST):
        results = tuner.fit()
    reported = [(result.metrics or {}).get(FAILED) for result in results]
    failures = [*filter(None, reported), *map(reason, results.errors)]
    if failures:
        raise TutelageError(
            f"{len(failures)} of {seeds} seeds failed; first: {failures[0]}; "
            f"what was learned is kept: mend it, then `tutelage resume {path}`"
        )
    return summarise_seeds(path, seeds, quiet=quiet)


def reason(error: BaseException) -> str:
    """The last line of a trial's error, which is the error itself after the traceback."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]


@contextlib.contextmanager
def stopped_by_signals(request: Path) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks all seeds to end after their round; a second one ends this at once."""
    request.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if request.exists():
            raise KeyboardInterrupt
        write(request, signal.Signals(number).name)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's would drop the seeds where they are
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class StopOrRequest(Stop):
    """The criteria of a seed; a request to all seeds comes before them."""

    request: Path = Path(REQUEST)

    def reached(self, figures: Mapping[str, Any], expert_return: float | None) -> str | None:
        return requested(self.request) or super().reached(figures, expert_return)


def requested(request: Path) -> str | None:
    """The signal by which all seeds are to end, if there was one."""
    return request.read_text(encoding="utf-8") if request.exists() else None


def seed_trial(config: Mapping[str, Any], *, sections: Sections, path: str, folder: str) -> None:
    """One trial: a whole job, or what is left of it. What a user can act on is reported, not tried again.

    It runs in the `folder` of the command, where there is one on its machine: files are named from there.
    """
    from ray import tune

    if Path(folder).is_dir():
        os.chdir(folder)
    if requested(Path(path) / REQUEST):
        return
    try:
        summary = run_seed(config["seed"], sections, Path(path))
    except TutelageError as error:
        tune.report({FAILED: f"seed {config['seed']}: {error}"})
        return
    tune.report({key: summary[key] for key in ("return_mean", "expert_labels", "env_steps", "wall_s")})


def run_seed(seed: int, sections: Sections, path: Path) -> dict[str, Any]:
    """Train one seed in `PATH/seed-K`, unless that is done; its summary."""
    own = {name: values for name, values in sections.items() if name != "tune"}
    own["debugging"] = {**(own.get("debugging") or {}), "seed": seed}
    folder = path / f"seed-{seed}"
    with RunDirectory.resume(folder) if is_run(folder) else RunDirectory.create(folder, own) as run:
        summary = run.read_summary()
        if not is_done(summary) or run.config() != own:
            run.write_summary({**summary, "stopped_because": None})
            run.write_config(own)
            job = Job(run, own)
            job.stop = StopOrRequest(**asdict(job.stop), request=path / REQUEST)
            with Progress(str(folder), {}, quiet=True) as progress:
                summary = job.execute(progress)
    return summary


def seed_lines() -> Any:
    """A callback of Tune that prints a line for each seed that is done."""
    from ray import tune

    class SeedLines(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            figures = trial.last_result or {}
            if "return_mean" not in figures:
                return  # it failed, or was asked to end before it had begun
            done = sum(other.is_finished() for other in trials)
            print(
                f"seed {trial.config['seed']}: return {figures['return_mean']:.1f}, "
                f"{figures['env_steps']:,.0f} steps ({done} of {len(trials)} seeds done)",
                flush=True,
            )

    return SeedLines()


def summarise_seeds(path: Path, seeds: int, *, quiet: bool) -> dict[str, Any]:
    """Pool the summaries of the seeds that have been measured, plot them together."""
    folders = [path / f"seed-{k}" for k in range(seeds) if is_run(path / f"seed-{k}")]
    summaries = [RunDirectory.open(folder).read_summary() for folder in folders]
    measured = [summary for summary in summaries if summary.get("stopped_because")]
    why = requested(path / REQUEST)
    pooled = {**pool(measured), "stopped_because": why or f"seeds={seeds}"}
    write_json(path / "summary.json", pooled)
    if measured:
        with contextlib.suppress(ConfigError):  # nothing has been validated
            report.plot([path], path / "returns.png")
    if not quiet and measured:
        low, high = pooled["return_ci95"]
        print(
            f"{path}: interquartile mean {pooled['return_iqm']:.1f} [{low:.1f}, {high:.1f}] "
            f"over {len(measured)} seeds"
        )
    if not quiet and why:
        print(f"{path}: ended by {why} with {len(measured)} of {seeds} seeds measured; "
              f"go on with `tutelage resume {path}`")  # fmt: skip
    return pooled


def pool(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of several seeds: the interquartile mean of their returns, the sums of what they cost."""
    if not summaries:
        return {"seeds": 0, "returns": []}
    returns = np.array([summary["return_mean"] for summary in summaries])
    mean, low, high = (float(value) for value in report.iqm_ci95(returns))
    costs = ("env_steps", "expert_labels", "attended_steps", "takeovers", "wall_s", "comparisons")
    return {
        **{key: summaries[0][key] for key in ("method", "env", "expert_return", "random_return")},
        "seeds": len(summaries),
        "return_iqm": mean,
        "return_ci95": [low, high],
        "returns": returns.tolist(),
        **{key: sum(summary.get(key, 0) for summary in summaries) for key in costs},
    }
