"""Rewards learnt from comparisons by an ensemble (Christiano et al., 2017, section 2.2).

    model = RewardModel(observation_space, action_space, seed=0)
    figures = model.fit(comparisons, passes=50)
    rewards = model.rewards(obs, actions)          # [M, N], each member with mean 0 and deviation 1

Departures from the paper:

1. All members are one batched network, and each minibatch serves all of them: a comparison counts for a
   member as often as a Poisson(1) draw says, the bootstrap that needs no copies (Oza & Russell, 2001). The
   draw comes from the comparison's number, so it stays when others are added. Those that a member does not
   draw cost it nothing.
2. Those are what is held out of it: a share of 1/e, the paper's, without keeping any answer from all.
3. The paper adapts the ℓ2 regularisation so that the held-out loss is between 1.1 and 1.5 times the training
   loss; so it is here, several times in a fit, as decoupled weight decay of at most 10: with few answers no
   decay gets there, and more of it only makes the model timid.

A Bradley–Terry reward has a free offset and scale. Both are fixed after each fit: over the segments' steps
every member has mean 0 and standard deviation 1.

Of a step after the end of the task there is nothing to see, and yet people have an opinion of it: what they
prefer shows what an ended episode is worth. That is one number a member, the reward of the absorbing state
(as in DAC; Kostrikov et al., 2019), and no weight decay draws it to a zero that means nothing. A member that
draws a few comparisons which depend on it knows it, and can tell rewards relative to it.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from torch import Tensor, nn
from torch.nn import functional as F

from learner.encoders import Encoder
from learner.losses import bradley_terry
from learner.mlp import EnsembleMLP
from tutelage.types import Array, Tree

CARELESS = 0.1
"""The paper's share of answers at random."""
MINIBATCH = 64  # comparisons
ENDS = 5  # comparisons of segments that ended at different times, by which a member knows an end's worth
RATIO = (1.1, 1.5)  # of the held-out loss to the training loss, between which the decay is left alone
DECAYS = (1e-6, 10.0)
FIRST_DECAY = 1.0
ADAPTED_EVERY = (25, 3)  # minibatches and passes that are between two looks at the held-out loss, at least
ROWS = 4_096  # in one forward without gradients: what a cache holds
STEPS = 2_000  # of segments in one forward and backward, likewise
NUMBERS = 2**24  # in the observations of one, for images
LONG_MEMORY = 97  # an odd number that spreads seeds
MAPPED = 8  # rows of a mapped file that are read before its pages are let go; megabytes come with each
POISSON = np.exp(-1) * np.cumsum(1 / np.cumprod([1.0, *range(1, 16)]))  # its distribution function, mean 1


@dataclass(frozen=True)
class Compared:
    """Answered comparisons of segments of one length. Made by: the data. Eaten by: the reward model."""

    obs: Tree  # [Q, K, L, ...] of Q questions
    actions: Array  # [Q, K, L, ...]
    weights: Array  # [N, K] float32, sum to 1
    rows: Array  # [N] int64, of obs, actions and ended: the number of the question, several may answer it
    ended: Array | None = None  # [Q, K, L] bool, steps after the end of the task; None: there are none
    careless: Array | None = None  # [N] float32, probability of an answer at random; None: the model's

    def __len__(self) -> int:
        return len(self.weights)


