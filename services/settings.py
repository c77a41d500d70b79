"""From the sections of a configuration to a TrainerConfig, and everything checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree

from actors.environments import make_env
from expert_oracle.loading import checked
from learner.methods import method_class
from services.overrides import SECTIONS, check_arguments
from services.run_directory import RunDirectory
from services.trainer import TrainerConfig
from tutelage.errors import ConfigError
from tutelage.types import Tree

Sections = Mapping[str, Mapping[str, Any]]
FLUENT = tuple(section for section in SECTIONS if section not in ("stop", "run", "tune"))


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


@dataclass(frozen=True)
class TuneSettings:
    """Several runs of one configuration. The section `tune`."""

    seeds: int | None = None  # train this many seeds, 0 and up; None: only debugging.seed


def build_config(sections: Sections, run: RunDirectory | None = None) -> TrainerConfig:
    """The TrainerConfig that the sections describe. Raises ConfigError naming what is unknown or wrong."""
    config = TrainerConfig()
    method = dict(sections.get("method") or {})
    if "name" not in method:
        raise ConfigError("method.name is missing, e.g. method.name=dagger")
    name = method.pop("name")
    config.method(name, **check_arguments("method", method_class(name), method))
    for section in FLUENT:
        if section != "method" and sections.get(section):
            fluent = getattr(config, section)
            arguments = check_arguments(section, fluent, sections[section])
            try:
                fluent(**arguments)
            except ValueError as error:  # RLlib's own checks
                raise ConfigError(f"{section}: {error}") from None
    return config if run is None else config.storage(run_directory=run.path)


def settings_of(cls: type, section: str, sections: Sections) -> Any:
    """The dataclass of a section that is ours alone (`stop`, `run`, `tune`)."""
    return cls(**check_arguments(section, cls, sections.get(section) or {}))


def preflight(sections: Sections) -> TrainerConfig:
    """Find what is wrong with a configuration before anything is written or started.

    Makes the environment, connects to the expert and asks it about one state. Raises TutelageError.
    """
    config = build_config(sections)
    settings_of(Stop, "stop", sections)
    settings_of(RunSettings, "run", sections)
    settings_of(TuneSettings, "tune", sections)
    try:
        config.copy(copy_frozen=False).validate()
    except ValueError as error:  # RLlib's own checks
        raise ConfigError(" ".join(str(error).split())) from None
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


def batch_of_one(obs: Tree) -> Tree:
    """A single observation with a leading axis."""
    return tree.map_structure(lambda leaf: np.asarray(leaf)[None], obs)


def close(oracle: Any) -> None:
    """Let go of an expert's connections, if it has any."""
    if hasattr(oracle, "close"):
        oracle.close()
