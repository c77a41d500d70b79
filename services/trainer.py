"""The trainer: RLlib's Algorithm, one step for every method: collect → ask → learn → publish → validate."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import ray
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN
from safetensors.torch import save_file

from actors.env_runner import RolloutRunner
from actors.environments import make_env
from expert_oracle.checkpoint import load_policy, save_policy
from expert_oracle.loading import OracleSpec
from learner.learner import MethodLearner, fetched, metrics_of
from learner.methods import make_method
from learner.methods._base import Method
from learner.nets import OF_METHODS, PolicyModule, model_config, save_module
from learner.reward_learner import RewardSettings
from services.fleet import Collected, Fleet, Reference, Who
from services.preferences import Beside, Here, LabelerSpec, Preferences, until_heard
from services.report import mean_ci95
from services.run_directory import RunDirectory
from services.sections import check_effects, check_numbers
from tutelage.errors import ConfigError, OracleError
from tutelage.types import Array, EnvRecipe, Rollout, SampleRequest

logging.getLogger("ray.rllib.algorithms.algorithm_config").setLevel(logging.ERROR)  # it greets every trainer
NOT_GIVEN: Any = NotProvided
COUNTS = ("dataset", "expert_labels", "attended_steps", "takeovers")
"""Figures that only a dataset has."""
REWARD = "reward.safetensors"  # beside a policy that maximises it
RETURN_WINDOW = 100  # training episodes in `return_window`


class TrainerConfig(AlgorithmConfig):
    """RLlib's configuration with what learning from people needs besides.

    TrainerConfig().environment("Hopper-v5").env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        .expert(oracle="grpc://host:50051").method("dagger", beta="0.5**i").build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
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
    ) -> TrainerConfig:
        """Who compares.

        Args:
            labeler: `human`, `grpc://host:port` (a labeler that is served), `synthetic:NAME` (a scripted
                teacher), `module:attr` or `file.py:attr`.
            arguments: keyword arguments of the labeler.
            max_reward_lag: rounds by which the reward may be behind, where collection is asynchronous.
        """
        if labeler is not NOT_GIVEN or arguments is not NOT_GIVEN:
            known = self.labeler_spec or LabelerSpec("", {})
            word = known.labeler if labeler is NOT_GIVEN else (labeler or "")
            given = known.arguments if arguments is NOT_GIVEN else (arguments or {})
            self.labeler_spec = LabelerSpec(word, dict(given)) if word or given else None
        if max_reward_lag is not NOT_GIVEN:
            self.max_reward_lag = max_reward_lag
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


