"""What crosses a process: frozen records of numpy arrays, shapes beside the fields, checked when made.

Axes: T time, B environments of one runner, N states, L segment length, K options, E episodes. An observation
or action may be a tree (dict or tuple) of arrays; every leaf then has the leading axes given here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tree

Tree = Any
"""A numpy array, or a dict, tuple or list of trees."""

Array = npt.NDArray[Any]


def check_leading(name: str, value: Tree, *shape: int) -> None:
    """Raise ValueError unless every leaf of `value` is an array whose shape starts with `shape`."""
    for path, leaf in tree.flatten_with_path(value):
        where = ".".join([name, *map(str, path)])
        if not isinstance(leaf, np.ndarray):
            raise ValueError(f"{where}: expected a numpy array, got {type(leaf).__name__}")
        if leaf.shape[: len(shape)] != shape:
            raise ValueError(f"{where}: expected leading axes {shape}, got shape {leaf.shape}")


@dataclass(frozen=True)
class EnvRecipe:
    """How to make one environment: small, picklable. Made by: config. Eaten by: runners, replay, clips."""

    id: str  # a registered gymnasium id, "module:Id-v0" imports the module first
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    backend: Literal["sync", "async", "vector_entry_point", "envpool"] = "sync"
    versions: Mapping[str, str] = field(default_factory=dict)  # of gymnasium and of the simulator


@dataclass(frozen=True)
class Provenance:
    """Where a rollout comes from. Made by: runner. Eaten by: dataset, query sampler."""

    runner: int  # worker index; 0 is the local runner
    version: int  # of the policy that acted
    beta: float  # probability that the expert acted
    round: int
    recipe: EnvRecipe
    watched: bool = False  # the expert saw every step, also those in which it was not asked


@dataclass(frozen=True)
class Episodes:
    """Stretches of episodes inside one rollout, one entry each. A stretch that is cut by the end of the
    rollout has `done` False and goes on in the next rollout of the same runner."""

    slot: Array  # [E] int32, column of the rollout
    start: Array  # [E] int32, first row in this rollout
    end: Array  # [E] int32, one past the last row in this rollout
    seed: Array  # [E] int64, env.reset(seed) that began the episode; -1: not seeded
    offset: Array  # [E] int32, steps of the episode that lie in earlier rollouts
    returns: Array  # [E] float64, undiscounted return of the whole episode up to `end`
    done: Array  # [E] bool, the episode ended at `end`
    reproducible: bool  # seed and actions replay the episode exactly

    def __post_init__(self) -> None:
        for name in ("slot", "start", "end", "seed", "offset", "returns", "done"):
            check_leading(name, getattr(self, name), len(self.slot))

    def __len__(self) -> int:
        return len(self.slot)

    @property
    def length(self) -> Array:  # [E] steps of the whole episode up to `end`
        return self.offset + self.end - self.start


@dataclass(frozen=True)
class Pictures:
    """What the first C environments of a rollout looked like, each picture a JPEG (an object of type bytes).
    Made by: runner. Eaten by: query sampler."""

    obs: Array  # [T+1, C] of `obs` of the rollout
    final_obs: Array  # [F] of its `final_obs`; b"" for environments that are not drawn

    @property
    def drawn(self) -> int:  # C
        return self.obs.shape[1]


@dataclass(frozen=True)
class Rollout:
    """Experience of B environments over T steps. Made by: runner. Eaten by: learner, dataset, query sampler.

    `obs[t + 1]` is the observation to act on at t + 1: after an end it is the first of the next episode, and
    the observation in which the episode ended is in `final_obs`. So the successor of row (t, b) is
    `final_obs[i]` where (final_t[i], final_b[i]) == (t, b), else `obs[t + 1, b]`.
    """

    obs: Tree  # [T+1, B, ...]
    actions: Tree  # [T, B, ...] as chosen; the environment got Box actions clipped to its action space
    rewards: Array  # [T, B] float32
    terminated: Array  # [T, B] bool, the task ended
    truncated: Array  # [T, B] bool, a time limit cut the episode
    final_t: Array  # [F] int32
    final_b: Array  # [F] int32
    final_obs: Tree  # [F, ...]
    episodes: Episodes
    provenance: Provenance
    expert_actions: Tree | None = None  # [T, B, ...] what the expert would do in obs[t]; None: not asked
    by_expert: Array | None = None  # [T, B] bool, the executed action is the expert's; None: never
    asked: Array | None = None  # [T, B] bool, where `expert_actions` hold an answer; None: everywhere
    valid: Array | None = None  # [T, B] bool, False where a vector env spent the row on a reset; None: all
    logp: Array | None = None  # [T, B] float32, of `actions` under the policy that drew them; None: not drawn
    pictures: Pictures | None = None  # of some environments; None: not kept, episodes are replayed

    def __post_init__(self) -> None:
        T, B = self.rewards.shape
        check_leading("obs", self.obs, T + 1, B)
        check_leading("final_obs", self.final_obs, len(self.final_t))
        check_leading("final_b", self.final_b, len(self.final_t))
        optional = ("expert_actions", "by_expert", "asked", "valid", "logp")
        for name in ("actions", "terminated", "truncated", *optional):
            value = getattr(self, name)
            if value is not None:
                check_leading(name, value, T, B)
        if self.pictures is not None:
            check_leading("pictures.obs", self.pictures.obs, T + 1, min(self.pictures.drawn, B))
            check_leading("pictures.final_obs", self.pictures.final_obs, len(self.final_t))

    @property
    def shape(self) -> tuple[int, int]:  # (T, B)
        return self.rewards.shape

    def env_steps(self) -> int:
        """Rows that are real environment steps. RLlib sums this over the runners."""
        return self.rewards.size if self.valid is None else int(self.valid.sum())

    agent_steps = env_steps  # RLlib's name for the same thing with one agent

    def finished_returns(self) -> Array:
        """Undiscounted returns [E] of the episodes that ended in this rollout."""
        return self.episodes.returns[self.episodes.done]

    def labelled(self) -> Array:
        """Rows [T, B] bool that have an expert's answer and are real environment steps."""
        everywhere = np.full(self.shape, self.expert_actions is not None)
        for mask in (self.asked, self.valid):
            everywhere = everywhere if mask is None else everywhere & mask
        return everywhere

    def labels(self) -> int:
        """Rows for which an expert was asked."""
        return int(self.labelled().sum())

    def attended_steps(self) -> int:
        """Steps for which the expert had to be there: those it was asked about, or watched."""
        return self.env_steps() if self.provenance.watched else self.labels()

    def takeovers(self) -> int:
        """How often the expert began to act; a turn that goes on from the rollout before counts again."""
        if self.by_expert is None:
            return 0
        goes_on = self.by_expert[:-1] & ~(self.terminated | self.truncated)[:-1]
        return int((self.by_expert[1:] & ~goes_on).sum() + self.by_expert[0].sum())


