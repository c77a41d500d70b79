"""The sections of a configuration: which of RLlib's settings do something here, and what does others' work.

A section is named after a fluent method of `TrainerConfig`, most of which are RLlib's. Our own training step,
runner, learner and validation make no use of many of their arguments: those are refused, not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tutelage.errors import ConfigError

RLLIB: Mapping[str, tuple[str, ...]] = {
    "environment": ("env", "env_config"),
    "env_runners": (
        *("num_env_runners", "num_envs_per_env_runner", "rollout_fragment_length", "gym_env_vectorize_mode"),
        *("num_cpus_per_env_runner", "num_gpus_per_env_runner", "custom_resources_per_env_runner"),
        *("env_runner_cls", "validate_env_runners_after_construction"),
    ),
    "training": ("lr", "minibatch_size", "num_epochs", "grad_clip"),
    "learners": (
        *("num_learners", "num_cpus_per_learner", "num_gpus_per_learner", "custom_resources_per_learner"),
        *("local_gpu_idx", "learner_class"),
    ),
    "rl_module": ("model_config",),
    "evaluation": ("evaluation_interval", "evaluation_duration"),
    "fault_tolerance": (
        *("restart_failed_env_runners", "ignore_env_runner_failures", "max_num_env_runner_restarts"),
        *("delay_between_env_runner_restarts_s", "env_runner_health_probe_timeout_s"),
        "env_runner_restore_timeout_s",
    ),
    "debugging": ("seed", "log_level"),
    "resources": (*("num_cpus_for_main_process", "custom_resources_for_main_process", "placement_strategy"),),
    "callbacks": (
        *("callbacks_class", "on_algorithm_init", "on_train_result", "on_env_runners_recreated"),
        "on_checkpoint_loaded",
    ),
}
"""Section -> those of RLlib's settings that have an effect."""

OURS = ("method", "expert", "feedback", "collection", "run", "stop", "tune")
SECTIONS = (*RLLIB, *OURS)

BATCH = (
    "a round collects rollout_fragment_length x num_envs_per_env_runner steps from each env runner; "
    "set these of env_runners"
)
WRAPPER = "register an environment with a wrapper and name it as environment.env=module:Id-v0"
DRAWN = "the method decides: ppo draws its actions, bc and dagger take the most likely ones"
VALIDATION = "the runners of env_runners validate, with the most likely actions, after the round's update"

INSTEAD: Mapping[str, str] = {
    "environment.observation_space": "spaces are the environment's own",
    "environment.action_space": "spaces are the environment's own",
    "environment.render_env": "record with `tutelage evaluate RUN --video FILE`",
    "environment.clip_rewards": f"use method.normalise_rewards of ppo, or {WRAPPER}",
    "environment.normalize_actions": WRAPPER,
    "environment.clip_actions": "actions are always clipped to the limits of their Box",
    "env_runners.sample_timeout_s": "rounds wait for their runners; experts have expert.arguments.deadline_s",
    "env_runners.batch_mode": "fragments have rollout_fragment_length steps; episodes go on in the next one",
    "env_runners.explore": DRAWN,
    "env_runners.exploration_config": DRAWN,
    "env_runners.max_requests_in_flight_per_env_runner": "use collection.asynchronous and max_version_lag",
    "env_runners.remote_worker_envs": "use env_runners.gym_env_vectorize_mode=async",
    "env_runners.observation_filter": "use rl_module.model_config.normalise_observations",
    "env_runners.preprocessor_pref": WRAPPER,
    "env_runners.env_to_module_connector": WRAPPER,
    "env_runners.module_to_env_connector": WRAPPER,
    "training.gamma": "use method.gamma",
    "training.lambda_": "use method.lambda_",
    "training.clip_param": "use method.clip",
    "training.vf_loss_coeff": "use method.value_coefficient",
    "training.entropy_coeff": "use method.entropy_coefficient",
    "training.train_batch_size": BATCH,
    "training.train_batch_size_per_learner": BATCH,
    "training.grad_clip_by": "training.grad_clip is the largest norm of all gradients together",
    "training.shuffle_batch_per_epoch": "every epoch is shuffled",
    "training.num_sgd_iter": "use training.num_epochs",
    "training.sgd_minibatch_size": "use training.minibatch_size",
    "training.model": "use rl_module.model_config",
    "training.optimizer": "the optimiser is Adam; use training.lr and training.grad_clip",
    "training.learner_class": "use learners.learner_class",
    "training.learner_connector": "a method's `label` and `loss` decide what is learned from",
    "training.learner_config_dict": "settings of a method are its fields: method.KEY",
    "learners.learner_connector": "a method's `label` and `loss` decide what is learned from",
    "learners.learner_config_dict": "settings of a method are its fields: method.KEY",
    "rl_module.algorithm_config_overrides_per_module": "there is one policy; use training",
    "evaluation.evaluation_duration_unit": "evaluation_duration counts episodes",
    "evaluation.evaluation_num_env_runners": VALIDATION,
    "evaluation.evaluation_parallel_to_training": VALIDATION,
    "evaluation.evaluation_config": VALIDATION,
    "evaluation.custom_evaluation_function": VALIDATION,
    "resources.num_gpus": "use learners.num_gpus_per_learner",
    "checkpointing": "use run.checkpoint_every_s and run.keep_checkpoints",
    "experimental": "use training.lr=[[step, value], ...] for schedules",
    "framework": "networks are PyTorch's",
    "multi_agent": "there is one agent",
    "offline_data": "use method.demonstrations",
    "reporting": "every round is one line of metrics.jsonl",
}
"""RLlib's sections and settings that are often reached for -> what does their work here."""

