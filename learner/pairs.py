"""Which segments to compare: ways to choose pairs among candidates.

    pairs = choose("disagreement", segments, n=10, model=model, rng=rng)        # [10, 2] indices

Each way draws more pairs than are wanted at random, and takes those that it scores best; no segment is in
two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import tree

from learner.reward_model import RewardModel
from learner.segments import features, first_states
from tutelage.types import Array, Segment

OVERSAMPLING = 10
"""Pairs drawn for each that is wanted (Christiano et al., 2017, section 2.2.4; B-Pref's large batch)."""


def uniform(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """Every pair as good as the other."""
    return np.zeros(len(pairs))


def disagreement(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """The variance over the ensemble of which one is better (Christiano et al., 2017, section 2.2.4)."""
    return probabilities(pairs, segments, model).var(0)


def entropy(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """How unsure the ensemble's mean is of its answer (B-Pref; Lee et al., 2021, section 4.2)."""
    p = probabilities(pairs, segments, model).mean(0).clip(1e-6, 1 - 1e-6)
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def k_centre(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """Pairs that are far from each other, chosen greedily: the n-th best is the farthest from those before
    (Sener & Savarese, 2018; B-Pref, section 4.2)."""
    looks = features(list(segments))
    points = looks[pairs].reshape(len(pairs), -1)
    order, nearest = [0], ((points - points[0]) ** 2).sum(1)
    for _ in range(len(pairs) - 1):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[order[-1]]) ** 2).sum(1))
        nearest[order] = -1.0
    scores = np.empty(len(pairs))
    scores[order] = -np.arange(len(pairs))
    return scores


def same_start(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """Segments that begin in like states, so that an answer is about what was done, not about luck."""
    states = first_states(list(segments))
    a, b = states[pairs[:, 0]], states[pairs[:, 1]]
    return -((a - b) ** 2).sum(1)


Score = Callable[[Array, Sequence[Segment], RewardModel], Array]
WAYS: Mapping[str, Score] = {
    way.__name__: way for way in (uniform, disagreement, entropy, k_centre, same_start)
}

BY_MODEL = ("disagreement", "entropy")
"""Those that need a reward model."""


def choose(
    way: str,
    segments: Sequence[Segment],
    n: int,
    *,
    model: RewardModel,
    rng: np.random.Generator,
    options: int = 2,
) -> Array:
    """At most `n` groups [n, options] of segments, by index, the best first; each segment in one of them.

    With more than two options, further ones are drawn at random beside the pair that was chosen.
    """
    if len(segments) < options:
        return np.zeros((0, options), np.int64)
    order = [rng.permutation(len(segments)) for _ in range(-(-2 * OVERSAMPLING * n // len(segments)))]
    drawn = np.concatenate([one[: len(one) // 2 * 2].reshape(-1, 2) for one in order])
    drawn = drawn[: max(OVERSAMPLING * n, 1)] if way != "uniform" else drawn[:n]
    scores = WAYS[way](drawn, segments, model)
    free = np.ones(len(segments), bool)
    chosen = []
    for pair in drawn[np.argsort(-scores, kind="stable")]:
        if len(chosen) < n and free[pair].all():
            free[pair] = False
            chosen.append(pair)
    if options == 2:
        return np.array(chosen, np.int64).reshape(-1, 2)
    others = rng.permutation(np.flatnonzero(free))
    groups = [
        [*pair, *rest]
        for i, pair in enumerate(chosen)
        if len(rest := others[i * (options - 2) : (i + 1) * (options - 2)]) == options - 2
    ]
    return np.array(groups, np.int64).reshape(-1, options)


@torch.no_grad()
def probabilities(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """[M, P]: what each member thinks how likely the first of each pair is preferred."""
    returns = returns_of(segments, model)
    return torch.sigmoid(returns[:, pairs[:, 0]] - returns[:, pairs[:, 1]]).numpy()


@torch.no_grad()
def returns_of(segments: Sequence[Segment], model: RewardModel) -> torch.Tensor:
    """Fitted returns [M, N] of segments."""
    obs = tree.map_structure(lambda *x: torch.from_numpy(np.stack(x)[:, None]), *(s.obs for s in segments))
    actions = torch.from_numpy(np.stack([s.actions for s in segments])[:, None])
    ended = torch.from_numpy(np.stack([s.ended for s in segments])[:, None])
    return model.returns(obs, actions, ended).squeeze(-1)
