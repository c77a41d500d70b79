"""What the commands of `services.cli` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.clips import record
from expert_oracle.checkpoint import load_checkpoint
from services import report
from services.job import CONTROL, execute, measure, new_run
from services.overrides import changed_for_resume, load_config
from services.run_directory import SEEDS, RunDirectory, default_path, is_done, is_training, write_json
from services.seeds import resume_seeds, train_seeds
from services.settings import TuneSettings, build_config, preflight, settings_of
from services.trainer import result_seeds
from tutelage.errors import ConfigError


def train_command(config: str, overrides: list[str], path: Path | None, *, quiet: bool) -> dict[str, Any]:
    """`tutelage train`."""
    sections = load_config(config, overrides)
    path = path or default_path(Path(config).stem)
    if settings_of(TuneSettings, "tune", sections).seeds is not None:
        return train_seeds(sections, path, quiet=quiet)
    with new_run(sections, path) as run:
        return execute(run, sections, quiet=quiet)


def resume_command(path: Path, overrides: list[str], *, quiet: bool) -> dict[str, Any]:
    """`tutelage resume`."""
    if (path / SEEDS).is_file():
        return resume_seeds(path, overrides, quiet=quiet)
    with RunDirectory.resume(path) as run:
        summary = run.read_summary()
        if is_done(summary) and not overrides:
            why = summary["stopped_because"]
            raise ConfigError(f"{path} has ended by {why}; give it more to do, e.g. {more_than(why)}")
        sections = changed_for_resume(run.config(), overrides)
        preflight(sections)
        run.write_config(sections)
        return execute(run, sections, quiet=quiet)


def more_than(why: str) -> str:
    """A setting by which a run goes on that has ended by `why`."""
    name, _, value = why.partition("=")
    return f"stop.{name}={2 * int(value)}" if value.isdigit() else "stop.rounds=100"


def evaluate_command(path: Path, *, episodes: int, seed: int, video: Path | None) -> dict[str, Any]:
    """`tutelage evaluate`."""
    run = RunDirectory.open(path)
    config = build_config(run.config())
    policy = load_checkpoint(str(run.path))
    seeds = result_seeds((config.seed or 0) + 1_000_003 * seed, episodes)
    returns = measure(policy, config.env_recipe(), seeds)
    mean, low, high = report.mean_ci95(returns)
    result = {
        "run": str(path),
        "return_mean": mean,
        "return_ci95": [low, high],
        "episodes": episodes,
        "seed": seed,
    }
    if video is not None:
        record(policy.act, config.env_recipe(), seeds[0], video)
        result["video"] = str(video)
    print(f"{path}: return {mean:.1f} [{low:.1f}, {high:.1f}] over {episodes} episodes")
    return result


def scale_command(path: Path, num_env_runners: int) -> None:
    """`tutelage scale`: leave a request that the run obeys after its current round."""
    run = RunDirectory.open(path)
    if not build_config(run.config()).num_env_runners:
        raise ConfigError(
            f"{path} collects in the trainer's own process; start it with env_runners.num_env_runners=1"
        )
    if not is_training(path):
        raise ConfigError(
            f"{path} is not being trained; `tutelage resume {path} "
            f"env_runners.num_env_runners={num_env_runners}` goes on with as many"
        )
    write_json(run.path / CONTROL, {"num_env_runners": num_env_runners})
