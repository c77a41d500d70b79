"""Experts made of experts, for experiments: several that agree, one that errs, one that takes its time.

    expert_oracle.wrappers:Ensemble     oracles=[checkpoint:a, checkpoint:b]
    noisy:WORD                          std=0.1  or  p=0.05
    slow:WORD                           seconds=0.05
    watching:WORD                       tolerance=0.1 patience=5

Arguments that a wrapper does not know go to the expert inside. Randomness comes from `seed`, the run's seed
and the number of the actor, or of the service's process, in which the expert is: no two err alike, and the
same run gives the same again.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import tree

from expert_oracle.loading import PLACE, OracleSpec, SelfDescribing, described
from tutelage.errors import ConfigError, OracleError
from tutelage.plugins import did_you_mean
from tutelage.policy import difference, half_range
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.protocols import Oracle
from tutelage.types import Array, Tree

Delay = Literal["constant", "exponential", "lognormal"]


def _dice(seed: int) -> np.random.Generator:
    """Of this run, this actor and this process of a service, which multiprocessing counts in its name."""
    process = multiprocessing.current_process().name.rpartition("-")[2]
    return np.random.default_rng([seed, *PLACE.get(), int(process) if process.isdigit() else 0])


def agreed(actions: Sequence[Array], *, discrete: bool) -> Array:
    """What several experts [M] of actions [N, ...] say together: the mean, of integers the most frequent.

    Where several are as frequent, the one that an earlier expert said.
    """
    stacked = np.stack([np.asarray(part) for part in actions])  # [M, N, ...]
    if not discrete:
        return stacked.mean(0)
    votes = (stacked[:, None] == stacked[None]).sum(0)  # [M, N, ...] how many say the same
    return np.take_along_axis(stacked, votes.argmax(0)[None], axis=0)[0]


def _is_discrete(actions: Array) -> bool:
    return np.asarray(actions).dtype.kind in "iub"


class Ensemble:
    """Several experts as one: the mean of their actions, of Discrete ones the majority. An `Oracle`.

    oracles: words, or {oracle: word, arguments: {...}} for one with arguments.
    """

    def __init__(self, oracles: Sequence[str | Mapping[str, Any]]) -> None:
        if isinstance(oracles, str) or not oracles:
            raise ConfigError("Ensemble: oracles is a list of experts: expert.arguments.oracles=[WORD,WORD]")
        self.members = [_member(member) for member in oracles]
        self._words = [member if isinstance(member, str) else member["oracle"] for member in oracles]

    def act(self, obs: Tree) -> Tree:
        answers = [member.act(obs) for member in self.members]
        try:
            return tree.map_structure(self._agree, *answers)
        except ValueError as error:
            raise OracleError(f"Ensemble: {', '.join(self._words)} do not fit together: {error}") from None

    def _agree(self, *actions: Array) -> Array:
        return agreed(actions, discrete=all(map(_is_discrete, actions)))

    def describe(self) -> pb.DescribeReply:
        return _description(self.members[0], f"ensemble of {', '.join(self._words)}")


def _member(member: str | Mapping[str, Any]) -> Oracle:
    if isinstance(member, str):
        return OracleSpec(member).build()
    if set(member) - {"oracle", "arguments"} or "oracle" not in member:
        raise ConfigError(f"Ensemble: a member is a word or {{oracle: WORD, arguments: {{}}}}, got {member}")
    return OracleSpec(member["oracle"], member.get("arguments") or {}).build()


class Noisy:
    """An expert that errs: with Gaussian noise of `std`, and with probability `p` at random. An `Oracle`.

    std: standard deviation in the actions' unit, for a Box; p: how often an action is drawn uniformly from
    the action space, which the expert must describe; seed: of the noise, which goes on from call to call,
    beside the place where it is made (above).
    """

    def __init__(
        self, oracle: str, *, std: float = 0.0, p: float = 0.0, seed: int = 0, **arguments: Any
    ) -> None:
        if std < 0 or not 0 <= p <= 1:
            raise ConfigError(f"noisy: std={std} must be 0 or more, p={p} between 0 and 1")
        self.oracle, self.name = OracleSpec(oracle, arguments).build(), oracle
        self.std, self.p = std, p
        self._rng = _dice(seed)
        self._space = described_action_space(self.oracle, oracle) if p else None

    def act(self, obs: Tree) -> Array:
        actions = np.asarray(self.oracle.act(obs))
        if self.std:
            if _is_discrete(actions):
                raise OracleError(f"noisy: {self.name} answers integers, for which there is p, not std")
            actions = actions + self.std * self._rng.standard_normal(actions.shape)
        if self._space is None:
            return actions
        at_random = self._rng.random(len(actions)) < self.p
        at_random = at_random.reshape(-1, *[1] * (actions.ndim - 1))
        return np.where(at_random, self._random(actions.shape), actions)

    def _random(self, shape: tuple[int, ...]) -> Array:
        low, high = self._space or (0, 1)
        if isinstance(high, int):
            return self._rng.integers(low, high, shape)
        return self._rng.uniform(low, high, shape)

    def describe(self) -> pb.DescribeReply:
        return _description(self.oracle, f"noisy:{self.name}")


def described_action_space(oracle: Oracle, name: str) -> tuple[Any, Any]:
    """The bounds that an expert gives for its actions: arrays of a Box, integers [low, high) if Discrete."""
    from tutelage import codec

    said = described(oracle, name)
    space = None if said is None else said.action_space
    if space is not None and space.WhichOneof("kind") == "discrete":
        return space.discrete.start, space.discrete.start + space.discrete.n
    if space is not None and space.box.HasField("low") and space.box.HasField("high"):
        low, high = (
            codec.decode_tensor(bound).astype(np.float64) for bound in (space.box.low, space.box.high)
        )
        if np.isfinite([low, high]).all():
            return low, high
    raise ConfigError(
        f"noisy: p needs an expert that describes a Discrete or bounded Box space; {name} does not"
    )


class Slow:
    """An expert that takes `seconds` more for each call, on average. An `Oracle`.

    distribution: constant, exponential, or lognormal with a tail like that of a busy network (sigma 1).
    """

    def __init__(
        self,
        oracle: str,
        *,
        seconds: float = 0.05,
        distribution: Delay = "constant",
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        if seconds < 0 or distribution not in get_args(Delay):
            near = did_you_mean(distribution, get_args(Delay))
            raise ConfigError(f"slow: seconds={seconds} or distribution={distribution!r} is wrong{near}")
        self.oracle, self.name = OracleSpec(oracle, arguments).build(), oracle
        self.seconds, self.distribution = seconds, distribution
        self._rng = _dice(seed)

    def act(self, obs: Tree) -> Tree:
        time.sleep(self.seconds * self._factor())
        return self.oracle.act(obs)

    def _factor(self) -> float:
        """A draw with mean 1."""
        match self.distribution:
            case "exponential":
                return self._rng.exponential()
            case "lognormal":
                return self._rng.lognormal(-0.5, 1.0)
        return 1.0

    def describe(self) -> pb.DescribeReply:
        return _description(self.oracle, f"slow:{self.name}")


class Watching:
    """An expert that takes over as a person would who watches: when the novice has for `patience` steps been
    about to do something that differs by more than `tolerance`, until for as many steps it has not.
    A `Supervisor`.

    tolerance: mean squared difference of an action's components in half ranges of a Box; of other spaces,
    which the expert need not describe, the share of components that differ.
    """

    def __init__(self, oracle: str, *, tolerance: float = 0.1, patience: int = 5, **arguments: Any) -> None:
        if tolerance < 0 or patience < 1:
            raise ConfigError(
                f"watching: tolerance={tolerance} must be 0 or more, patience={patience} 1 or more"
            )
        self.oracle, self.name = OracleSpec(oracle, arguments).build(), oracle
        self.tolerance, self.patience = tolerance, patience
        self._unit = _described_unit(self.oracle, oracle)
        self._by_expert = np.zeros(0, bool)  # [N]
        self._steps = np.zeros(0, int)  # [N] for how many the novice has been on the other side

    def act(self, obs: Tree) -> Tree:
        return self.oracle.act(obs)

    def takes_over(self, obs: Tree, actions: Array, began: Array) -> Array:
        if len(began) != len(self._by_expert):
            self._by_expert, self._steps = np.zeros(len(began), bool), np.zeros(len(began), int)
        self._by_expert = self._by_expert & ~began
        own = np.asarray(self.oracle.act(obs))
        far = difference(actions, own, None if _is_discrete(own) else self._unit) > self.tolerance
        self._steps = np.where(far != self._by_expert, np.where(began, 0, self._steps) + 1, 0)
        turns = self._steps >= self.patience
        self._by_expert = self._by_expert ^ turns
        self._steps[turns] = 0
        return self._by_expert.copy()

    def describe(self) -> pb.DescribeReply:
        return _description(self.oracle, f"watching:{self.name}")


def _described_unit(oracle: Oracle, name: str) -> Array:
    """Half the width of the Box of actions that an expert describes; 1 where it describes none."""
    from tutelage import codec

    said = described(oracle, name)
    box = None if said is None else said.action_space.box
    if box is None or not (box.HasField("low") and box.HasField("high")):
        return np.ones(())
    return half_range(codec.decode_tensor(box.low), codec.decode_tensor(box.high))


def _description(oracle: Oracle, name: str) -> pb.DescribeReply:
    """What the expert inside says of itself, under another name."""
    reply = pb.DescribeReply()
    if isinstance(oracle, SelfDescribing):
        reply.CopyFrom(oracle.describe())
    reply.name = name
    return reply