class RewardModel(nn.Module):
    """M reward functions of (s, a)."""

    offset: Tensor
    scale: Tensor
    ends_known: Tensor  # [M] bool: it drew enough judgements of what came after an end

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        members: int = 3,
        hiddens: tuple[int, ...] = (64, 64),
        activation: str = "relu",
        lr: float = 1e-3,
        careless: float = CARELESS,
        normalise: bool = True,
        conv_filters: Any = None,  # of images: [[channels, kernel, stride], ...]
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.action_space, self.members, self.careless, self.seed = action_space, members, careless, seed
        self.normalise = normalise
        config = {"normalise_observations": True, "conv_filters": conv_filters}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = Encoder(observation_space, config)
            learns = any(True for _ in first.parameters())  # of images; vectors are only normalised
            others = [Encoder(observation_space, config) for _ in range(members - 1 if learns else 0)]
            self.encoders = nn.ModuleList([first, *others])  # one a member where it learns, else one for all
            sizes = [first.size + gym.spaces.flatdim(action_space), *hiddens, 1]
            self.net = EnsembleMLP(members, sizes, activation, output_gain=1.0)
        self.ended_reward = nn.Parameter(torch.zeros(members, 1))
        self.register_buffer("ends_known", torch.zeros(members, dtype=torch.bool))
        self.register_buffer("offset", torch.zeros(members, 1))
        self.register_buffer("scale", torch.ones(members, 1))
        decayed = [*self.encoders.parameters(), *self.net.parameters()]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed}, {"params": [self.ended_reward], "weight_decay": 0.0}],
            lr=lr,
            weight_decay=FIRST_DECAY,
            fused=True,
        )

    @property
    def decay(self) -> float:
        """The regularisation as it is now."""
        return self.optimiser.param_groups[0]["weight_decay"]

    def forward(self, obs: Tree, actions: Tensor) -> Tensor:
        """Rewards [M, N] as they are fitted, of observations [N, ...] and actions [N, ...]."""
        return self.net(self._features(obs, actions)).squeeze(-1)

    def _features(self, obs: Tree, actions: Tensor) -> Tensor:
        """Features [M, N, size], or [1, N, size] where they are the same for all members."""
        taken = self._action_features(actions)
        features = [torch.cat([encode(obs), taken], dim=-1) for encode in self.encoders]
        return torch.stack(features) if len(features) > 1 else features[0][None]

    @torch.no_grad()
    def rewards(self, obs: Tree, actions: Tensor, *, relative_to_end: bool = False) -> Tensor:
        """Rewards [M, N] on the common scale: with mean 0 over what was judged; or less that of a step after
        the end of the task, which then has 0, of those members alone that know it."""
        rows = len(actions)
        step = rows_at_once(obs, leading=1)
        parts = [
            self(tree.map_structure(lambda x, i=i: x[i : i + step], obs), actions[i : i + step])
            for i in range(0, rows, step)
        ]
        fitted = torch.cat(parts, dim=-1)
        if not relative_to_end:
            return (fitted - self.offset) / self.scale
        return ((fitted - self.ended_reward) / self.scale)[self.ends_known]

    def _action_features(self, actions: Tensor) -> Tensor:
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return F.one_hot(actions.long() - int(space.start), int(space.n)).float()
        if isinstance(space, gym.spaces.MultiDiscrete):
            columns = zip(actions.long().flatten(1).unbind(-1), space.nvec.ravel(), strict=True)
            return torch.cat([F.one_hot(column, int(n)) for column, n in columns], dim=-1).float()
        if isinstance(space, gym.spaces.MultiBinary):
            return actions.flatten(1).float()
        low, high = (torch.as_tensor(bound).to(actions) for bound in (space.low, space.high))  # type: ignore[attr-defined]
        return actions.clamp(low, high).flatten(1).float()  # as the environment takes them

    def returns(
        self, obs: Tree, actions: Tensor, ended: Tensor | None = None, *, of: Tensor | None = None
    ) -> Tensor:
        """Sums of fitted rewards [M, N, K] over segments [N, K, L, ...]; `of`, rows [M, n] of these for each
        member: [M, n, K]."""
        return self._sums(self._of_segments(obs, actions), ended, of, options=actions.shape[1])

    def _of_segments(self, obs: Tree, actions: Tensor) -> Tensor:
        """Features [M or 1, N, K L, size] of segments [N, K, L, ...]."""
        flat = tree.map_structure(lambda x: x.flatten(0, 2), obs)
        return self._features(flat, actions.flatten(0, 2)).unflatten(1, (len(actions), -1))

    def _sums(self, features: Tensor, ended: Tensor | None, of: Tensor | None, *, options: int) -> Tensor:
        """As `returns`. The last layer, being linear, takes the sum of what it would take of the steps."""
        if of is not None:
            own = torch.arange(self.members)[:, None] if len(features) > 1 else 0
            features, ended = features[own, of], None if ended is None else ended[of]
        N, K, L = features.shape[1], options, features.shape[2] // options
        hidden = self.net.hidden(features.flatten(1, 2))
        hidden = hidden.view(self.members, N * K, L, hidden.shape[-1])
        seen = hidden.new_ones(1, L) if ended is None else (~ended).float().flatten(-3, -2)
        summed = (seen[..., None, :] @ hidden).squeeze(2)  # whose gradient is quicker than a sum's
        steps = seen.sum(-1)
        rewards = self.net.last(summed, steps[..., None]).squeeze(-1)
        return (rewards + (L - steps) * self.ended_reward).view(self.members, N, K)

    # Fitting

    def fit(
        self, compared: Compared, *, passes: int = 1, minibatch: int = MINIBATCH, seed: int = 0
    ) -> dict[str, float]:
        """Descend through all comparisons `passes` times; the figures are of the last pass.

        Returns `loss`, `held_out_loss` (NaN while nothing is held out), `accuracy` on what is no tie of the
        members that it is held out of, `decay`.
        """
        data = Fitting(compared, self.members, self.seed)
        self._see(data)
        rng = np.random.default_rng([seed, LONG_MEMORY])
        loss = held_out = accuracy = float("nan")
        between = max(ADAPTED_EVERY[1], math.ceil(ADAPTED_EVERY[0] * minibatch / len(compared)))
        for done in range(1, passes + 1):
            loss = self._pass(data, minibatch, rng)
            if done % between == 0 or done == passes:
                held_out, accuracy = self.test(data)
                self._adapt(loss, held_out)
        self._normalise(data)
        return {"loss": loss, "held_out_loss": held_out, "accuracy": accuracy, "decay": self.decay}

    def _see(self, data: Fitting) -> None:
        """Set the moments of the observations, those after an end left out."""
        encoders: list[Any] = list(self.encoders)
        leaves = zip(*(encoder.leaves for encoder in encoders), strict=True)
        by_leaf = [[leaf.norm for leaf in same if leaf.norm is not None] for same in leaves]
        for norm in itertools.chain(*by_leaf):
            norm.count.zero_()
        for rows in data.all() if any(by_leaf) else ():
            obs, _, ended, *_ = data.rows(rows)
            for norms, x in zip(by_leaf, tree.flatten(obs), strict=True):
                for norm in norms:
                    norm.merge(x.flatten(0, 2) if ended is None else x[~ended])

    def _pass(self, data: Fitting, minibatch: int, rng: np.random.Generator) -> float:
        total = weight = 0.0
        for rows in data.minibatches(minibatch, rng):
            obs, actions, ended, weights, careless, counts = data.rows(rows)
            counts, of = counts.sort(dim=1, descending=True)
            drawn = int((counts > 0).sum(1).max())  # by the member that draws most of them
            features, most = self._of_segments(obs, actions), counts.sum().clamp(min=1)
            at_once = drawn if features.requires_grad else max(1, STEPS // features.shape[2])
            self.optimiser.zero_grad()
            for start in range(0, drawn, at_once):
                own = of[:, start : min(start + at_once, drawn)]
                returns = self._sums(features, ended, own, options=actions.shape[1])
                at_random = self.careless if careless is None else careless[own]
                losses = bradley_terry(returns, weights[own], careless=at_random)  # [M, n]
                loss = (counts[:, start : start + own.shape[1]] * losses).sum()
                (self.members * loss / most).backward()  # members share nothing: each has its own mean
                total += float(loss.detach())
            self.optimiser.step()
            weight += float(counts.sum())
        return total / max(weight, 1.0)

    @torch.no_grad()
    def test(self, data: Fitting) -> tuple[float, float]:
        """Loss of each member and accuracy of their mean, on comparisons that they are held out of; NaN where
        there are none."""
        totals = torch.zeros(4, dtype=torch.float64)  # losses, their number, right, their number
        for rows in data.all():
            obs, actions, ended, weights, careless, _ = data.rows(rows)
            held_out = data.held_out[:, torch.from_numpy(rows)]  # [M, n]
            decided = (weights.max(-1).values > weights.mean(-1) + 1e-6) & held_out.any(0)
            held_out, of = held_out.sort(dim=1, descending=True)
            most = int(held_out.sum(1).max())
            held_out, of = held_out[:, :most], of[:, :most]
            returns = self.returns(obs, actions, ended, of=of)
            at_random = self.careless if careless is None else careless[of]
            losses = bradley_terry(returns, weights[of], careless=at_random)[held_out]
            sums = torch.zeros_like(weights).index_add_(0, of[held_out], returns[held_out])
            right = (sums.argmax(-1) == weights.argmax(-1))[decided]
            totals += torch.stack([losses.sum(), held_out.sum(), right.sum(), decided.sum()])
        loss, losses, right, decided = totals.tolist()
        return loss / losses if losses else math.nan, right / decided if decided else math.nan

    def _adapt(self, loss: float, held_out: float) -> None:
        if not np.isfinite(held_out):
            return
        factor = 2.0 if held_out > RATIO[1] * loss else 0.5 if held_out < RATIO[0] * loss else 1.0
        self.optimiser.param_groups[0]["weight_decay"] = float(np.clip(factor * self.decay, *DECAYS))

    @torch.no_grad()
    def _normalise(self, data: Fitting) -> None:
        if data.compared.ended is not None and not self.ends_known.all():
            apart = np.ptp(data.compared.ended.sum(-1), axis=-1) > 0  # [Q]
            known = (data.counts[:, torch.from_numpy(apart[data.compared.rows])] > 0).sum(1) >= ENDS
            self.ends_known.logical_or_(known)
        if not self.normalise:
            return
        sums, squares, count = 0.0, 0.0, 0
        for rows in data.all():
            obs, actions, ended, *_ = data.rows(rows)
            flat = tree.map_structure(lambda x: x.flatten(0, 2), obs)
            rewards = self(flat, actions.flatten(0, 2)).double()
            if ended is not None:
                rewards = rewards[:, ~ended.flatten()]
            sums, squares = sums + rewards.sum(-1), squares + rewards.square().sum(-1)
            count += rewards.shape[-1]
        mean = torch.as_tensor(sums) / count
        std = (torch.as_tensor(squares) / count - mean.square()).clamp(min=0).sqrt()
        self.offset.copy_(mean[:, None])
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std))[:, None])

    # Checkpoints

    def get_state(self) -> dict[str, Any]:
        return {"weights": self.state_dict(), "optimiser": self.optimiser.state_dict()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])


