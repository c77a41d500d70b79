"""The rollout runner: RLlib's env runner around a `Collector`, with labels made beside the collecting.

Weights, their version, β and the round come with each request for samples, so that none of them can be stale.
An exception would cost RLlib the whole actor: what goes wrong with an expert is returned as a `Failure`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import ray
import torch
from gymnasium.vector.utils import batch_space
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    SAMPLE_TIMER,
    WEIGHTS_SEQ_NO,
)

from actors.collect import Collector, CutShort, label, with_logp
from actors.environments import Act, make_env
from actors.evaluation import play
from actors.forward import Forward, Judge, actor, forward_of, random_actor
from expert_oracle.loading import checked, made_for
from tutelage.errors import ConfigError, TutelageError
from tutelage.protocols import Oracle
from tutelage.types import Array, Failure, Rollout, SampleRequest

Who = Literal["module", "oracle", "random"]
EVALUATION_ENVS = 16  # at least, side by side: one forward then serves so many episodes


class RolloutRunner(EnvRunner, Checkpointable):
    """Collects rollouts with the policy that it was sent, mixed with and labelled by an expert.

        results = runner.sample(request=SampleRequest(round=i, beta=0.5, label=True, weights=weights))
        returns, lengths = runner.evaluate(seeds, weights=weights)

    Reads from its config, besides what is RLlib's: `env_recipe()`, `oracle_spec`, `label_batch`,
    `mixture_per`, `in_halves`, `max_unlabelled` and `drawn_if_not_replayed()`.
    """

    config: Any

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        torch.set_num_threads(1)  # runners share a machine
        self.spaces: dict[str, tuple[gym.Space, gym.Space]] = kwargs.get("spaces") or {}
        self.collector: Collector | None = None
        self.module: Any = None
        self._weights_seq_no = 0
        self._round = 0
        self._forward: Forward | None = None  # of the module's present weights
        self._oracle: Oracle | None = None
        self._leaving = threading.Event()
        self._labelling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labels")
        self._unlabelled: deque[Future[Rollout]] = deque()  # oldest first
        self._evaluation_envs: list[gym.Env] = []
        if self._has_environments():
            self.make_env()
        self.make_module()

    def _has_environments(self) -> bool:
        """The local runner of a group with remote ones has none."""
        alone = self.config.num_env_runners == 0 or self.config.create_env_on_local_worker
        return self.worker_index is None or self.worker_index > 0 or alone

    # Sampling

    def sample(  # type: ignore[override]
        self,
        *,
        num_timesteps: float | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        request: SampleRequest | None = None,
    ) -> list[Rollout | Failure]:
        """One fragment as requested; or, as RLlib's own runners do, so many steps or whole episodes.

        Where the expert is asked and never acts, labels are made while the next fragments are collected: what
        comes back are the rollouts that have theirs by now, or all of them with `request.wait`.
        """
        explore = bool(self.config.explore if explore is None else explore)
        with self.metrics.log_time(SAMPLE_TIMER):
            if request is not None:
                return self._answer(request, explore, force_reset)
            collect = partial(self._collect, explore=explore, random_actions=random_actions)
            if num_episodes is not None:
                return self._sample_episodes(collect, num_episodes)
            return [collect(self._steps(num_timesteps), force_reset=force_reset)]

    def _answer(self, request: SampleRequest, explore: bool, force_reset: bool) -> list[Rollout | Failure]:
        self._round = request.round
        if request.weights is not None:
            self._set_weights(request.weights)
        try:
            together = request.beta > 0 or request.rule is not None
            oracle = self._get_oracle() if together or request.label else None
            if together:
                self._wait_for_labels()  # an oracle is asked by one thread at a time
            rollout = self._collect(
                int(self.config.rollout_fragment_length),
                explore=explore,
                beta=request.beta,
                rule=request.rule,
                oracle=oracle,
                judge=Judge(self.module),
                version=request.version,
                force_reset=force_reset,
            )
        except TutelageError as error:
            return [*self._labelled(at_most=0 if request.wait else None), *self._failed(error)]
        if not request.label or together:
            return [*self._labelled(at_most=None), rollout]
        assert oracle is not None
        self._unlabelled.append(self._labelling.submit(self._label, rollout, oracle))
        return self._labelled(at_most=0 if request.wait else self.config.max_unlabelled)

    def _collect(
        self, steps: int, *, explore: bool, random_actions: bool = False, **settings: Any
    ) -> Rollout:
        """A fragment; with log-probabilities where the policy alone acted, and drew its actions."""
        collector = self._collector()
        act = self._act(explore, random_actions)
        rollout = collector.collect(act, steps, round=self._round, **settings)
        self._log(rollout)
        if self._forward is None or not explore or random_actions or rollout.by_expert is not None:
            return rollout
        if self._distribution() == "squashed":  # who acts so learns from replay, whoever acted
            return rollout
        return with_logp(rollout, self._forward, collector.envs.action_space)

    def _sample_episodes(self, collect: Callable[..., Rollout], episodes: int) -> list[Rollout | Failure]:
        """Fragments from fresh environments until `episodes` episodes have ended."""
        rollouts: list[Rollout | Failure] = []
        done = 0
        while done < episodes:
            rollout = collect(self._steps(None), force_reset=not rollouts)
            done += int(rollout.episodes.done.sum())
            rollouts.append(rollout)
        return rollouts

    def _steps(self, num_timesteps: float | None) -> int:
        """Steps of each environment for so many in all, or those of one fragment."""
        if num_timesteps is None:
            return int(self.config.rollout_fragment_length)
        return max(1, math.ceil(num_timesteps / self._collector().envs.num_envs))

    # Labels

    def _label(self, rollout: Rollout, oracle: Oracle) -> Rollout:
        action_space = self._collector().envs.action_space
        return label(rollout, oracle, action_space, batch=self.config.label_batch)

    def _labelled(self, at_most: int | None) -> list[Rollout | Failure]:
        """What has its labels by now, after waiting until at most so many are without; None: not waiting."""
        arrived: list[Rollout | Failure] = []
        while self._unlabelled:
            late = at_most is not None and len(self._unlabelled) > at_most
            if not (late or self._unlabelled[0].done()):
                break
            try:
                arrived.append(self._unlabelled[0].result())
            except TutelageError as error:
                arrived += self._failed(error)
            self._unlabelled.popleft()
        return arrived

    def finish_labels(self) -> list[Rollout | Failure]:
        """The rollouts that still wait for labels, once they have them."""
        return self._labelled(at_most=0)

    def _wait_for_labels(self) -> None:
        for pending in self._unlabelled:
            pending.exception()

    def _get_oracle(self) -> Oracle:
        """The expert, made when it is first needed."""
        if self._oracle is None:
            spec = self.config.oracle_spec
            if spec is None:
                raise ConfigError("an expert is needed and none is given; set expert.oracle")
            envs = self._collector().envs
            with made_for(self.config.seed or 0, self.worker_index or 0, self._leaving):
                oracle = spec.build(self.config.env_recipe())
            self._oracle = checked(oracle, envs.observation_space, envs.action_space, spec.oracle)
        return self._oracle

    def _failed(self, error: Exception) -> list[Rollout | Failure]:
        """What went wrong, after what the expert had answered by then: it is not asked again."""
        kept = [error.rollout] if isinstance(error, CutShort) else []
        return [*kept, Failure(str(error), self.worker_index or 0)]

    # Evaluation

    def evaluate(
        self, seeds: Sequence[int], explore: bool = False, weights: Any = None, policy: Who = "module"
    ) -> tuple[Array, Array]:
        """Undiscounted returns [n] and lengths [n] of one whole episode a seed, in environments apart.

        Raises OracleError or ConfigError if the expert is to act and cannot.
        """
        if weights is not None:
            self._set_weights(weights)
        envs = self._collector().envs
        wanted = min(max(envs.num_envs, EVALUATION_ENVS), len(seeds))
        while len(self._evaluation_envs) < wanted:
            self._evaluation_envs.append(make_env(envs.recipe))
        return play(self._evaluated(policy, seeds, explore), self._evaluation_envs[:wanted], seeds)

    def _evaluated(self, policy: Who, seeds: Sequence[int], explore: bool) -> Act:
        match policy:
            case "oracle":
                self._wait_for_labels()
                return self._get_oracle().act
            case "random":
                return random_actor(self._collector().envs.action_space, int(seeds[0]) if len(seeds) else 0)
            case "module":
                return self._act(explore)
        raise ValueError(f"policy: expected module, oracle or random, got {policy!r}")

    # Policy

    def _act(self, explore: bool, random_actions: bool = False) -> Act:
        collector = self._collector()
        action_space = collector.envs.action_space
        rng = collector.generator(self._round, "actions")
        if random_actions:
            return random_actor(action_space, int(rng.integers(2**31)))
        if self._forward is None:
            self._forward = forward_of(self.module)
        return actor(self._forward, action_space, explore=explore, rng=rng, distribution=self._distribution())

    def _distribution(self) -> Any:
        """Of the module, if it is one of ours."""
        return getattr(self.module, "distribution", None)

    def _set_weights(self, weights: Any) -> None:
        """Act with these from now on: a module's state, alone or by its id, or a reference to that."""
        state = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
        self.module.set_state(state.get(DEFAULT_MODULE_ID, state))
        self._forward = None

    def _collector(self) -> Collector:
        if self.collector is None:
            raise ValueError("this runner has no environments: those of the remote runners are to be used")
        return self.collector

    # What RLlib's EnvRunnerGroup and Algorithm call

    def make_env(self) -> None:
        """Make the environments, or make them anew."""
        if self.collector is not None:
            self.collector.close()
        self.collector = Collector(
            self.config.env_recipe(),
            self.config.num_envs_per_env_runner,
            run_seed=self.config.seed or 0,
            runner=self.worker_index or 0,
            mixture_per=self.config.mixture_per,
            in_halves=self.config.in_halves,
            drawn=self.config.drawn_if_not_replayed(),
        )
        self.env = self.collector.envs

    def make_module(self) -> None:
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()
        self._forward = None

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        if self.collector is None:
            return self.spaces
        envs = self.collector.envs
        observations, actions = envs.observation_space, envs.action_space
        batched = (batch_space(observations, envs.num_envs), batch_space(actions, envs.num_envs))
        single = (observations, actions)
        return {INPUT_ENV_SPACES: batched, INPUT_ENV_SINGLE_SPACES: single, DEFAULT_MODULE_ID: single}

    def assert_healthy(self) -> None:
        assert self.collector is not None
        assert self.module is not None

    def stop(self) -> None:
        self._leaving.set()
        self._labelling.shutdown(wait=False, cancel_futures=True)
        for env in self._evaluation_envs:
            env.close()
        if self.collector is not None:
            self.collector.close()

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    def _log(self, rollout: Rollout) -> None:
        """RLlib's metrics of sampling; Algorithm sums, averages and paces by them."""
        steps, done = rollout.env_steps(), rollout.episodes.done
        sums = {NUM_ENV_STEPS_SAMPLED: steps, NUM_EPISODES: int(done.sum())}
        sums |= {
            (NUM_AGENT_STEPS_SAMPLED, DEFAULT_AGENT_ID): steps,
            (NUM_MODULE_STEPS_SAMPLED, DEFAULT_MODULE_ID): steps,
        }
        lifetime = {
            (NUM_AGENT_STEPS_SAMPLED_LIFETIME, DEFAULT_AGENT_ID): steps,
            (NUM_MODULE_STEPS_SAMPLED_LIFETIME, DEFAULT_MODULE_ID): steps,
            NUM_EPISODES_LIFETIME: int(done.sum()),
        }
        for key, value in sums.items():
            self.metrics.log_value(key, value, reduce="sum")
        for key, value in lifetime.items():
            self.metrics.log_value(key, value, reduce="lifetime_sum")
        self.metrics.log_value(
            NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True
        )
        self.metrics.log_value(WEIGHTS_SEQ_NO, self._weights_seq_no, window=1)
        self.num_env_steps_sampled_lifetime += steps
        window = max(1, self.config.metrics_num_episodes_for_smoothing // max(1, self.config.num_env_runners))
        for episode_return, length in zip(
            rollout.finished_returns(), rollout.episodes.length[done], strict=True
        ):
            self.metrics.log_value(EPISODE_RETURN_MEAN, float(episode_return), window=window)
            self.metrics.log_value(EPISODE_LEN_MEAN, int(length), window=window)

    # Checkpoints

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state: dict[str, Any] = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(
                components=self._get_subcomponents(COMPONENT_RL_MODULE, components),
                not_components=self._get_subcomponents(COMPONENT_RL_MODULE, not_components),
                **kwargs,
            )
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Weights are taken if they are newer than these, or have no number (0)."""
        version = state.get(WEIGHTS_SEQ_NO, 0)
        if COMPONENT_RL_MODULE in state and (version == 0 or version > self._weights_seq_no):
            self._set_weights(state[COMPONENT_RL_MODULE])
            self._weights_seq_no = version or self._weights_seq_no
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return [(COMPONENT_RL_MODULE, self.module)]
