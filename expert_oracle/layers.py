"""Policies of other libraries, found in their state dictionaries, as our plain MLPs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expert_oracle.checkpoint import PolicyFile, Scale
from tutelage.policy import ACTIVATIONS, Distribution, MLPPolicy
from tutelage.types import Array

Layer = tuple[Array, Array]
"""Weights [in, out] and biases [out]."""


@dataclass(frozen=True)
class ActionSpace:
    """What a policy's outputs are for."""

    distribution: Distribution
    size: int  # components of an action, or logits
    low: Array | None = None  # [size] of a Box
    high: Array | None = None  # [size]
    nvec: tuple[int, ...] = ()


@dataclass(frozen=True)
class Moments:
    """How observations are normalised before the first layer."""

    mean: Array  # [D]
    std: Array  # [D]
    clip: float | None


def numbers(value: Any, name: str) -> Array:
    """`value` as finite float32 numbers. Raises ValueError, naming it, for anything else."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{name} are no finite numbers")
    return array.astype(np.float32)


def action_space(kind: str, attributes: Mapping[str, Any]) -> ActionSpace:
    """A gymnasium space from its class's name and its attributes."""
    if np.any(np.asarray(attributes.get("start", 0)) != 0):
        raise ValueError("its action space starts at another number than 0")
    match kind:
        case "Box":
            low, high = (np.asarray(attributes[name], np.float32).ravel() for name in ("low", "high"))
            return ActionSpace("gaussian", low.size, low=low, high=high)
        case "Discrete":
            return ActionSpace("categorical", int(attributes["n"]))
        case "MultiDiscrete":
            nvec = tuple(int(n) for n in np.ravel(attributes["nvec"]))
            return ActionSpace("multi_categorical", sum(nvec), nvec=nvec)
        case "MultiBinary":
            return ActionSpace("bernoulli", int(attributes["n"]))
    raise ValueError(f"its action space is a {kind}; known: Box, Discrete, MultiDiscrete, MultiBinary")


def layer(state: Mapping[str, Any], name: str) -> Layer:
    """The dense layer `name`. Raises KeyError if it is not there, ValueError if it is none."""
    W, b = numbers(state[f"{name}.weight"], name), numbers(state[f"{name}.bias"], name)
    if W.ndim != 2 or b.shape != W.shape[:1]:
        raise ValueError(f"{name} is no dense layer: its weights have shape {W.shape}")
    return np.ascontiguousarray(W.T), b


def layers(state: Mapping[str, Any], prefix: str) -> list[Layer]:
    """The dense layers `prefix.0`, `prefix.2`, ... with an activation after each; [] if there are none."""
    places = sorted(
        int(m[1]) for key in state if (m := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.\w+", key))
    )
    found = sorted(set(places))
    if found != list(range(0, 2 * len(found), 2)):
        raise ValueError(f"{prefix} has more than dense layers with activations between them")
    return [layer(state, f"{prefix}.{i}") for i in found]


def policy_file(
    dense: Sequence[Layer],
    activation: str,
    space: ActionSpace,
    *,
    name: str,
    scale: Scale = "box",
    moments: Moments | None = None,
) -> PolicyFile:
    """The expert that these layers are. Raises ValueError where they do not fit together."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"its activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if not dense:
        raise ValueError("it has no layers")
    _check_sizes(dense, space, moments)
    weights, biases = zip(*dense, strict=True)
    means_only = space.distribution == "gaussian" and len(biases[-1]) == space.size
    policy = MLPPolicy(
        weights,
        biases,
        activation,
        space.distribution,
        obs_mean=None if moments is None else moments.mean,
        obs_std=None if moments is None else moments.std,
        obs_clip=None if moments is None else moments.clip,
        log_std=np.zeros(space.size, np.float32) if means_only else None,
        nvec=space.nvec,
    )
    return PolicyFile(policy, low=space.low, high=space.high, name=name, scale=scale)


def _check_sizes(dense: Sequence[Layer], space: ActionSpace, moments: Moments | None) -> None:
    for i, ((_, b), (W, _)) in enumerate(itertools.pairwise(dense)):
        if len(b) != len(W):
            raise ValueError(f"layer {i} has {len(b)} outputs, the next takes {len(W)}")
    inputs, outputs = len(dense[0][0]), len(dense[-1][1])
    factors = (1, 2) if space.distribution == "gaussian" else (1,)
    if outputs not in [factor * space.size for factor in factors]:
        raise ValueError(f"it has {outputs} outputs for an action space of {space.size}")
    if moments is not None and not moments.mean.shape == moments.std.shape == (inputs,):
        raise ValueError(
            f"observations of {moments.mean.shape} are normalised, its first layer takes {inputs}"
        )