@dataclass(frozen=True)
class Segment:
    """A stretch of one episode to be judged. Made by: query sampler. Eaten by: labeler, reward model."""

    obs: Tree  # [L, ...]
    actions: Tree  # [L, ...]
    recipe: EnvRecipe
    seed: int  # of the episode; with `prefix` it replays the segment exactly
    prefix: Tree  # [start, ...] actions from the episode's first step to the segment's first
    rewards: Array | None = None  # [L] the environment's own, hidden from labelers and learner
    played: int | None = None  # steps after which the task had ended, later rows repeat the last; None: all
    pictures: Sequence[bytes] | None = None  # JPEGs [played + 1] as it was played; None: replay it to see it

    def __post_init__(self) -> None:
        length = len(tree.flatten(self.obs)[0])
        check_leading("obs", self.obs, length)
        check_leading("actions", self.actions, length)
        if self.rewards is not None:
            check_leading("rewards", self.rewards, length)
        if self.played is not None and not 1 <= self.played <= length:
            raise ValueError(f"played: expected 1 to {length} steps, got {self.played}")
        if self.pictures is not None and len(self.pictures) != (self.played or length) + 1:
            raise ValueError(
                f"pictures: expected {(self.played or length) + 1}, one before each step and the last, got "
                f"{len(self.pictures)}"
            )

    @property
    def ended(self) -> Array:  # [L] bool, steps that were not played any more
        length = len(tree.flatten(self.actions)[0])
        return np.arange(length) >= (length if self.played is None else self.played)


@dataclass(frozen=True)
class Demonstrations:
    """State-action pairs of somebody who knows. Made by: files, experts, people. Eaten by: dataset."""

    obs: Tree  # [N, ...]
    actions: Tree  # [N, ...]
    source: str  # a file, an oracle's name, a person

    def __post_init__(self) -> None:
        length = len(tree.flatten(self.obs)[0])
        check_leading("obs", self.obs, length)
        check_leading("actions", self.actions, length)

    def __len__(self) -> int:
        return len(tree.flatten(self.obs)[0])


@dataclass(frozen=True)
class Query:
    """A question to whoever knows better. Made by: methods. Eaten by: labelers."""

    id: str
    kind: str  # "comparison", "action", "rating", "text", ...: a file of expert_oracle/feedback
    options: Sequence[Any]  # K segments, texts, or one state
    context: Mapping[str, Any] = field(default_factory=dict)
    priority: float = 0.0  # larger is asked first
    answers_wanted: int = 1


@dataclass(frozen=True)
class Answer:
    """One person's or machine's answer to a query. Made by: labelers. Eaten by: learner, ledger."""

    query_id: str
    value: Array  # weights [K] that sum to 1; or actions; or ratings [L]
    annotator: str
    started_at: float  # seconds since the epoch
    answered_at: float  # seconds since the epoch
    side_shown: tuple[int, ...] = ()  # order in which the options were shown
    cannot_tell: bool = False  # then `value` does not count


@dataclass(frozen=True)
class TakeoverRule:
    """Who acts in each step, by name: a class of `actors.takeover`, and its settings. Made by: methods.
    Eaten by: runners."""

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRequest:
    """What a runner is asked for; weights, β and round travel with it, so that none can be stale or lost.
    Made by: trainer. Eaten by: runners."""

    round: int
    beta: float = 0.0  # probability that the expert acts
    rule: TakeoverRule | None = None  # by which it acts instead; None: by β
    label: bool = False  # ask the expert about every visited state
    wait: bool = True  # return only once every collected rollout has its labels
    version: int = 0  # of the policy in `weights`
    weights: Any = None  # the policy's state, or a Ray reference to it; None: keep what you have


@dataclass(frozen=True)
class Failure:
    """An error that a runner caught, returned in place of a rollout. Made by: runner. Eaten by: trainer."""

    error: str  # one line that names what was wrong
    runner: int

    def env_steps(self) -> int:
        return 0

    agent_steps = env_steps
