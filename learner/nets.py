"""Policies and value functions as RLModules: MLPs on flat observations, encoders per leaf on all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from learner.critics import Critics
from learner.encoders import OBS_CLIP, Encoder, ObservationNorm, is_flat
from learner.judgement import LIMITS, SelfJudgement
from learner.losses import Params
from learner.mlp import ACTIVATIONS, EnsembleMLP, mlp, to_numpy
from tutelage.errors import ConfigError
from tutelage.plugins import did_you_mean
from tutelage.policy import (
    LOG_STD_RANGE,
    Distribution,
    MLPPolicy,
    distribution_of,
    is_bounded,
    mode,
    stretched,
)
from tutelage.types import Tree

DEFAULTS: Mapping[str, Any] = {
    "fcnet_hiddens": [64, 64],
    "fcnet_activation": "tanh",
    "conv_filters": None,  # RLlib's [[channels, kernel, stride], ...]; None: chosen by the image's size
    "log_std_init": 0.0,  # of gaussian policies
    "normalise_observations": True,  # flat float observations: zero mean, unit variance, clipped
    "members": 1,  # policies side by side, which act by their mean and know where they disagree
    "value": True,  # a value function beside the policy
    "danger": False,  # a classifier of where the policy errs
    "risk": False,  # and a critic of failure
    "critics": False,  # action values, and a policy within the bounds of its Box
}
OF_METHODS = ("value", "danger", "risk", "critics")
"""What only methods set."""
WARM_COUNT = 100_000  # observations that moments which come with a policy count as


def model_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """`DEFAULTS` with what was given. Raises ConfigError naming an unknown key or activation."""
    for key in given:
        if key not in DEFAULTS:
            raise ConfigError(
                f"rl_module.model_config.{key} is unknown{did_you_mean(key, set(DEFAULTS) - {*OF_METHODS})}"
            )
    config = {**DEFAULTS, **given}
    if config["fcnet_activation"] not in ACTIVATIONS:
        raise ConfigError(
            f"rl_module.model_config.fcnet_activation: {config['fcnet_activation']!r} is not one of "
            + ", ".join(ACTIVATIONS)
        )
    if not isinstance(config["members"], int) or config["members"] < 1:
        raise ConfigError(f"rl_module.model_config.members: {config['members']!r} is not 1 or more")
    return config


class PolicyModule(SelfJudgement, TorchRLModule, InferenceOnlyAPI):
    """A policy and, where a method needs one, a value function of their own encoders.

    `policy(obs)` are distribution parameters, `value(obs)` is [N], `policy_and_value(obs)` are both for less.
    With several members the policy is their mean; `members(obs)` are the parameters of each, and `doubt(obs)`
    is how far they are apart. `danger` and `risk` are there for the methods that train them.
    """

    def setup(self) -> None:
        config = model_config(self.model_config or {})
        self.distribution: Distribution
        self.distribution, self.nvec = distribution_of(self.action_space)
        if config["critics"]:
            self.distribution = squashed_in(self.action_space)
        hiddens, activation = config["fcnet_hiddens"], config["fcnet_activation"]
        self.encoder = Encoder(self.observation_space, config)
        outputs = {
            "gaussian": lambda space: space.shape[0],
            "squashed": lambda space: 2 * space.shape[0],
            "categorical": lambda space: int(space.n),
            "multi_categorical": lambda space: int(space.nvec.sum()),
            "bernoulli": lambda space: space.shape[0],
        }[self.distribution](self.action_space)
        sizes = [self.encoder.size, *hiddens, outputs]
        self.pi: nn.Sequential | EnsembleMLP
        if config["members"] == 1:
            self.pi = mlp(sizes, activation, output_gain=0.01)
        else:
            self.pi = EnsembleMLP(config["members"], sizes, activation, output_gain=0.01)
        self.log_std: nn.Parameter | None = None
        if self.distribution == "gaussian":
            self.log_std = nn.Parameter(torch.full((outputs,), float(config["log_std_init"])))
        self.value_encoder: Encoder | None = None
        if config["value"] and not self.inference_only:
            if not self.is_mlp():
                self.value_encoder = Encoder(
                    self.observation_space, {**config, "normalise_observations": True}
                )
            self.vf = mlp([self.encoder.size, *hiddens, 1], activation, output_gain=1.0)
        self.critics: Critics | None = None
        if config["critics"] and not self.inference_only:
            self.critics = Critics(self.observation_space, self.action_space, config)
        if config["danger"]:
            self.danger_net = mlp([self.encoder.size, *hiddens, 1], activation, output_gain=1.0)
        if config["risk"]:
            size = self.encoder.size + gym.spaces.flatdim(self.action_space)
            self.risk_net = mlp([size, *hiddens, 1], activation, output_gain=1.0)
            self.register_buffer("limits_of", torch.full((len(LIMITS),), torch.inf))
        self.activation = activation

    def get_non_inference_attributes(self) -> list[str]:
        return ["vf", "value_encoder", "critics"]

    def is_mlp(self) -> bool:
        """The observation is flat, so that the policy can be run in numpy."""
        return is_flat(self.observation_space)

    def policy(self, obs: Tree) -> Params:
        """Distribution parameters [N, P] for observations; a gaussian's means [N, D] and log stds [D]."""
        return self._params(self.encoder(obs))

    def _params(self, features: Tensor) -> Params:
        x = self.pi(features)
        return self._with_std(x.mean(0) if isinstance(self.pi, EnsembleMLP) else x)

    def _with_std(self, x: Tensor) -> Params:
        return x if self.log_std is None else (x, self.log_std.clamp(*LOG_STD_RANGE))

    def members(self, obs: Tree) -> Params:
        """Distribution parameters of each member: [M, N, P], or means [M, N, D] and log stds [D]."""
        x = self.pi(self.encoder(obs))
        return self._with_std(x if isinstance(self.pi, EnsembleMLP) else x[None])

    def value(self, obs: Tree) -> Tensor:
        """State values [N]."""
        encoder = self.encoder if self.value_encoder is None else self.value_encoder
        return self.vf(encoder(obs)).squeeze(-1)

    def policy_and_value(self, obs: Tree) -> tuple[Params, Tensor]:
        """Both, with the features that they share computed once."""
        if self.value_encoder is not None:
            return self.policy(obs), self.value(obs)
        features = self.encoder(obs)
        return self._params(features), self.vf(features).squeeze(-1)

    def units(self, actions: Tensor) -> Tensor:
        """Actions [N, D] of a bounded Box as -1..1."""
        low, high = self._bounds(actions)
        return 2 * (actions - low) / (high - low) - 1

    def norms(self) -> list[tuple[int, list[ObservationNorm]]]:
        """The normalisers of each leaf of the observation that has any, by the leaf's number."""
        encoders = [encoder for encoder in (self.encoder, self.value_encoder) if encoder is not None]
        encoders += [] if self.critics is None else self.critics.encoders()
        by_leaf = enumerate(zip(*(encoder.leaves for encoder in encoders), strict=True))
        found = ((i, [leaf.norm for leaf in leaves if leaf.norm is not None]) for i, leaves in by_leaf)
        return [(i, norms) for i, norms in found if norms]

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {"action_dist_inputs": joined(self.policy(batch["obs"]))}

    def policy_arrays(self) -> MLPPolicy | None:
        """This policy in numpy, copied; None where it is not a plain MLP."""
        if not self.is_mlp():
            return None
        if isinstance(self.pi, EnsembleMLP):
            weights, biases = self.pi.as_one()
        else:
            linears = [layer for layer in self.pi if isinstance(layer, nn.Linear)]
            weights = [np.ascontiguousarray(to_numpy(layer.weight).T) for layer in linears]
            biases = [to_numpy(layer.bias) for layer in linears]
        norm: ObservationNorm | None = self.encoder.leaves[0].norm  # type: ignore[assignment]
        return MLPPolicy(
            weights=weights,
            biases=biases,
            activation=self.activation,
            distribution=self.distribution,
            nvec=self.nvec,
            obs_mean=None if norm is None else to_numpy(norm.mean),
            obs_std=None if norm is None else to_numpy(norm.std),
            obs_clip=None if norm is None else OBS_CLIP,
            log_std=None if self.log_std is None else to_numpy(self.log_std.clamp(*LOG_STD_RANGE)),
        )

    @torch.no_grad()
    def begin_with(self, policy: MLPPolicy) -> None:
        """Take the weights and moments of a policy; how much actions vary stays as it is configured.

        Raises ConfigError unless the layers are the same.
        """
        linears = [layer for layer in self.pi if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
        mine = self.activation, self.distribution, [layer.in_features for layer in linears]
        theirs = policy.activation, policy.distribution, [len(W) for W in policy.weights]
        if not self.is_mlp() or mine != theirs:
            raise ConfigError(
                f"method.warm_start: that policy has {theirs[1]} {theirs[0]} layers of {theirs[2]}, this one "
                f"{mine[1]} {mine[0]} layers of {mine[2]}; set rl_module.model_config.fcnet_hiddens and "
                "fcnet_activation alike"
            )
        for layer, W, b in zip(linears, policy.weights, policy.biases, strict=True):
            layer.weight.copy_(torch.as_tensor(W.T))
            layer.bias.copy_(torch.as_tensor(b))
        for _, norms in self.norms():
            for norm in norms if policy.obs_mean is not None else ():
                std = torch.as_tensor(policy.obs_std)
                norm.set(WARM_COUNT, torch.as_tensor(policy.obs_mean), std * std)


def squashed_in(action_space: gym.Space) -> Distribution:
    """The distribution for a Box with bounds. Raises ConfigError for other spaces."""
    if not is_bounded(action_space):
        raise ConfigError(
            f"this method acts in a Box with bounds on all sides, and this environment takes {action_space}; "
            "ppo and preference know others"
        )
    return "squashed"


def joined(params: Params) -> Tensor:
    """Distribution parameters as one tensor [N, P]."""
    if isinstance(params, Tensor):
        return params
    mean, log_std = params
    return torch.cat([mean, log_std.expand_as(mean)], dim=-1)


class ModulePolicy:
    """An oracle that acts greedily with a PolicyModule: for policies that numpy cannot run."""

    def __init__(self, module: PolicyModule) -> None:
        self.module = module.eval()

    @torch.inference_mode()
    def act(self, obs: Tree) -> np.ndarray:
        params = joined(self.module.policy(tree.map_structure(torch.as_tensor, obs)))
        actions = mode(params.numpy(), self.module.distribution, self.module.nvec)
        space = self.module.action_space
        if isinstance(space, gym.spaces.Box):
            if self.module.distribution == "squashed":
                actions = stretched(actions, space.low, space.high)
            return np.clip(actions, space.low, space.high)
        return actions + int(space.start) if isinstance(space, gym.spaces.Discrete) else actions


def save_module(module: PolicyModule, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write a policy that is not a plain MLP so that `checkpoint:FOLDER` finds it."""
    module.save_to_path(str(folder.resolve() / "module"))
    (folder / "policy.json").write_text(json.dumps({"loader": "learner.nets:load_policy", **metadata}))


def load_policy(folder: Path) -> ModulePolicy:
    """The policy that `save_module` wrote. RLlib's checkpoints are pickles: load only your own."""
    return ModulePolicy(TorchRLModule.from_checkpoint(str(folder.resolve() / "module")))
