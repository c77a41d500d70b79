"""From the sections of a configuration to a TrainerConfig, and everything checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tree

from actors.environments import columns, leaf_spaces, make_env, make_vector
from actors.replay import is_reproducible
from expert_oracle.human import context_of
from expert_oracle.loading import OracleSpec, checked
from learner.demonstrations import dataset_in, load_demonstrations
from learner.learner import warm_policy
from learner.methods import method_class
from services.overrides import check_arguments
from services.preferences import LabelerSpec
from services.run_directory import RunDirectory
from services.sections import OURS, RLLIB, check_number, positive, whole
from services.trainer_config import TrainerConfig
from tutelage.codec import MAX_BYTES
from tutelage.errors import ConfigError, DatasetError
from tutelage.protocols import Oracle, Supervisor
from tutelage.types import Demonstrations, EnvRecipe, Tree

Sections = Mapping[str, Mapping[str, Any]]
PAGE = "page"
"""The argument of the expert `human` that says where the labeler of the run listens."""
FLUENT = (*RLLIB, *(section for section in OURS if section not in ("method", "run", "stop", "tune")))


@dataclass(frozen=True)
class Stop:
    """When a run ends: at the first of these, without any by Ctrl-C. The section `stop`."""

    rounds: int | None = None
    env_steps: int | None = None
    expert_labels: int | None = None
    comparisons: int | None = None  # that were answered
    validation_return: float | None = None  # mean return on the validation seeds
    expert_fraction: float | None = None  # of the expert's return, by the validation return
    wall_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "env_steps", "expert_labels", "comparisons", "expert_fraction", "wall_s"):
            if getattr(self, name) is not None:
                positive(f"stop.{name}", getattr(self, name))

    def reached(self, figures: Mapping[str, Any], expert_return: float | None) -> str | None:
        """The criterion that is met, as `name=value`."""
        limits = {
            "rounds": (figures.get("round", -1) + 1, self.rounds),
            "env_steps": (figures.get("env_steps", 0), self.env_steps),
            "expert_labels": (figures.get("expert_labels", 0), self.expert_labels),
            "comparisons": (figures.get("comparisons", 0), self.comparisons),
            "validation_return": (figures.get("validation_mean", -np.inf), self.validation_return),
            "expert_fraction": (figures.get("validation_mean", -np.inf), self.goal(expert_return)),
            "wall_s": (figures.get("wall_s", 0.0), self.wall_s),
        }
        for name, (value, limit) in limits.items():
            if limit is not None and value >= limit:
                return f"{name}={getattr(self, name)}"
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

    def __post_init__(self) -> None:
        whole("run.episodes", self.episodes, 1)
        whole("run.keep_checkpoints", self.keep_checkpoints, 1)
        if not self.checkpoint_every_s >= 0:
            raise ConfigError(f"run.checkpoint_every_s: expected at least 0, got {self.checkpoint_every_s}")


@dataclass(frozen=True)
class TuneSettings:
    """Several runs of one configuration. The section `tune`."""

    seeds: int | None = None  # train this many seeds, 0 and up; None: only debugging.seed

    def __post_init__(self) -> None:
        if self.seeds is not None:
            whole("tune.seeds", self.seeds, 1)


def build_config(sections: Sections, run: RunDirectory | None = None) -> TrainerConfig:
    """The TrainerConfig that the sections describe. Raises ConfigError naming what is unknown or wrong."""
    config = TrainerConfig()
    method = dict(sections.get("method") or {})
    if "name" not in method:
        raise ConfigError("method.name is missing, e.g. method.name=dagger")
    name = method.pop("name")
    if hasattr(method_class(name), "ask_until"):
        method.setdefault("ask_until", (sections.get("stop") or {}).get("env_steps"))
    config.method(name, **check_arguments("method", method_class(name), method))
    for section in FLUENT:
        if sections.get(section):
            fluent = getattr(config, section)
            arguments = check_arguments(section, fluent, sections[section], RLLIB.get(section))
            for key, value in arguments.items():
                check_number(f"{section}.{key}", value)
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

    Makes the environment, looks at the demonstrations, asks the expert about one state. Raises TutelageError.
    """
    config = build_config(sections)
    stop, run = settings_of(Stop, "stop", sections), settings_of(RunSettings, "run", sections)
    settings_of(TuneSettings, "tune", sections)
    if config.learning_method is not None:
        config.learning_method.reward_settings()
        if begin_with := getattr(config.learning_method, "warm_start", None):
            warm_policy(begin_with)
    try:
        config.copy(copy_frozen=False).validate()
    except ValueError as error:  # RLlib's own checks
        raise ConfigError(" ".join(str(error).split())) from None
    check_reachable(stop, run, config)
    env = make_env(config.env_recipe())
    try:
        if config.env_backend not in ("sync", "async"):
            make_vector(config.env_recipe(), 1).close()
        obs, _ = env.reset(seed=0)
        if demonstrations := config.demonstrations():
            check_demonstrations(demonstrations, env)
        if config.oracle_spec is not None and config.oracle_spec.asks_people:
            check_people(config.oracle_spec, env, config)
        elif config.oracle_spec is not None:
            expert = config.oracle_spec.build(config.env_recipe())
            check_expert(expert, env, obs, config)
            close(expert)
        if config.labeler_spec is not None:
            check_labeler(config.labeler_spec, env, config)
    finally:
        env.close()
    return config


