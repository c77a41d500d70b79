"""Which segments to compare: ways to choose pairs among candidates.

    pairs = choose("disagreement", segments, n=10, model=model, rng=rng)        # [10, 2] indices

Each way draws more pairs than are wanted at random, and takes those that it scores best; no segment is in
two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tree
from scipy.spatial.distance import cdist

from learner.reward_model import RewardModel, rows_at_once
from learner.segments import first_states, standardised
from tutelage.types import Array, Segment, Tree

OVERSAMPLING = 10
"""Pairs drawn for each that is wanted (Christiano et al., 2017, section 2.2.4; B-Pref's large batch)."""
NOTHING = np.zeros((0, 2, 1))


def uniform(pairs: Array, segments: Sequence[Segment], model: RewardModel, asked: Array) -> Array:
    """Every pair as good as the other."""
    return np.zeros(len(pairs))


def disagreement(pairs: Array, segments: Sequence[Segment], model: RewardModel, asked: Array) -> Array:
    """The variance over the ensemble of which one is better (Christiano et al., 2017, section 2.2.4)."""
    return probabilities(pairs, segments, model).var(0)


def entropy(pairs: Array, segments: Sequence[Segment], model: RewardModel, asked: Array) -> Array:
    """How unsure the ensemble's mean is of its answer (B-Pref; Lee et al., 2021, section 4.2)."""
    p = probabilities(pairs, segments, model).mean(0).clip(1e-6, 1 - 1e-6)
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def k_centre(pairs: Array, segments: Sequence[Segment], model: RewardModel, asked: Array) -> Array:
    """Pairs that are far from each other and from all that was asked: the n-th best is farthest from those
    before (greedy k-centre; Sener & Savarese, 2018; B-Pref, section 4.2).

    Unlike B-Pref's, a pair is seen as the mean observation and action of either segment, not as all their
    steps, with every column on one scale; which of the two comes first plays no part; and no segment is in
    two pairs.
    """
    candidates = np.stack([looks(one.obs, one.actions, axis=0) for one in segments])
    rows = standardised(np.concatenate([candidates, asked.reshape(-1, candidates.shape[1])]))
    points = rows[pairs].reshape(len(pairs), -1)
    nearest = _nearest(points, rows[len(segments) :].reshape(-1, points.shape[1]))
    scores = np.full(len(pairs), -np.inf)
    for n in range(len(pairs)):
        best = int(nearest.argmax())
        if nearest[best] < 0:
            break
        scores[best] = -n
        nearest = np.minimum(nearest, _nearest(points, points[[best]]))
        nearest[np.isin(pairs, pairs[best]).any(1)] = -1.0
    return scores


def _nearest(points: Array, centres: Array) -> Array:
    """How far points [P, 2 D] are from the nearest of some centres [C, 2 D], either way round; infinite where
    there are none."""
    swapped = np.roll(centres, points.shape[1] // 2, axis=1)
    return cdist(points, np.concatenate([centres, swapped])).min(1, initial=np.inf)


def looks(obs: Tree, actions: Array, *, axis: int) -> Array:
    """What segments look like, as vectors [..., D]: their mean observation and action over time, an axis."""
    leaves: list[Any] = [*tree.flatten(obs), actions]
    means = [leaf.mean(axis, dtype=np.float64) for leaf in leaves]
    return np.concatenate([mean.reshape(*mean.shape[:axis], -1) for mean in means], axis=-1)


def same_start(pairs: Array, segments: Sequence[Segment], model: RewardModel, asked: Array) -> Array:
    """Segments that begin in like states, so that an answer is about what was done, not about luck."""
    states = first_states(list(segments))
    a, b = states[pairs[:, 0]], states[pairs[:, 1]]
    return -((a - b) ** 2).sum(1)


Score = Callable[[Array, Sequence[Segment], RewardModel, Array], Array]
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
    asked: Array = NOTHING,
) -> Array:
    """At most `n` groups [n, options] of segments, by index, the best first; each segment in one of them.

    With more than two options, further ones are drawn at random beside the pair that was chosen; so that some
    are left, no more pairs are chosen than there can be groups. `asked` are the `looks` [Q, 2, D] of the
    pairs before.
    """
    n = min(n, len(segments) // options)
    if n == 0:
        return np.zeros((0, options), np.int64)
    order = [rng.permutation(len(segments)) for _ in range(-(-2 * OVERSAMPLING * n // len(segments)))]
    drawn = np.concatenate([one[: len(one) // 2 * 2].reshape(-1, 2) for one in order])
    drawn = drawn[: max(OVERSAMPLING * n, 1)] if way != "uniform" else drawn[:n]
    scores = WAYS[way](drawn, segments, model, asked)
    free = np.ones(len(segments), bool)
    chosen = []
    for pair in drawn[np.argsort(-scores, kind="stable")]:
        if len(chosen) < n and free[pair].all():
            free[pair] = False
            chosen.append(pair)
    more = options - 2
    others = rng.permutation(np.flatnonzero(free))[: len(chosen) * more]
    pairs = np.array(chosen, np.int64).reshape(-1, 2)
    return np.concatenate([pairs, others.reshape(len(pairs), more)], axis=1)


@torch.no_grad()
def probabilities(pairs: Array, segments: Sequence[Segment], model: RewardModel) -> Array:
    """[M, P]: what each member thinks how likely the first of each pair is preferred."""
    returns = returns_of(segments, model)
    return torch.sigmoid(returns[:, pairs[:, 0]] - returns[:, pairs[:, 1]]).numpy()


@torch.no_grad()
def returns_of(segments: Sequence[Segment], model: RewardModel) -> torch.Tensor:
    """Fitted returns [M, N] of segments, as many at a time as a network takes."""
    at_once = max(1, rows_at_once(segments[0].obs, leading=1) // len(segments[0].actions))
    found = []
    for start in range(0, len(segments), at_once):
        some = segments[start : start + at_once]
        obs = tree.map_structure(lambda *x: torch.from_numpy(np.stack(x)[:, None]), *(s.obs for s in some))
        actions = torch.from_numpy(np.stack([s.actions for s in some])[:, None])
        ended = torch.from_numpy(np.stack([s.ended for s in some])[:, None])
        found.append(model.returns(obs, actions, ended).squeeze(-1))
    return torch.cat(found, dim=-1)
