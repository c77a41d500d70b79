"""What the commands of `services.cli` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from actors.clips import record
from expert_oracle.checkpoint import load_checkpoint
from expert_oracle.loading import OracleSpec
from services import report
from services.job import execute, measure, new_run
from services.overrides import apply_override, load_config, to_yaml
from services.run_directory import CONFIG, RunDirectory, default_path
from services.seeds import SEEDS, train_seeds
from services.settings import TuneSettings, build_config, preflight, settings_of
from services.trainer import result_seeds
from tutelage.errors import ConfigError


def train_command(config: str, overrides: list[str], path: Path | None, *, quiet: bool) -> dict[str, Any]:
    """`tutelage train`."""
    sections = load_config(config, overrides)
    path = path or default_path(Path(config).stem)
    seeds = settings_of(TuneSettings, "tune", sections).seeds
    if seeds is not None:
        return train_seeds(sections, path, seeds, quiet=quiet)
    with new_run(sections, path) as run:
        return execute(run, sections, quiet=quiet)


def resume_command(path: Path, overrides: list[str], *, quiet: bool) -> dict[str, Any]:
    """`tutelage resume`."""
    if (path / SEEDS).exists():
        sections = load_config(path / SEEDS, overrides)
        return train_seeds(sections, path, sections["tune"]["seeds"], quiet=quiet)
    with RunDirectory.resume(path) as run:
        sections = run.config()
        for override in overrides:
            apply_override(sections, override)
        preflight(sections)
        if overrides:
            (run.path / CONFIG).write_text(to_yaml(sections))
        return execute(run, sections, quiet=quiet)


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
    part = run.path / "control.json.part"
    part.write_text(json.dumps({"num_env_runners": num_env_runners}))
    part.replace(run.path / "control.json")


def serve_command(
    word: str, arguments: list[str], *, env: str | None, address: str, max_batch: int, max_delay_s: float
) -> None:
    """`tutelage oracle serve`."""
    from expert_oracle.server import serve

    oracle = OracleSpec(word, key_values(arguments)).build()
    serve(oracle, name=word, env_id=env or "", address=address, max_batch=max_batch, max_delay_s=max_delay_s)


def key_values(arguments: list[str]) -> dict[str, Any]:
    """`["path=experts/hopper", "n=3"]` as a dict; values are YAML."""
    pairs = [argument.partition("=") for argument in arguments]
    for key, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"{key!r} is not of the form KEY=VALUE")
    return {key: yaml.safe_load(value) for key, _, value in pairs}
