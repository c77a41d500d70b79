"""What a method decides; everything else (collecting, storing, stepping, saving) is common to all.

The loop that uses it, in words:

    rollouts = runners.sample(beta=method.beta_at(i), label=method.asks)
    if method.learns_from == "dataset":            # D ← D ∪ D_i, then minibatches of D
        dataset.append(rollouts)
        loss, figures = method.loss(module, {"obs": ..., "actions": ...})
    elif method.learns_from == "comparisons":      # minibatches of what was compared
        loss, figures = method.loss(module, {"obs": ..., "actions": ..., "weights": ..., "ended": ...})
    elif method.learns_from == "replay":           # minibatches of all transitions, old and new
        columns = method.relabelled(replay.sample(n), learner)
        loss, figures = method.loss(module, columns[minibatch])
        method.stepped(module)
    else:                                          # minibatches of the newest rollouts
        columns = method.label(rollout, learner)
        loss, figures = method.loss(module, columns[minibatch])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import tree
from torch import Tensor

from learner.losses import Params
from learner.reward_learner import RewardSettings
from tutelage.errors import ConfigError
from tutelage.types import Array, Rollout, TakeoverRule, Tree

Columns = dict[str, Any]
"""Tensors (or trees of them, under "obs") that share their first axis [N]."""


def each(function: Callable[[Any], Any], columns: Tree) -> Any:
    """`function` of every tensor or array in a tree."""
    return tree.map_structure(function, columns)


class Policy(Protocol):
    """What a loss may use of a module: `learner.nets.PolicyModule`."""

    def policy(self, obs: Tree) -> Params: ...
    def value(self, obs: Tree) -> Tensor: ...
    def policy_and_value(self, obs: Tree) -> tuple[Params, Tensor]: ...
    def members(self, obs: Tree) -> Params: ...
    def actions(self, obs: Tree) -> Tensor: ...
    def difference(self, actions: Tensor, others: Tensor) -> Tensor: ...
    def doubt(self, obs: Tree) -> Tensor: ...
    def danger_logits(self, obs: Tree) -> Tensor: ...
    def risk_logits(self, obs: Tree, actions: Tensor) -> Tensor: ...
    def risk(self, obs: Tree, actions: Tensor) -> Tensor: ...
    def set_limits(self, **limits: Tensor) -> None: ...
    @property
    def critics(self) -> Any: ...
    @property
    def distribution(self) -> Any: ...
    @property
    def nvec(self) -> Any: ...


class Critic(Protocol):
    """What `label` may ask of the learner: values without gradients, rewards on a common scale."""

    def values(self, obs: Tree, *, leading: tuple[int, ...]) -> Tensor:
        """Values [*leading] of observations [*leading, ...]."""
        ...

    def scale_rewards(self, rollout: Rollout, gamma: float) -> Tensor:
        """Rewards [T, B] over the running standard deviation of the discounted return."""
        ...

    def updates(self) -> int:
        """Updates that the policy has had before this one."""
        ...

    def learnt_rewards(self, rollout: Rollout, *, relative_to_end: bool) -> Array:
        """What the reward model makes of a rollout's steps [T, B]."""
        ...

    def mean_rewards(self, obs: Tree, actions: Array, *, relative_to_end: bool) -> Array:
        """What the reward model makes of steps [N]."""
        ...

    def has_reward(self) -> bool:
        """Whether there is a reward model that was fitted to anything."""
        ...

    def ends_are_judged(self) -> bool:
        """Whether the reward model knows what comes after the end of a task."""
        ...

    def novelty(self, obs: Tree, *, k: int) -> Array:
        """How far observations [N, ...] are from the k-th nearest of what was collected [N]."""
        ...

    def tensor(self, array: Array) -> Tensor:
        """`array` on the learner's device."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to learn. Fields are its settings; subclasses override only their own cells."""

    learns_from: ClassVar[Literal["dataset", "rollouts", "comparisons", "replay"]] = "rollouts"
    asks: ClassVar[bool] = False  # the expert, what it would do in every visited state
    explores: ClassVar[bool] = False  # rollouts sample from the policy instead of taking its mode
    needs_value: ClassVar[bool] = False
    training: ClassVar[Mapping[str, Any]] = {}  # vetted defaults of the section `training`
    model: ClassVar[Mapping[str, Any]] = {}  # and of `rl_module.model_config`
    with_people: ClassVar[Mapping[str, Any]] = {}  # defaults of settings where the expert is people
    needs_labeler: ClassVar[bool] = False  # somebody who compares segments
    begins_without_reward: ClassVar[bool] = False  # learns before the first questions are asked
    needs_supervisor: ClassVar[bool] = False  # an expert that takes over by itself
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}  # least and greatest values of settings
    recent_rows: ClassVar[int] = 0  # newest transitions to keep; minibatches of D then have a "recent" one

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that do not go together."""

    def beta_at(self, i: int) -> float:
        """β_i, the probability that the expert acts in round i."""
        return 0.0

    def rule_at(self, i: int) -> TakeoverRule | None:
        """By which the expert takes over in round i; None: by β_i."""
        return None

    def reward_settings(self) -> RewardSettings | None:
        """How to ask for comparisons and fit a reward to them; None: no reward is learnt."""
        return None

    def lr_share(self, progress: float) -> float:
        """The share of the learning rate to use at this progress, from 0 to 1, through an update's passes
        over the dataset."""
        return 1.0

    def label(self, rollout: Rollout, critic: Critic) -> Columns:
        """The rows of a rollout that the loss learns from. Only for methods that learn from rollouts."""
        raise NotImplementedError(f"{type(self).__name__} learns from a dataset")

    def loss(self, policy: Policy, minibatch: Columns) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to descend, and scalars to report."""
        raise NotImplementedError

    def reward_begins(self, policy: Policy) -> None:
        """Before the first update that has a reward model; the optimiser begins anew after it."""

    def settle(self, policy: Policy, sample: Columns) -> None:
        """After an update, without gradients: set what the policy keeps beside its weights. `sample` are rows
        of D with "recent" ones. Only for methods with `recent_rows`."""


@dataclass(frozen=True)
class Replaying(Method):
    """A method that learns from all transitions again and again."""

    learns_from = "replay"
    explores = True
    ranges: ClassVar = {
        **dict.fromkeys(("replay", "first_steps"), (1, math.inf)),
        "updates_per_step": (0, math.inf),
    }

    replay: int = 1_000_000  # transitions to keep, on disk
    first_steps: int = 1_000  # of the environments, before anything is learnt
    updates_per_step: float = 1.0  # minibatches an environment step, all learners together

    def __post_init__(self) -> None:
        if self.replay < self.first_steps:
            raise ConfigError(
                f"method.replay: {self.replay} transitions are fewer than the "
                f"{self.first_steps} of method.first_steps"
            )
        super().__post_init__()

    def relabelled(self, columns: dict[str, Tree], critic: Critic) -> dict[str, Tree]:
        """What the loss learns from of sampled transitions, arrays [N, ...]."""
        return columns

    def stepped(self, policy: Policy) -> None:
        """After each step of the optimiser."""
