"""The trainer's configuration: RLlib's, with what learning from people needs besides."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided

from actors.env_runner import RolloutRunner
from expert_oracle.loading import OracleSpec
from learner.learner import MethodLearner
from learner.methods import make_method
from learner.methods._base import Method
from learner.nets import OF_METHODS, PolicyModule, model_config
from learner.reward_learner import RewardSettings
from services.preferences import LabelerSpec
from services.sections import check_effects, check_numbers
from tutelage.errors import ConfigError
from tutelage.types import EnvRecipe

if TYPE_CHECKING:
    from services.trainer import Trainer

logging.getLogger("ray.rllib.algorithms.algorithm_config").setLevel(logging.ERROR)  # it greets every trainer
NOT_GIVEN: Any = NotProvided


class TrainerConfig(AlgorithmConfig):
    """RLlib's configuration with what learning from people needs besides.

    TrainerConfig().environment("Hopper-v5").env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        .expert(oracle="grpc://host:50051").method("dagger", beta="0.5**i").build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        from services.trainer import Trainer  # which needs this file

        super().__init__(algo_class=algo_class or Trainer)
        self.env_runner_cls = RolloutRunner
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 8
        self.rollout_fragment_length = 128
        self.delay_between_env_runner_restarts_s = 1.0
        self.env_runner_health_probe_timeout_s = 60.0
        self.merge_env_runner_states = False  # ours have none; asking for them waits for rollouts under way
        self.broadcast_env_runner_states = False
        self.evaluation_interval = 1
        self.evaluation_duration = 20
        self.log_level = "ERROR"
        self.seed = 0
        self._model_config = {}
        self.learning_method: Method | None = None
        self.method_name: str | None = None
        self.oracle_spec: OracleSpec | None = None
        self.labeler_spec: LabelerSpec | None = None
        self.max_reward_lag = 4
        self.drawn_envs = 2
        self.max_unanswered: int | None = None
        self.asynchronous = False
        self.max_version_lag = 2
        self.max_unlabelled = 2
        self.mixture_per: Literal["step", "episode"] = "step"
        self.in_halves = False
        self.label_batch = 4096
        self.env_backend = "sync"
        self.run_directory: str | None = None
        self._training_given: set[str] = set()
        self._method_given: dict[str, Any] = {}

    # Fluent methods: the sections of a configuration file

    def method(self, name: str, **settings: Any) -> TrainerConfig:
        """How to learn: the name of a file in `learner/methods/`, and that method's settings.

        Also sets the method's vetted `training` values, where none were given.
        """
        self.method_name, self._method_given = name, dict(settings)
        self.learning_method = make_method(name, settings)
        defaults = {k: v for k, v in self.learning_method.training.items() if k not in self._training_given}
        super().training(**defaults)
        self._suit_people()
        return self

    def _suit_people(self) -> None:
        """The method's defaults for an expert that is people."""
        method, expert = self.learning_method, self.oracle_spec
        if method is not None and expert is not None and expert.asks_people:
            settings = {**method.with_people, **self._method_given}
            self.learning_method = dataclasses.replace(method, **settings)

    def training(self, **settings: Any) -> TrainerConfig:
        self._training_given |= set(settings)
        super().training(**settings)
        return self

    def env_runners(
        self, *, gym_env_vectorize_mode: str | gym.VectorizeMode | None = NOT_GIVEN, **settings: Any
    ) -> TrainerConfig:
        """RLlib's, besides `gym_env_vectorize_mode`.

        Args:
            gym_env_vectorize_mode: how a runner steps its environments: `sync` (one after the other), `async`
                (each in a process), `vector_entry_point` (gymnasium's vectorised version of the environment)
                or `envpool` (that package's).
        """
        if gym_env_vectorize_mode is not NOT_GIVEN:
            mode = gym_env_vectorize_mode or "sync"
            self.env_backend = mode.value if isinstance(mode, gym.VectorizeMode) else mode
        super().env_runners(**settings)
        return self

    def expert(
        self,
        *,
        oracle: str | None = NOT_GIVEN,
        arguments: Mapping[str, Any] | None = NOT_GIVEN,
        label_batch: int = NOT_GIVEN,
        max_unlabelled: int = NOT_GIVEN,
    ) -> TrainerConfig:
        """Whom to ask.

        Args:
            oracle: the word of an expert: `scripted:NAME`, `checkpoint:PATH`, `sb3:FILE`, `rllib:PATH`,
                `torchscript:FILE`, `onnx:FILE`, `planner:cem`, `noisy:WORD`, `slow:WORD`, `watching:WORD`,
                `human`, `grpc://host:port`, `module:attr` or `file.py:attr`; see docs/experts.md.
            arguments: its keyword arguments, as its row there has them.
            label_batch: states asked about in one call.
            max_unlabelled: rollouts of one runner that may wait for labels while it collects the next one.
        """
        if oracle is not NOT_GIVEN or arguments is not NOT_GIVEN:
            known = self.oracle_spec or OracleSpec("", {})
            word = known.oracle if oracle is NOT_GIVEN else (oracle or "")
            given = known.arguments if arguments is NOT_GIVEN else (arguments or {})
            self.oracle_spec = OracleSpec(word, dict(given)) if word or given else None
            self._suit_people()
        if label_batch is not NOT_GIVEN:
            self.label_batch = label_batch
        if max_unlabelled is not NOT_GIVEN:
            self.max_unlabelled = max_unlabelled
        return self

    def feedback(
        self,
        *,
        labeler: str | None = NOT_GIVEN,
        arguments: Mapping[str, Any] | None = NOT_GIVEN,
        max_reward_lag: int = NOT_GIVEN,
        drawn_envs: int = NOT_GIVEN,
        max_unanswered: int | None = NOT_GIVEN,
    ) -> TrainerConfig:
        """Who compares.

        Args:
            labeler: `human`, `grpc://host:port` (a labeler that is served), `synthetic:NAME` (a scripted
                teacher), `module:attr` or `file.py:attr`.
            arguments: keyword arguments of the labeler.
            max_reward_lag: rounds by which the reward may be behind, where collection is asynchronous.
            drawn_envs: environments of a runner that are drawn as they are played, where people are asked
                about episodes that cannot be replayed: they are asked about those of these.
            max_unanswered: questions that may wait for their answer while the run goes on; with more of them
                it waits. None: any number.
        """
        if labeler is not NOT_GIVEN or arguments is not NOT_GIVEN:
            known = self.labeler_spec or LabelerSpec("", {})
            word = known.labeler if labeler is NOT_GIVEN else (labeler or "")
            given = known.arguments if arguments is NOT_GIVEN else (arguments or {})
            self.labeler_spec = LabelerSpec(word, dict(given)) if word or given else None
        if max_reward_lag is not NOT_GIVEN:
            self.max_reward_lag = max_reward_lag
        if drawn_envs is not NOT_GIVEN:
            self.drawn_envs = drawn_envs
        if max_unanswered is not NOT_GIVEN:
            self.max_unanswered = max_unanswered
        return self

    def collection(
        self,
        *,
        asynchronous: bool = NOT_GIVEN,
        max_version_lag: int = NOT_GIVEN,
        mixture_per: Literal["step", "episode"] = NOT_GIVEN,
        in_halves: bool = NOT_GIVEN,
    ) -> TrainerConfig:
        """How rollouts are collected.

        Args:
            asynchronous: collect the next rollouts while learning from the last; needs num_env_runners > 0.
            max_version_lag: updates by which the acting policy may be behind the learner.
            mixture_per: whether the expert's turn is drawn per step (as in the DAgger paper) or per episode.
            in_halves: while the mixture acts, ask the expert about half of a runner's environments while the
                other half is stepped; pays where the expert's time grows with the number of states.
        """
        if asynchronous is not NOT_GIVEN:
            self.asynchronous = asynchronous
        if max_version_lag is not NOT_GIVEN:
            self.max_version_lag = max_version_lag
        if mixture_per is not NOT_GIVEN:
            self.mixture_per = mixture_per
        if in_halves is not NOT_GIVEN:
            self.in_halves = in_halves
        return self

    def storage(self, *, run_directory: str | Path | None = NOT_GIVEN) -> TrainerConfig:
        """Where the dataset and the best policy go; default: RLlib's folder of results for this trainer."""
        if run_directory is not NOT_GIVEN:
            self.run_directory = None if run_directory is None else str(Path(run_directory).resolve())
        return self

    # What others read

    def build_trainer(self) -> Trainer:
        """`build_algo`, by the type that it has."""
        return self.build_algo()  # type: ignore[return-value]

    def env_recipe(self) -> EnvRecipe:
        """How to make the environment."""
        return EnvRecipe(id=str(self.env), kwargs=dict(self.env_config or {}), backend=self.env_backend)  # type: ignore[arg-type]

    def demonstrations(self) -> str | None:
        """The file or folder that the method learns from besides, if any."""
        return getattr(self.learning_method, "demonstrations", None)

    def reward_settings(self) -> RewardSettings | None:
        """How to ask for comparisons and fit a reward to them; None: no reward is learnt."""
        settings = None if self.learning_method is None else self.learning_method.reward_settings()
        if settings is None:
            return None
        return dataclasses.replace(settings, conv_filters=(self._model_config or {}).get("conv_filters"))

    def drawn_if_not_replayed(self) -> int:
        """Environments of a runner that are drawn as they are played, if episodes cannot be replayed."""
        people = self.labeler_spec is not None and self.labeler_spec.asks_people
        if not people or self.reward_settings() is None:
            return 0
        return min(self.drawn_envs, self.num_envs_per_env_runner)

    def steps_per_fragment(self) -> int:
        """Environment steps that one runner makes for one request."""
        return self.num_envs_per_env_runner * int(self.rollout_fragment_length)

    # RLlib's hooks

    def get_default_learner_class(self) -> type[MethodLearner]:
        return MethodLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=PolicyModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        method = self.learning_method
        of_method = {} if method is None else {**method.model, "value": method.needs_value}
        return {**super()._model_config_auto_includes, **of_method}

    def validate(self) -> None:
        if self.learning_method is None:
            raise ConfigError("method.name is missing; known methods: see `tutelage train --help`")
        if self.env is None:
            raise ConfigError("environment.env is missing, e.g. environment.env=CartPole-v1")
        self._check_expert(self.learning_method)
        if self.learning_method.needs_labeler and self.labeler_spec is None:
            raise ConfigError(
                f"method {self.method_name} needs somebody who compares; set feedback.labeler, e.g. "
                "feedback.labeler=human or feedback.labeler=synthetic:oracle"
            )
        self._check_segments(self.learning_method)
        if self.learning_method.learns_from == "replay" and "num_epochs" in self._training_given:
            raise ConfigError(
                f"training.num_epochs has no effect with {self.method_name}, which draws minibatches from "
                "its replay; set method.updates_per_step"
            )
        if self.asynchronous and self.num_env_runners == 0 and not self.in_evaluation:
            raise ConfigError("collection.asynchronous needs env_runners.num_env_runners > 0")
        if not self.in_evaluation:  # where RLlib itself sets some
            check_effects(self, TrainerConfig())
        check_numbers(self)
        for i in range(100):
            self.learning_method.beta_at(i)
        for key in OF_METHODS:
            if key in (self._model_config or {}):
                raise ConfigError(
                    f"rl_module.model_config.{key} is not a setting: methods have what they need"
                )
        model_config(self.model_config or {})
        super().validate()

    def _check_segments(self, method: Method) -> None:
        """Raise ConfigError where no segment fits into a rollout: nothing could ever be asked."""
        settings = method.reward_settings() if method.needs_labeler and not self.in_evaluation else None
        steps = self.rollout_fragment_length
        if settings is not None and isinstance(steps, int) and settings.segment_length > steps:
            raise ConfigError(
                f"method.segment_length: segments of {settings.segment_length} steps do not fit into "
                f"rollouts of {steps}; set env_runners.rollout_fragment_length to at least as many"
            )

    def _check_expert(self, method: Method) -> None:
        """Raise ConfigError for a method that has nobody to learn from."""
        if method.asks and self.oracle_spec is None and not self.demonstrations():
            raise ConfigError(f"method {self.method_name} needs an expert; set expert.oracle")
        ruled = method.rule_at(2**31) is not None
        if ruled and self.oracle_spec is None:
            raise ConfigError(f"method {self.method_name} needs an expert that acts; set expert.oracle")
        if ruled and self.in_halves:
            raise ConfigError("collection.in_halves is for the β-mixture; this method has a rule of its own")