AT_LEAST: Mapping[str, int] = {
    "env_runners.num_env_runners": 0,
    "env_runners.num_envs_per_env_runner": 1,
    "env_runners.rollout_fragment_length": 1,
    "expert.label_batch": 1,
    "expert.max_unlabelled": 0,
    "collection.max_version_lag": 1,
    "feedback.max_reward_lag": 0,
    "feedback.drawn_envs": 1,
    "feedback.max_unanswered": 0,
    "training.minibatch_size": 1,
    "training.num_epochs": 1,
    "learners.num_learners": 0,
    "evaluation.evaluation_interval": 1,
    "evaluation.evaluation_duration": 1,
    "debugging.seed": 0,
}
"""Whole numbers of `TrainerConfig` -> the smallest."""

OPTIONAL = (
    *("training.minibatch_size", "training.num_epochs", "evaluation.evaluation_interval"),
    *("feedback.max_unanswered", "debugging.seed"),
)


def no_effect(name: str) -> str | None:
    """Why a section or a `section.key` of RLlib's is refused; None for others."""
    return f"RLlib's setting has no effect here; {INSTEAD[name]}" if name in INSTEAD else None


def check_effects(config: Any, defaults: Any) -> None:
    """Raise ConfigError for one of RLlib's settings that was given, also in Python, and would be ignored."""
    given, known = vars(config), vars(defaults)
    taken = {key for keys in RLLIB.values() for key in keys}  # a field may be reached through two sections
    for name in INSTEAD:
        _, _, key = name.partition(".")
        if key not in taken and any(
            given[field] != known[field] for field in (key, f"_{key}") if field in known
        ):
            raise ConfigError(f"{name}: {no_effect(name)}")


def whole(name: str, value: Any, smallest: int) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `smallest`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(f"{name}: expected a whole number of at least {smallest}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is a number above 0."""
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ConfigError(f"{name}: expected a number above 0, got {value!r}")


def check_numbers(config: Any) -> None:
    """Raise ConfigError, naming the key, for a number of a TrainerConfig that is out of its range."""
    for name in AT_LEAST:
        check_number(name, getattr(config, name.partition(".")[2]))
    if config.grad_clip is not None:
        positive("training.grad_clip", config.grad_clip)
    _check_lr(config.lr)


def check_number(name: str, value: Any) -> None:
    """The same for one of them, or any other setting."""
    if name in AT_LEAST and (value is not None or name not in OPTIONAL):
        whole(name, value, AT_LEAST[name])


def _check_lr(lr: Any) -> None:
    """A number above 0; the values of a schedule may come from 0 or end there."""
    values = [value for _, value in lr] if isinstance(lr, list | tuple) else [lr]
    for value in values:
        if len(values) == 1 or value != 0:
            positive("training.lr", value)