class Fitting:
    """Comparisons part by part, which may lie on the disk; how often each member draws them, and what is held
    out of it, which is what it does not draw."""

    def __init__(self, compared: Compared, members: int, seed: int, *, held_out: bool = False) -> None:
        """held_out: all of them, of all members."""
        self.compared = compared
        counts = drawn(compared.rows, members, seed)
        counts[~counts.any(axis=1)] = 1  # all of a handful are learnt from
        self.counts = torch.from_numpy(counts.astype(np.float32))  # [M, N]
        self.held_out = torch.from_numpy((counts == 0) | held_out)  # [M, N]
        self._steps = int(np.prod(compared.actions.shape[1:3]))  # of one comparison

    def rows(self, rows: Array) -> tuple[Tree, Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
        """obs and actions [n, K, L, ...], ended [n, K, L], weights [n, K], careless [n] and counts [M, n] of
        these comparisons."""
        one = self.compared
        questions = one.rows[rows]
        obs = tree.map_structure(lambda x: torch.from_numpy(read(x, questions)), one.obs)
        actions = torch.from_numpy(read(one.actions, questions))
        ended = None if one.ended is None else torch.from_numpy(read(one.ended, questions))
        careless = None if one.careless is None else torch.from_numpy(one.careless[rows])
        weights, counts = torch.from_numpy(one.weights[rows]), self.counts[:, torch.from_numpy(rows)]
        return obs, actions, ended, weights, careless, counts

    def minibatches(self, size: int, rng: np.random.Generator) -> Iterator[Array]:
        rows = rng.permutation(len(self.compared))
        yield from np.array_split(rows, max(1, round(len(rows) / size)))

    def all(self) -> Iterator[Array]:
        rows = np.arange(len(self.compared))
        size = max(1, rows_at_once(self.compared.obs, leading=3) // self._steps)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def read(array: Array, rows: Array) -> Array:
    """Rows of an array; of a mapped file, what comes with them does not stay in memory."""
    if not isinstance(array, np.memmap):
        return array[rows]
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), MAPPED):
        some = slice(start, start + MAPPED)
        out[some] = array[rows[some]]
        array.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]
    return out


def rows_at_once(obs: Tree, *, leading: int) -> int:
    """How many observations to put through a network at a time; `obs` has so many leading axes."""
    numbers = sum(math.prod(leaf.shape[leading:]) for leaf in tree.flatten(obs))
    return max(1, min(ROWS, NUMBERS // max(1, numbers)))


def drawn(numbers: Array, members: int, seed: int) -> Array:
    """How often each member draws the comparisons of these numbers [M, N]; it comes from the number, the
    member and the seed alone."""
    streams = np.arange(1, members + 1, dtype=np.uint64)[:, None]
    bits = hashed(hashed(hashed(np.array([seed], np.uint64)) + streams) + numbers.astype(np.uint64))
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(POISSON, uniform, side="right")


def hashed(x: Array) -> Array:
    """Evenly spread bits of uint64 numbers (SplitMix64; Steele et al., 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
