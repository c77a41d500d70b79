"""From a policy to actions: the cheapest correct forward for a module, and the draw of an action from it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree

from actors.environments import Act
from tutelage.policy import Distribution, distribution_of, mode, sample, stretched
from tutelage.types import Array, Tree

Forward = Callable[[Tree], Array]
"""Observations [N, ...] -> parameters of the action distribution [N, P], laid out as in `tutelage.policy`."""


def forward_of(module: Any) -> Forward:
    """The forward of a torch RLModule as its weights are now; make it anew when they change.

    A module whose `policy_arrays()` gives an MLPPolicy runs in numpy, which on small batches costs a third.
    All others run as they are, under inference mode.
    """
    export = getattr(module, "policy_arrays", None)
    arrays = export() if export is not None else None
    if arrays is not None:
        return arrays
    module.eval()
    return partial(_torch_forward, module)


def _torch_forward(module: Any, obs: Tree) -> Array:
    with torch.inference_mode():
        batch = {"obs": tree.map_structure(torch.as_tensor, obs)}
        return module._forward(batch)["action_dist_inputs"].numpy()


@dataclass(frozen=True)
class Judge:
    """What a module thinks of itself, as its weights are now."""

    module: Any

    def doubt(self, obs: Tree) -> Array:
        """How far its members are apart [N] in states [N, ...]."""
        return self._ask(self.module.doubt, obs)

    def danger(self, obs: Tree) -> Array:
        """The probability [N] that its action is not the expert's."""
        return self._ask(self.module.danger, obs)

    def risk(self, obs: Tree, actions: Array) -> Array:
        """The discounted probability [N] of failure after these actions [N, ...]."""
        return self._ask(self.module.risk, obs, actions)

    def limits(self) -> dict[str, float]:
        """Those that the learner has set."""
        return self.module.limits()

    def _ask(self, about: Callable[..., torch.Tensor], *inputs: Tree) -> Array:
        with torch.inference_mode():
            return about(*(tree.map_structure(torch.as_tensor, value) for value in inputs)).numpy()


def actor(
    forward: Forward,
    action_space: gym.Space,
    *,
    explore: bool,
    rng: np.random.Generator | None = None,
    distribution: Distribution | None = None,
) -> Act:
    """Actions by a policy: drawn from its distribution with `rng` if `explore`, else the most likely ones.

    distribution: None: that which is usual for the space.
    """
    usual, nvec = distribution_of(action_space)
    kind = distribution or usual
    rng = rng or np.random.default_rng()

    def act(obs: Tree) -> Array:
        params = forward(obs)
        actions = sample(params, kind, rng, nvec) if explore else mode(params, kind, nvec)
        if kind != "squashed":
            return actions
        assert isinstance(action_space, gym.spaces.Box)
        return stretched(actions, action_space.low, action_space.high)

    return act


def random_actor(action_space: gym.Space, seed: int) -> Act:
    """Actions drawn from the action space, whatever is observed."""
    space = deepcopy(action_space)
    space.seed(seed)
    return lambda obs: np.stack([space.sample() for _ in tree.flatten(obs)[0]])
