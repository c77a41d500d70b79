"""A plain-MLP policy in numpy: what runners act with, and the form in which experts are shipped.

For small networks a numpy forward costs a third of the torch one, and the file needs neither torch nor
pickle. `params` are the inputs of the action distribution, in RLlib's layout: Box [N, 2 D] (means, log
standard deviations), Discrete [N, n] logits, MultiDiscrete [N, sum(nvec)] logits one after the other,
MultiBinary [N, n] logits of a one. A squashed gaussian is the tanh of a gaussian, in [-1, 1], for a Box with
bounds to which `stretched` takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tutelage.types import Array

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {  # in place
    "tanh": lambda x: np.tanh(x, out=x),
    "relu": lambda x: np.maximum(x, 0, out=x),
}

Distribution = Literal["gaussian", "squashed", "categorical", "multi_categorical", "bernoulli"]

LOG_2PI = math.log(2 * math.pi)
LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(frozen=True)
class MLPPolicy:
    """An MLP from flat observations [N, D] to distribution parameters [N, P]; float32 throughout."""

    weights: Sequence[Array]  # each [in, out]
    biases: Sequence[Array]  # each [out]
    activation: str  # "tanh" or "relu", between the layers
    distribution: Distribution
    obs_mean: Array | None = None  # [D]; None: observations are not normalised
    obs_std: Array | None = None  # [D]
    obs_clip: float | None = None  # normalised observations are clipped to ± this
    log_std: Array | None = None  # [D_action], gaussian only: independent of the state
    nvec: Sequence[int] = ()  # multi_categorical only

    def __call__(self, obs: Array) -> Array:
        """Distribution parameters [N, P] for observations [N, ...]."""
        flat = np.asarray(obs, np.float32).reshape(len(obs), math.prod(obs.shape[1:]))
        x = self._normalised(flat)
        activate = ACTIVATIONS[self.activation]
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = x @ W
            x += b
            x = activate(x)
        x = x @ self.weights[-1]
        x += self.biases[-1]
        if self.log_std is None:
            return x
        return np.concatenate([x, np.broadcast_to(self.log_std, x.shape)], axis=-1)

    def _normalised(self, x: Array) -> Array:
        if self.obs_mean is None or self.obs_std is None:
            return x
        x = x - self.obs_mean
        x /= self.obs_std
        if self.obs_clip is not None:
            np.maximum(x, -self.obs_clip, out=x)
            np.minimum(x, self.obs_clip, out=x)
        return x


def mode(params: Array, distribution: Distribution, nvec: Sequence[int] = ()) -> Array:
    """The most likely action [N, ...] under `params` [N, P]; gaussian means are not clipped."""
    match distribution:
        case "gaussian":
            return params[:, : params.shape[1] // 2]
        case "squashed":
            return np.tanh(params[:, : params.shape[1] // 2])
        case "categorical":
            return params.argmax(-1)
        case "multi_categorical":
            return np.stack([part.argmax(-1) for part in split_logits(params, nvec)], axis=-1)
        case "bernoulli":
            return (params > 0).astype(np.int8)


def sample(
    params: Array, distribution: Distribution, rng: np.random.Generator, nvec: Sequence[int] = ()
) -> Array:
    """A random action [N, ...] under `params` [N, P]; gaussian samples are not clipped."""
    match distribution:
        case "gaussian":
            mean, log_std = np.split(params, 2, axis=-1)
            noise = rng.standard_normal(mean.shape, np.float32)
            noise *= np.exp(log_std)
            noise += mean
            return noise
        case "squashed":
            mean, log_std = np.split(params, 2, axis=-1)
            noise = rng.standard_normal(mean.shape, np.float32)
            noise *= np.exp(log_std.clip(*LOG_STD_RANGE))
            noise += mean
            return np.tanh(noise, out=noise)
        case "categorical":
            return (params - log_exponential(rng, params.shape)).argmax(-1)
        case "multi_categorical":
            noisy = params - log_exponential(rng, params.shape)
            return np.stack([part.argmax(-1) for part in split_logits(noisy, nvec)], axis=-1)
        case "bernoulli":
            logistic = log_exponential(rng, params.shape) - log_exponential(rng, params.shape)
            return (params + logistic > 0).astype(np.int8)


def log_prob(params: Array, actions: Array, distribution: Distribution, nvec: Sequence[int] = ()) -> Array:
    """log π(a|s) [N] of `actions` [N, ...] under `params` [N, P], summed over an action's components."""
    match distribution:
        case "gaussian":
            mean, log_std = np.split(params, 2, axis=-1)
            z = (actions - mean) * np.exp(-log_std)
            return (-0.5 * (z * z + LOG_2PI) - log_std).sum(-1)
        case "squashed":
            raise ValueError("the tanh of a gaussian cannot be undone where it has reached ±1")
        case "categorical":
            return categorical_log_prob(params, actions)
        case "multi_categorical":
            parts = split_logits(params, nvec)
            return np.sum([categorical_log_prob(part, actions[:, i]) for i, part in enumerate(parts)], axis=0)
        case "bernoulli":
            return (params * actions - np.logaddexp(0, params)).sum(-1)