class Trainer(Algorithm):
    """One training step for every method. `figures` holds the last round's numbers, by their plain names."""

    config: TrainerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def restored(cls, checkpoint: Path, config: TrainerConfig | None = None) -> Trainer:
        """The trainer that was saved there, with the settings of `config` if given."""
        given = {} if config is None else {"config": config}
        return cls.from_checkpoint(str(checkpoint.resolve()), **given)  # type: ignore[return-value]

    @classmethod
    def get_default_config(cls) -> TrainerConfig:
        return TrainerConfig()

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        """The rollout runners validate, on environments of their own."""
        return False

    def setup(self, config: AlgorithmConfig) -> None:
        self.round = 0
        self.env_steps = 0
        self.version = 0  # updates that the published policy has had
        self.best_mean = -np.inf
        self.returns: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.figures: dict[str, Any] = {}
        self.in_hand: list[Collected] = []  # collected and not learned from yet
        self.behind = False  # the dataset has rounds that the policy was not fitted to
        self.stopping: Callable[[], bool] = lambda: False  # whether to wait for people no longer
        self.preferences: Here | Beside | None = None
        self._heard = False  # the first answers are there
        self._reward: Any = None  # weights of the reward model, or a reference to them
        if self.config.run_directory is None:
            self.config = self.config.copy(copy_frozen=False).storage(run_directory=self.logdir)  # pyright: ignore[reportIncompatibleVariableOverride]
            self.config.freeze()
        super().setup(self.config)
        if self.env_runner_group is None:
            raise ConfigError("RLlib's offline input is not used here; set method.demonstrations")
        self.fleet = Fleet(
            self.env_runner_group,
            local=self.config.num_env_runners == 0,
            by_reference=bool(self.config.num_env_runners and self.config.num_learners),
            steps_per_fragment=self.config.steps_per_fragment(),
            max_version_lag=self.config.max_version_lag,
            patience_s=self.config.env_runner_health_probe_timeout_s,
            restore=partial(self.restore_env_runners, self.env_runner_group),
        )
        self._continue_dataset()
        self._begin_preferences()
        self._publish()
        self.best_mean = self._best_on_disk()

    def _begin_preferences(self) -> None:
        """Who asks and fits the reward, where the method learns one."""
        settings, spec = self.config.reward_settings(), self.config.labeler_spec
        if settings is None or spec is None:
            return
        env = make_env(self.config.env_recipe())
        spaces = env.observation_space, env.action_space
        env.close()
        folder = Path(str(self.config.run_directory)) / "preferences"
        make = partial(Preferences, settings, spaces, folder, spec, self.config.seed or 0)
        self.preferences = (
            Beside(make, self.config.max_reward_lag) if self.config.asynchronous else Here(make)
        )
        self.preferences.begin()

    def stop(self) -> None:
        if self.preferences is not None:
            self.preferences.stop()
        super().stop()

    def _best_on_disk(self) -> float:
        """The validation return of the policy in `best/`, which may be newer than any checkpoint."""
        best = RunDirectory(Path(str(self.config.run_directory))).best_checkpoint()
        for name, read in (
            ("policy.safetensors", lambda p: load_policy(p).metadata),
            ("policy.json", read_json),
        ):
            if best is not None and (best / name).is_file():
                return float(read(best / name).get("validation_mean", -np.inf))
        return -np.inf

    def _continue_dataset(self) -> None:
        """Go on after the last round that is on disk: its labels count, even if no checkpoint knows them."""
        if self.method.learns_from != "dataset":
            return
        rounds, steps, counts = self._first_learner(dataset_counts)
        self.behind = self.behind or rounds > self.round
        self.round = max(self.round, rounds)
        self.env_steps = max(self.env_steps, steps)
        self.figures |= {**counts, "env_steps": self.env_steps}

    @property
    def method(self) -> Method:
        assert self.config.learning_method is not None
        return self.config.learning_method

    # The step

    def training_step(self) -> None:
        started = time.perf_counter()
        beta = self.method.beta_at(self.round)
        try:
            rollouts = self._collect(beta)
        except OracleError:
            self.store_the_rest()
            raise
        collected = time.perf_counter()
        steps = sum(rollout.env_steps() for rollout in rollouts)
        self.env_steps += steps
        self.in_hand = rollouts
        learned = self._learn_reward(rollouts)
        if "waiting" not in learned or self.method.begins_without_reward:
            learned |= self._learn(rollouts)
        self.in_hand, self.behind = [], False
        self._publish()
        self.figures = {
            **{k: v for k, v in self.figures.items() if k in COUNTS},
            **learned,
            "round": self.round,
            "beta": beta,
            "env_steps": self.env_steps,
            "steps_per_s": steps / max(collected - started, 1e-9),
            "collect_s": collected - started,
            "learn_s": time.perf_counter() - collected,
            "num_env_runners": len(self.fleet),
            **({"return_window": float(np.mean(self.returns))} if self.returns else {}),
        }
        for name, value in self.figures.items():
            self.metrics.log_value(name, value, window=1)
        self.round += 1

    def _learn_reward(self, rollouts: Sequence[Collected]) -> dict[str, float]:
        """Ask about what was collected and take the newest reward, for the policy's update."""
        if self.preferences is None:
            return {}
        arguments = self.preferences, payload_of(rollouts), self.env_steps
        if self._heard:
            learnt = self.preferences.advance(*arguments[1:])
        else:
            learnt = until_heard(*arguments, self.stopping)
        self._heard = learnt.ready
        if not learnt.ready:
            return {**learnt.figures, "waiting": 1.0}
        self._take_reward(learnt.weights)
        return dict(learnt.figures)

    def _take_reward(self, weights: Mapping[str, Any] | None) -> None:
        """Have the learners learn from it, and keep it beside the policy."""
        self._reward = ray.put(weights) if self.config.num_learners and weights is not None else weights

    def _collect(self, beta: float) -> list[Collected]:
        if self.method.asks and self.config.oracle_spec is None:
            return []  # demonstrations from files only
        request = SampleRequest(
            round=self.round,
            beta=beta,
            rule=self.method.rule_at(self.round),
            label=self.method.asks,
            wait=not self.config.asynchronous,
            version=self.version,
            weights=self._weights,
        )
        collect = self.fleet.collect_asynchronously if self.config.asynchronous else self.fleet.collect
        rollouts = collect(request, explore=self.method.explores)
        for rollout in rollouts:
            self.returns.extend(rollout.finished_returns().tolist())
        return rollouts

    def store_the_rest(self) -> None:
        """Put into the dataset what has its labels and was not learned from yet: nobody is asked twice.

        Waits for labels that are under way.
        """
        if self.method.learns_from != "dataset":
            return
        self.store([(self._rest_key(), self.round - 1, self.fleet.drain())])

    def _rest_key(self) -> str:
        """A name for labels that complete no round; the number of those before makes it unique."""
        return f"round-{self.round:08d}-after-{self.figures.get('expert_labels', 0)}"

    def store(self, blocks: Sequence[tuple[str, int, Sequence[Collected]]]) -> None:
        """Put rollouts into the dataset by key and round; a key that is there adds nothing."""
        for key, number, rollouts in blocks:
            if rollouts:
                payload = payload_of(rollouts)
                self._all_learners(partial(store_on, rollouts=payload, key=key, round=number))
        self._continue_dataset()

    def rescue(self) -> list[tuple[str, int, Sequence[Collected]]]:
        """What a trainer whose learner died has collected, for `store` of the next one."""
        if self.method.learns_from != "dataset":
            return []
        blocks = [(self._round_key(), self.round, self.in_hand), (self._rest_key(), -1, self.fleet.drain())]
        return [(key, number, fetched(payload_of(rollouts))) for key, number, rollouts in blocks]

    def catch_up(self) -> bool:
        """Fit the policy to rounds that are on disk and that no checkpoint knows; whether there were any."""
        if not self.behind:
            return False
        self.round -= 1
        self.figures |= {**self._learn([]), "round": self.round, "env_steps": self.env_steps}
        self.round, self.behind = self.round + 1, False
        self._publish()
        if self.config.evaluation_interval:
            self.evaluate()
        return True

    def _round_key(self) -> str:
        return f"round-{self.round:08d}"

    def _learn(self, rollouts: Sequence[Collected]) -> dict[str, float]:
        update = partial(
            update_on,
            rollouts=payload_of(rollouts),
            key=self._round_key(),
            round=self.round,
            seed=(self.config.seed or 0) * 1_000_003 + self.round,
            env_steps=self.env_steps,
            reward=self._reward,
        )
        self.version += 1
        return metrics_of(self._all_learners(update))

    def _all_learners(self, function: Callable[[MethodLearner], Any], which: Any = None) -> list[Any]:
        """`function` of every learner, or of those numbered `which`; an error of any is raised here."""
        assert self.learner_group is not None
        results = [
            result.get()
            for result in self.learner_group.foreach_learner(
                function,  # type: ignore[arg-type]
                remote_actor_ids=which,
                healthy_only=False,
            )
        ]
        errors = [result for result in results if isinstance(result, Exception)]
        for error in sorted(errors, key=lambda error: not isinstance(error, RayActorError)):
            raise_(error)  # a death comes first: the others fail because of it
        return results

    def _first_learner(self, function: Callable[[MethodLearner], Any]) -> Any:
        """`function` of the learner that writes; the others have the same weights."""
        return self._all_learners(function, which=[0])[0]

    def _publish(self) -> None:
        """Take the policy's weights from the learner, for the next requests."""
        weights = self._first_learner(policy_weights)
        self._weights = ray.put(weights) if self.config.num_env_runners > 0 else weights

    # Validation

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Validate on held-out seeds, keep the policy if it is the best so far; or because it is the newest,
        where the environment's reward is not to be seen."""
        returns, _ = self.measure(validation_seeds(self.config.seed, self.config.evaluation_duration))
        mean, low, high = mean_ci95(returns)
        self.figures |= {
            "validation_mean": mean,
            "validation_lo": low,
            "validation_hi": high,
            "validation_episodes": len(returns),
        }
        if mean > self.best_mean or self.method.needs_labeler:
            self.best_mean = mean
            with RunDirectory(Path(str(self.config.run_directory))).new_best() as folder:
                self.save_policy(folder, validation_mean=mean, round=self.round - 1)
        self.figures["best"] = self.best_mean
        return {ENV_RUNNER_RESULTS: {EPISODE_RETURN_MEAN: mean}, "ci95": [low, high]}

    def measure(self, seeds: Sequence[int], who: Who = "module") -> tuple[Array, Array]:
        """Undiscounted returns [n] and lengths [n] of one whole episode a seed, shared among the runners."""
        return self.fleet.measure(seeds, self._weights, who)

    # Policies, checkpoints, scale

    def save_policy(self, folder: Path, **metadata: Any) -> None:
        """Write the policy so that `checkpoint:FOLDER` can act with it."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._reward is not None:
            weights = ray.get(self._reward) if self.config.num_learners else self._reward
            save_file(dict(weights), folder / REWARD)
        arrays = self._first_learner(policy_arrays)
        metadata = {"method": self.config.method_name, "seed": self.config.seed, **metadata}
        if arrays is None:
            self._first_learner(partial(save_module_of, folder=folder, metadata=metadata))
            return
        env = make_env(self.config.env_recipe())
        low, high = (getattr(env.action_space, name, None) for name in ("low", "high"))
        env.close()
        save_policy(
            folder / "policy.safetensors",
            arrays,
            low=low,
            high=high,
            env=str(self.config.env),
            metadata=metadata,
        )

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        state["trainer"] = {
            "round": self.round,
            "env_steps": self.env_steps,
            "version": self.version,
            "best_mean": self.best_mean,
            "returns": list(self.returns),
            "figures": self.figures,
        }
        if self.preferences is not None:
            state["preferences"] = self.preferences.call("get_state")
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        own = state.get("trainer", {})
        self.round, self.env_steps = own.get("round", 0), own.get("env_steps", 0)
        self.version = own.get("version", 0)
        self.best_mean = max(own.get("best_mean", -np.inf), self._best_on_disk())
        self.figures = dict(own.get("figures", {}))
        self.returns = deque(own.get("returns", ()), maxlen=RETURN_WINDOW)
        self.behind = False
        if self.preferences is not None and "preferences" in state:
            self.preferences.call("set_state", state["preferences"])
            self._take_reward(self.preferences.call("learnt").weights)
        self._continue_dataset()
        self._publish()

    def scale(self, num_env_runners: int) -> None:
        """Change the number of rollout actors while the run goes on."""
        cpus = self.config.num_cpus_per_env_runner
        self.fleet.scale(num_env_runners, 1.0 if cpus is None else float(cpus))


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def payload_of(rollouts: Sequence[Collected]) -> list[Rollout | ray.ObjectRef]:
    """What learners are sent: rollouts that lie in the object store as references."""
    return [one.rollout if isinstance(one, Reference) else one for one in rollouts]


def update_on(learner: MethodLearner, **payload: Any) -> dict[str, float]:
    """On a learner: learn."""
    return learner.update(**payload)


def store_on(learner: MethodLearner, **payload: Any) -> None:
    """On a learner: put rollouts into the dataset without learning."""
    learner.store(**payload)


def policy_weights(learner: MethodLearner) -> dict[str, Any]:
    """On a learner: what runners need to act."""
    return learner.policy.get_state(inference_only=True)


def policy_arrays(learner: MethodLearner) -> Any:
    """On a learner: the policy in numpy, if it is a plain MLP."""
    return learner.policy.policy_arrays()


def save_module_of(learner: MethodLearner, *, folder: Path, metadata: Mapping[str, Any]) -> None:
    """On a learner: write a policy that is not a plain MLP."""
    save_module(learner.policy, folder, metadata)


def dataset_counts(learner: MethodLearner) -> tuple[int, int, dict[str, int]]:
    """On a learner: rounds and environment steps on disk, and what else is counted there."""
    dataset = learner.dataset
    assert dataset is not None
    counts = len(dataset), dataset.labels, dataset.attended, dataset.takeovers
    return dataset.rounds, dataset.steps, dict(zip(COUNTS, counts, strict=True))


def raise_(error: BaseException) -> Any:
    """Raise what went wrong on a learner, out of Ray's wrapping; a learner's death stays Ray's own error."""
    raise getattr(error, "cause", None) or error


def validation_seeds(run_seed: int | None, n: int) -> list[int]:
    """Seeds of the episodes by which the best policy is chosen."""
    return held_out_seeds(run_seed, 1, n)


def result_seeds(run_seed: int | None, n: int) -> list[int]:
    """Seeds of the episodes by which a run's result is measured; no policy was chosen by them."""
    return held_out_seeds(run_seed, 2, n)


def held_out_seeds(run_seed: int | None, purpose: int, n: int) -> list[int]:
    sequence = np.random.SeedSequence([run_seed or 0, purpose])
    return [int(seed) & 0x7FFFFFFF for seed in sequence.generate_state(n)]
