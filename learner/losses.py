"""Every formula of ours, pure: tensors in, tensors out; shapes and papers beside them.

Axes: N samples, T time, B environments, P distribution parameters, D components of an action.
Log-probabilities and entropies are summed over the components of an action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.policy import LOG_2PI, LOG_STD_RANGE, Distribution

Params = Tensor | tuple[Tensor, Tensor]
"""Distribution parameters [N, P], laid out as in `tutelage.policy`; or of gaussians the pair of means [N, D]
and log standard deviations, [D] where they are the same in all states."""


DISTANCES = 4_096
"""Rows whose distances from all others are in memory at once."""


def log_prob(params: Params, actions: Tensor, distribution: Distribution, nvec: Sequence[int] = ()) -> Tensor:
    """log π(a|s) [N] of `actions` [N, ...]."""
    if distribution == "gaussian":
        mean, log_std = mean_and_log_std(params)
        z = (actions - mean) * torch.exp(-log_std)
        return -0.5 * z.square().sum(-1) - (log_std + 0.5 * LOG_2PI).sum(-1)
    assert isinstance(params, Tensor)
    match distribution:
        case "categorical":
            return -F.cross_entropy(params, actions.long(), reduction="none")
        case "multi_categorical":
            parts = zip(params.split(list(nvec), dim=-1), actions.long().unbind(-1), strict=True)
            return -sum_of([F.cross_entropy(logits, a, reduction="none") for logits, a in parts])
        case "squashed":
            raise ValueError("the tanh of a gaussian cannot be undone where it has reached ±1")
        case "bernoulli":
            return -F.binary_cross_entropy_with_logits(params, actions.float(), reduction="none").sum(-1)


def entropy(params: Params, distribution: Distribution, nvec: Sequence[int] = ()) -> Tensor:
    """Entropy [N] in nats; [] where it is the same in all states."""
    if distribution == "gaussian":
        log_std = mean_and_log_std(params)[1]
        return (log_std + 0.5 * (1 + LOG_2PI)).sum(-1)
    assert isinstance(params, Tensor)
    match distribution:
        case "categorical":
            return categorical_entropy(params)
        case "multi_categorical":
            return sum_of([categorical_entropy(logits) for logits in params.split(list(nvec), dim=-1)])
        case "squashed":
            raise ValueError("the entropy of the tanh of a gaussian has no closed form")
        case "bernoulli":
            p = torch.sigmoid(params)
            return F.binary_cross_entropy_with_logits(params, p, reduction="none").sum(-1)


def squashed_sample(params: Params, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(μ + σ ε) [N, D] and its log π(a|s) [N] of standard normal noise ε [N, D], with gradients for
    the parameters [N, 2 D] (Haarnoja et al., 2018, "Soft Actor-Critic", appendix C)."""
    mean, log_std = mean_and_log_std(params)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    u = mean + log_std.exp() * noise
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 − tanh² u)
    return torch.tanh(u), (-0.5 * (noise.square() + LOG_2PI) - log_std - log_slope).sum(-1)


def nearest_distance(features: Tensor, among: Tensor, *, k: int) -> Tensor:
    """Distance [N] of features [N, D] from the k-th nearest of `among` [M, D]; of fewer, the farthest."""
    k = min(k, len(among))
    parts = [torch.cdist(part, among).kthvalue(k, dim=-1).values for part in features.split(DISTANCES)]
    return torch.cat(parts)


def mean_and_log_std(params: Params) -> tuple[Tensor, Tensor]:
    """Those of gaussians."""
    return params.chunk(2, dim=-1) if isinstance(params, Tensor) else params  # type: ignore[return-value]


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy [N] of softmax(`logits` [N, n])."""
    logp = F.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(-1)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Elementwise sum of equally shaped tensors."""
    return torch.stack(list(parts)).sum(0)


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ends: Tensor,
    *,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """GAE [T, B]: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V(s_{t+1}) − V(s_t) (Schulman et al., 2016).

    All arguments are [T, B]. `next_values` is the value of the state that the action led to, also where an
    episode ended there; a time limit (`ends` but not `terminated`) is bootstrapped from it, a terminal state
    is worth nothing.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * lambda_ * (~ends).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """−min(ρ A, clip(ρ, 1−ε, 1+ε) A), averaged (PPO; Schulman et al., 2017, eq. 7), of log ρ [N] and A [N].

    The minimum is A min(ρ, 1+ε) where A > 0 and A max(ρ, 1−ε) elsewhere: one bound on ρ in each sample.
    """
    good = advantages > 0
    low, high = torch.where(good, 0.0, 1 - clip), torch.where(good, 1 + clip, torch.inf)
    return -torch.dot(advantages, torch.exp(log_ratio).clamp(low, high)) / len(advantages)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(π_old ‖ π) from samples of π_old: the mean of (ρ − 1) − log ρ, never negative (Schulman, 2020)."""
    return (torch.expm1(log_ratio) - log_ratio).mean()


def bradley_terry(returns: Tensor, weights: Tensor, *, careless: float | Tensor = 0.0) -> Tensor:
    """−Σ_k w_k log P_k [...] of segments' returns [..., K] and an answer's weights [..., K] that sum to 1.

    P_k = (1 − ε) softmax_k(returns) + ε / K: the probability that option k is preferred by somebody who
    answers at random with probability ε = `careless` (Bradley & Terry, 1952; Christiano et al., 2017, eq. 1
    and section 2.2.3). A tie has equal weights.
    """
    logp = F.log_softmax(returns, dim=-1)
    if isinstance(careless, Tensor):  # [...], of each answer
        floor = (careless.log() - math.log(returns.shape[-1]))[..., None]
        logp = torch.logaddexp(logp + torch.log1p(-careless)[..., None], floor.expand_as(logp))
    elif careless:
        at_random = torch.full_like(logp, math.log(careless) - math.log(returns.shape[-1]))
        logp = torch.logaddexp(logp + math.log1p(-careless), at_random)
    return -(weights * logp).sum(-1)