def check_people(spec: OracleSpec, env: gym.Env, config: TrainerConfig) -> None:
    """Raise ConfigError for an environment that people cannot be asked about, or a method that needs more."""
    context_of(env, config.env_recipe())
    watches = spec.oracle.startswith("watching:")
    if config.learning_method is not None and config.learning_method.needs_supervisor and not watches:
        raise ConfigError(
            f"expert.oracle: {config.method_name} needs an expert that takes over by itself, and "
            f"{spec.oracle} only answers"
        )
    if spec.inside == "human":
        known = dict(spec.arguments)
        if not known.get("address"):
            known |= {"address": "127.0.0.1:1", PAGE: ""}
        close(OracleSpec(spec.oracle, known).build())  # it connects later


def check_labeler(spec: LabelerSpec, env: gym.Env, config: TrainerConfig) -> None:
    """Raise ConfigError for a labeler that is not known, or people who would have no clips to look at."""
    if not spec.asks_people:
        spec.build()
        return
    recipe = config.env_recipe()
    if "rgb_array" not in (env.metadata.get("render_modes") or ()):
        raise ConfigError(
            f"feedback.labeler: {recipe.id} draws no pictures (rgb_array) that people could judge"
        )
    if config.drawn_if_not_replayed() and not is_reproducible(recipe):
        check_drawn(recipe, env, config)


def check_drawn(recipe: EnvRecipe, env: gym.Env, config: TrainerConfig) -> None:
    """Raise ConfigError where episodes that cannot be replayed cannot be drawn as they are played, either, or
    a question's pictures are too many for a message."""
    settings, n = config.reward_settings(), config.drawn_if_not_replayed()
    envs = make_vector(recipe, n, drawn=n)
    try:
        envs.reset(range(n), range(n), columns(envs.observation_space, n))
        largest = max(map(len, envs.pictures))
    except Exception as error:  # of the environment, or of what it draws with
        what_to_do = "; set MUJOCO_GL=egl or osmesa" if hasattr(env.unwrapped, "mujoco_renderer") else ""
        raise ConfigError(
            f"feedback.labeler: episodes of {recipe.id} are not replayed exactly, and cannot be drawn as "
            f"they are played: {' '.join(str(error).split()) or type(error).__name__}{what_to_do}"
        ) from None
    finally:
        envs.close()
    assert settings is not None
    question = 2 * largest * settings.options * (settings.segment_length + 1)  # later ones may be larger
    if question > MAX_BYTES:
        raise ConfigError(
            f"method.segment_length: the pictures of {settings.options} segments of "
            f"{settings.segment_length} steps may have {question / 2**20:.0f} MiB, more than a message's "
            f"{MAX_BYTES / 2**20:.0f}; set it to less"
        )


def check_expert(expert: Oracle, env: gym.Env, obs: Tree, config: TrainerConfig) -> None:
    """Ask about one state. Raises OracleError or ConfigError for an expert that this run has no use for."""
    word = config.oracle_spec.oracle if config.oracle_spec else ""
    method = config.learning_method
    if method is not None and method.needs_supervisor and not isinstance(expert, Supervisor):
        raise ConfigError(
            f"expert.oracle: {config.method_name} needs an expert that takes over by itself, and {word} does "
            f"not; for experiments there is watching:{word}"
        )
    checked(expert, env.observation_space, env.action_space, word).act(batch_of_one(obs))