def categorical_log_prob(logits: Array, actions: Array) -> Array:
    """log softmax(`logits` [N, n]) [N] at `actions` [N]."""
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, actions[:, None].astype(np.int64), axis=-1)[:, 0]
    return chosen - np.log(np.exp(shifted).sum(-1))


def log_exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """log E of standard exponentials E, float32: minus a Gumbel variable; two differ by a logistic one.

    argmax(logits − log E) is a draw from the softmax of the logits (Gumbel, 1954).
    """
    E = rng.standard_exponential(shape, np.float32)
    np.maximum(E, 1e-38, out=E)  # a drawn zero would warn
    return np.log(E, out=E)


def split_logits(params: Array, nvec: Sequence[int]) -> list[Array]:
    """Logits [N, sum(nvec)] as one array [N, n] per component."""
    return np.split(params, np.cumsum(nvec)[:-1], axis=-1)


def distribution_of(action_space: Any) -> tuple[Distribution, tuple[int, ...]]:
    """The distribution for a gymnasium action space, and its `nvec` (empty but for MultiDiscrete).

    Raises ValueError for other spaces and for Box spaces of more than one axis.
    """
    match type(action_space).__name__:
        case "Box" if len(action_space.shape) == 1:
            return "gaussian", ()
        case "Discrete":
            return "categorical", ()
        case "MultiDiscrete" if action_space.nvec.ndim == 1:
            return "multi_categorical", tuple(int(n) for n in action_space.nvec)
        case "MultiBinary" if len(action_space.shape) == 1:
            return "bernoulli", ()
    raise ValueError(
        f"action space {action_space} is not supported; "
        "supported: flat Box, Discrete, MultiDiscrete, MultiBinary"
    )


def is_bounded(action_space: Any) -> bool:
    """A Box with bounds on all sides: what a squashed gaussian acts in."""
    if type(action_space).__name__ != "Box":
        return False
    return bool(np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all())


def stretched(units: Array, low: Array, high: Array) -> Array:
    """Actions of -1..1 [N, D] as those of low..high."""
    return low + (units + 1) / 2 * (high - low)


def half_range(low: Array, high: Array) -> Array:
    """Half the width [D] float32 of a Box's bounds, 1 where it has none: a unit for differences."""
    half = (np.asarray(high, np.float64) - low) / 2
    return np.where(np.isfinite(half) & (half > 0), half, 1.0).astype(np.float32)


def difference(actions: Array, others: Array, unit: Array | None) -> Array:
    """How far actions [N, ...] are apart [N]: the mean squared difference of their components in `unit`s, the
    half range of a Box; the share of components that differ where there is none (None)."""
    apart = actions != others if unit is None else ((actions - others) / unit) ** 2
    return apart.reshape(len(apart), -1).mean(-1)


def unit_of(action_space: Any) -> Array | None:
    """The unit of `difference` for a gymnasium action space."""
    if type(action_space).__name__ != "Box":
        return None
    return half_range(action_space.low, action_space.high)
