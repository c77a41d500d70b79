"""The trainer: RLlib's Algorithm, one step for every method: collect → ask → learn → publish → validate."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN
from safetensors.torch import save_file

from actors.environments import make_env
from expert_oracle.checkpoint import load_policy, save_policy
from learner.learner import MethodLearner, fetched, metrics_of
from learner.methods._base import Method
from learner.nets import save_module
from services.fleet import Collected, Fleet, Reference, Who
from services.preferences import Beside, Here, Preferences, until_heard
from services.report import mean_ci95
from services.run_directory import RunDirectory
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError, OracleError
from tutelage.types import Array, Rollout, SampleRequest

COUNTS = ("dataset", "expert_labels", "attended_steps", "takeovers")
"""Figures that only a dataset has."""
REWARD = "reward.safetensors"  # beside a policy that maximises it
RETURN_WINDOW = 100  # training episodes in `return_window`


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
        self.waiting: Callable[[], AbstractContextManager[Any]] = nullcontext  # around what people may delay
        self.note: Callable[[str], None] = lambda words: None  # what is going on besides rounds
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
        if self.asks_people:
            self.fleet.leave()
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
        most = self.config.max_unanswered
        learnt = until_heard(
            *(self.preferences, payload_of(rollouts), self.env_steps, self.stopping),
            heard=self._heard,
            most=math.inf if most is None else most,
            say=self.note,
        )
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
        with self.waiting() if self.asks_people else nullcontext():
            rollouts = collect(request, explore=self.method.explores)
        for rollout in rollouts:
            self.returns.extend(rollout.finished_returns().tolist())
        return rollouts

    @property
    def asks_people(self) -> bool:
        """Whether the expert is somebody who may take days."""
        return self.config.oracle_spec is not None and self.config.oracle_spec.asks_people

    def store_the_rest(self, *, wait: bool = True) -> None:
        """Put into the dataset what has its labels and was not learned from yet: nobody is asked twice.

        Waits for labels that are under way, unless told not to.
        """
        if self.method.learns_from != "dataset":
            return
        self.store([(self._rest_key(), self.round - 1, self.fleet.drain(wait=wait))])

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