def check_reachable(stop: Stop, run: RunSettings, config: TrainerConfig) -> None:
    """Raise ConfigError for a criterion that this run could never meet."""
    asks = config.learning_method is not None and config.learning_method.asks
    alone, unvalidated = config.oracle_spec is None, config.evaluation_interval is None
    people = config.oracle_spec is not None and config.oracle_spec.asks_people
    questions = getattr(config.learning_method, "comparisons", math.inf)
    too_few = stop.comparisons is not None and stop.comparisons > questions
    never = (
        ("expert_fraction", alone, "there is no expert; set expert.oracle"),
        ("expert_fraction", people, "people are not measured; use another, as stop.validation_return"),
        ("expert_fraction", not run.baselines, "the expert is not measured; set run.baselines=true"),
        ("expert_fraction", unvalidated, "there is no validation; set evaluation.evaluation_interval"),
        ("validation_return", unvalidated, "there is no validation; set evaluation.evaluation_interval"),
        ("comparisons", config.labeler_spec is None, "nobody compares; use another stop, as stop.rounds"),
        ("comparisons", too_few, f"method.comparisons is {questions}; set that to as many"),
        ("expert_labels", alone or not asks, "no expert is asked; use another stop, as stop.rounds"),
        ("env_steps", alone and asks, "without an expert nothing is collected; use another, as stop.rounds"),
    )
    for name, holds, why in never:
        if holds and getattr(stop, name) is not None:
            raise ConfigError(f"stop.{name} can never be reached: {why}, and stop.{name}=null")


def check_demonstrations(path: str, env: gym.Env) -> None:
    """Raise ConfigError unless these demonstrations can be read and are those of such an environment."""
    try:
        sample = some_demonstrations(Path(path).expanduser())
    except DatasetError as error:
        raise ConfigError(f"method.demonstrations: {error}") from None
    for what, rows, space in (
        ("observations", sample.obs, env.observation_space),
        ("actions", sample.actions, env.action_space),
    ):
        got, expected = kinds(rows), kinds(columns(space, 1))
        if got != expected:
            raise ConfigError(
                f"method.demonstrations: {path} has {what} {in_words(got)}, "
                f"the environment's are {in_words(expected)}"
            )
    for leaf, space in zip(tree.flatten(sample.actions), leaf_spaces(env.action_space), strict=True):
        options = getattr(space, "nvec", getattr(space, "n", np.inf))
        if leaf.dtype.kind in "iu" and not ((leaf >= 0) & (leaf < options)).all():
            raise ConfigError(f"method.demonstrations: {path} has actions outside {space}")


def some_demonstrations(path: Path) -> Demonstrations:
    """All that files hold; of a dataset, which may be larger than the memory, the first row."""
    dataset = dataset_in(path) if path.is_dir() else None
    if dataset is None:
        return load_demonstrations(path)
    row = dataset.take(np.zeros(1, np.int64))
    return Demonstrations(row["obs"], row["actions"], source=str(path))


Kinds = Mapping[tuple[Any, ...], tuple[str, tuple[int, ...]]]


def kinds(rows: Tree) -> Kinds:
    """By the path of each leaf [N, ...]: whether it holds floats or integers, and the shape of a row."""
    words = {"f": "float", "i": "int", "u": "int", "b": "bool"}
    return {
        path: (words.get(leaf.dtype.kind, str(leaf.dtype)), leaf.shape[1:])
        for path, leaf in tree.flatten_with_path(rows)
    }


def in_words(kinds: Kinds) -> str:
    """`float(11,)`, and for nested ones `joints: float(7,), camera: int(64, 64, 3)`."""
    named = {".".join(map(str, path)): f"{kind}{shape}" for path, (kind, shape) in kinds.items()}
    return ", ".join(f"{name}: {words}" if name else words for name, words in named.items())


def batch_of_one(obs: Tree) -> Tree:
    """A single observation with a leading axis."""
    return tree.map_structure(lambda leaf: np.asarray(leaf)[None], obs)


def close(oracle: Any) -> None:
    """Let go of an expert's connections, if it has any."""
    if hasattr(oracle, "close"):
        oracle.close()
