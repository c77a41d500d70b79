"""Several seeds of one configuration, through Tune."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services import report
from services.job import Job, start_ray
from services.overrides import to_yaml
from services.progress import Progress
from services.run_directory import RunDirectory, is_run
from services.settings import Sections, preflight
from services.trainer import Trainer
from tutelage.errors import TutelageError

SEEDS = "seeds.yaml"


def train_seeds(sections: Sections, path: Path, seeds: int, *, quiet: bool) -> dict[str, Any]:
    """Train `seeds` seeds as trials of Tune, as many at once as the cluster has room for.

    Each has its run directory `PATH/seed-K`. The summary has the interquartile mean of their returns.
    """
    from ray import tune

    config = preflight(sections)
    path.mkdir(parents=True, exist_ok=True)
    (path / SEEDS).write_text(to_yaml(sections))
    start_ray(config)
    trial = tune.with_resources(
        tune.with_parameters(seed_trial, sections=sections, path=str(path.resolve())),
        Trainer.default_resource_request(config),  # type: ignore[arg-type]
    )
    tuner = tune.Tuner(
        trial,
        param_space={"seed": tune.grid_search(list(range(seeds)))},
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(path.resolve()),
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
            callbacks=[] if quiet else [seed_lines()],
        ),
    )
    results = tuner.fit()
    if results.num_errors:
        raise TutelageError(f"{results.num_errors} of {seeds} seeds failed; first: {results.errors[0]}")
    return summarise_seeds(path, seeds, quiet=quiet)


def seed_trial(config: Mapping[str, Any], *, sections: Sections, path: str) -> None:
    """One trial: a whole job, or what is left of it."""
    from ray import tune

    seed = config["seed"]
    own = {name: values for name, values in sections.items() if name != "tune"}
    own["debugging"] = {**(own.get("debugging") or {}), "seed": seed}
    folder = Path(path) / f"seed-{seed}"
    with RunDirectory.resume(folder) if is_run(folder) else RunDirectory.create(folder, own) as run:
        summary = run.read_summary()
        if not summary.get("stopped_because"):
            with Progress(str(folder), {}, quiet=True) as progress:
                summary = Job(run, own).execute(progress)
    tune.report({key: summary[key] for key in ("return_mean", "expert_labels", "env_steps", "wall_s")})


def seed_lines() -> Any:
    """A callback of Tune that prints a line for each seed that is done."""
    from ray import tune

    class SeedLines(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            done = sum(other.is_finished() for other in trials)
            figures = trial.last_result
            print(
                f"seed {trial.config['seed']}: return {figures.get('return_mean', float('nan')):.1f}, "
                f"{figures.get('env_steps', 0):,.0f} steps ({done} of {len(trials)} seeds done)",
                flush=True,
            )

    return SeedLines()


def summarise_seeds(path: Path, seeds: int, *, quiet: bool) -> dict[str, Any]:
    """Pool the seeds' summaries, plot them together."""
    summaries = [RunDirectory.open(path / f"seed-{k}").read_summary() or {} for k in range(seeds)]
    returns = np.array([summary["return_mean"] for summary in summaries])
    mean, low, high = (float(value) for value in report.iqm_ci95(returns))
    pooled = {
        **{key: summaries[0][key] for key in ("method", "env", "expert_return", "random_return")},
        "seeds": seeds,
        "return_iqm": mean,
        "return_ci95": [low, high],
        "returns": returns.tolist(),
        **{
            key: sum(s[key] for s in summaries)
            for key in ("env_steps", "expert_labels", "wall_s", "comparisons")
        },
    }
    (path / "summary.json").write_text(json.dumps(pooled, indent=1))
    report.plot([path], path / "returns.png")
    if not quiet:
        print(f"{path}: interquartile mean {mean:.1f} [{low:.1f}, {high:.1f}] over {seeds} seeds")
    return pooled
