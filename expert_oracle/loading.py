"""Finding an expert by one word, and checking what it answers.

    spec = OracleSpec("grpc://host:50051")                  # small and picklable: send it, build there
    oracle = checked(spec.build(), observation_space, action_space, spec.oracle)
    actions = oracle.act(obs)                               # right shape, dtype and range, or OracleError

The word is `grpc://HOST:PORT[,HOST:PORT]`, `KIND:REST` with a kind of `KINDS`, `package.module:attribute` or
`path/file.py:attribute`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import tree

from expert_oracle.checkpoint import SHIPPED
from expert_oracle.scripted import SCRIPTED
from tutelage import codec, plugins
from tutelage.errors import DEBUG, ConfigError, OracleError, TutelageError, show_traceback
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.protocols import Oracle, Supervisor
from tutelage.types import Array, EnvRecipe, Tree

GRPC = "grpc://"
ARGUMENT = "expert.arguments."
"""Before an argument's name in the configuration of a run, and so in errors."""

KINDS: Mapping[str, str] = {  # the first part of a word -> who makes an expert of the rest and the arguments
    "scripted": "expert_oracle.scripted:scripted",
    "checkpoint": "expert_oracle.checkpoint:load_checkpoint",
    "sb3": "expert_oracle.sb3:load_sb3",
    "rllib": "expert_oracle.rllib:load_rllib",
    "torchscript": "expert_oracle.exported:load_torchscript",
    "onnx": "expert_oracle.exported:load_onnx",
    "noisy": "expert_oracle.wrappers:Noisy",
    "slow": "expert_oracle.wrappers:Slow",
    "watching": "expert_oracle.wrappers:Watching",
    "human": "expert_oracle.human:HumanOracle",
}
WRAPPERS = ("noisy", "slow", "watching")
"""Kinds of which the rest is the word of another expert."""
ENSEMBLE = "expert_oracle.wrappers:Ensemble"
FILES = ("sb3", "torchscript", "onnx")
"""Kinds of which the rest is a file."""
PLANNER = "planner:cem"
NAMED: Mapping[str, str] = {  # whole words -> who makes them
    PLANNER: "expert_oracle.planner:CEM",
    "human": "expert_oracle.human:people",
}


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Whatever code that is not ours raises, as OracleError: `what`, and the exception's type and text."""
    try:
        yield
    except TutelageError:
        raise
    except Exception as error:
        show_traceback()
        text = " ".join(str(error).split())
        where = _line_of_theirs(error) or f"; {DEBUG}=1 shows the traceback"
        raise OracleError(f"{what}: {type(error).__name__}{': ' * bool(text)}{text}{where}") from error


PLACE: ContextVar[tuple[int, int]] = ContextVar("PLACE", default=(0, 0))
"""Of the experts that are being made: the seed of the run, and the number of the rollout actor."""
LEAVING: ContextVar[threading.Event | None] = ContextVar("LEAVING", default=None)
"""Set once those for whom experts are being made do not wait for people any longer."""


@contextlib.contextmanager
def made_for(run_seed: int, actor: int, leaving: threading.Event | None = None) -> Iterator[None]:
    """Experts that are made within err by other dice than those of other runs and actors, and stop waiting
    for people once `leaving` is set."""
    place, leave = PLACE.set((run_seed % 2**64, actor)), LEAVING.set(leaving)
    try:
        yield
    finally:
        PLACE.reset(place)
        LEAVING.reset(leave)


@contextlib.contextmanager
def arguments_by_name() -> Iterator[None]:
    """Errors say NAME=VALUE, as one writes for a command, where a run has `expert.arguments.NAME=VALUE`."""
    try:
        yield
    except TutelageError as error:
        error.args = (str(error).replace(ARGUMENT, ""),)
        raise


def _line_of_theirs(error: Exception) -> str:
    """Where it was raised: the last line that is neither ours nor a library's; empty where there is none."""
    ours = tuple(
        str(Path(__file__).parents[1] / package) for package in ("expert_oracle", "services", "tutelage")
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not (frame.filename.startswith((*ours, "<")) or "site-packages" in frame.filename):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


@runtime_checkable
class SelfDescribing(Protocol):
    """An oracle that knows who it is and what spaces it is for."""

    def describe(self) -> pb.DescribeReply: ...


@dataclass(frozen=True)
class FunctionOracle:
    """A function from observations [N, ...] to actions [N, ...] as an `Oracle`."""

    function: Callable[[Tree], Tree]

    def act(self, obs: Tree) -> Tree:
        return self.function(obs)


@dataclass(frozen=True)
class OracleSpec:
    """How to make an expert. Made by: the config. Eaten by: runners, the trainer, the expert service."""

    oracle: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inside(self) -> str:
        """The word without the wrappers before it."""
        kind, _, rest = self.oracle.partition(":")
        return OracleSpec(rest).inside if kind in WRAPPERS else self.oracle

    @property
    def asks_people(self) -> bool:
        """Whether each answer takes somebody's time: then nothing is asked that is not learned from."""
        if self.inside != ENSEMBLE:
            return self.inside.partition(":")[0] == "human"
        members = self.arguments.get("oracles", ())
        words = [one if isinstance(one, str) else one.get("oracle", "") for one in members]
        return any(OracleSpec(word).asks_people for word in words)

    def build(self, env: EnvRecipe | None = None) -> Oracle:
        """The expert. ConfigError for a word or an argument that is not known, OracleError where it fails.

        One that looks ahead does so in `env`, unless its arguments name another.
        """
        if env is not None and self.oracle.endswith(PLANNER) and "env" not in self.arguments:
            return replace(
                self, arguments={**self.arguments, "env": env.id, "env_kwargs": env.kwargs}
            ).build()
        if self.oracle.startswith(GRPC):
            return self._remote()
        if self.oracle in NAMED:
            return self._ours(NAMED[self.oracle])
        check_word(self.oracle)
        scheme, _, rest = self.oracle.partition(":")
        return self._ours(KINDS[scheme], rest) if scheme in KINDS else self._plugin()

    def _ours(self, maker: str, *rest: str) -> Oracle:
        """An expert of this package; its module is imported only here, and torch or the like with it."""
        with one_line(f"expert {self.oracle} cannot be made"):
            make = plugins.load(maker)
            self._check_arguments(make, *rest)
            return make(*rest, **self.arguments)

    def _remote(self) -> Oracle:
        from expert_oracle.remote import RemoteOracle  # gRPC only where it is used

        addresses = self.oracle.removeprefix(GRPC).split(",")
        own = "; arguments of the expert itself are given to `tutelage oracle serve`"
        self._check_arguments(RemoteOracle, addresses, advice=own)
        with one_line(f"expert {self.oracle} cannot be made"):
            return RemoteOracle(addresses, **self.arguments)

    def _plugin(self) -> Oracle:
        try:
            with one_line(f"expert {self.oracle} cannot be loaded"):
                value = plugins.load(self.oracle)
        except plugins.NoModule as error:
            raise ConfigError(f"expert {self.oracle!r}: {_similar(self.oracle) or error}") from None
        except ConfigError as error:
            raise ConfigError(f"expert {self.oracle!r}: {error}") from None
        oracle = self._make(value)
        if isinstance(oracle, Oracle):
            return oracle
        raise ConfigError(
            f"expert {self.oracle} is of type {type(oracle).__name__}, without `act(obs)`; "
            "give a class with that method, or a function of the observations"
        )

    def _make(self, value: Any) -> Any:
        """An instance of a class, an oracle as it is, a function wrapped."""
        if inspect.isclass(value):
            self._check_arguments(value)
            with one_line(f"expert {self.oracle} cannot be made"):
                return value(**self.arguments)
        if callable(value) and not isinstance(value, Oracle):
            self._check_arguments(value, "the observations")
            return FunctionOracle(functools.partial(value, **self.arguments))
        self._refuse_arguments()
        return value

    def _refuse_arguments(self) -> None:
        if self.arguments:
            raise ConfigError(f"expert {self.oracle} takes no arguments, got {', '.join(self.arguments)}")

    def _check_arguments(self, function: Callable[..., Any], *positional: Any, advice: str = "") -> None:
        """Raise ConfigError, naming the argument, unless `function` can be called with the arguments."""
        signature = inspect.signature(function)
        names = list(signature.parameters)[len(positional) :]
        if positional and not names:
            self._refuse_arguments()
        try:
            signature.bind(*positional, **self.arguments)
        except TypeError as error:
            unknown = [name for name in self.arguments if name not in names]
            missing = re.search("'(.*)'", str(error))
            known = plugins.did_you_mean(unknown[0], names) + advice if unknown else ""
            hint = known or f"; set {ARGUMENT}{missing[1] if missing else 'NAME'}=VALUE"
            raise ConfigError(f"expert {self.oracle}: {error}{hint}") from None


def check_word(word: str) -> None:
    """Raise ConfigError for a word that is none, or names a file that is not there; it imports nothing."""
    scheme, separator, rest = word.partition(":")
    if word.startswith(GRPC) or word in NAMED:
        return
    if scheme not in KINDS and (address := re.fullmatch(r"(?:\w+:/*)?([^:/\s]+:\d+)", word)):
        raise ConfigError(f"{word!r} is no expert; did you mean '{GRPC}{address[1]}'?")
    if not separator and word.endswith(".py") and Path(word).expanduser().is_file():
        raise ConfigError(f"expert {word!r}: which function or class of that file? Say {word}:NAME")
    if not separator:
        raise ConfigError(f"{word!r} is no expert{_nearest(word)}")
    if scheme in FILES and not Path(rest).expanduser().is_file():
        raise ConfigError(f"expert {word!r}: no such file: {Path(rest).expanduser().resolve()}")
    path = Path(word.rpartition(":")[0]).expanduser()
    if scheme not in KINDS and path.suffix == ".py" and not path.is_file():
        raise ConfigError(f"expert {word!r}: no such file: {path.resolve()}")


def known_words() -> list[str]:
    """The experts that come with the package."""
    shipped = sorted(f"checkpoint:{file.stem}" for file in SHIPPED.glob("*.safetensors"))
    return [*shipped, *(f"scripted:{name}" for name in SCRIPTED)]


def _nearest(word: str) -> str:
    """The end of an error message about a word without a scheme."""
    words = known_words()
    same = [known for known in words if known.partition(":")[2] == word]
    if same:
        return f"; did you mean {' or '.join(map(repr, same))}?"
    others = "grpc://HOST:PORT, sb3:FILE, package.module:attribute, file.py:attribute"
    return f"{plugins.did_you_mean(word, words)}; or of the form {others}"


def _similar(word: str) -> str:
    """What is wrong with a word of an unknown kind that is no module either; empty where none is near."""
    kind, _, rest = word.partition(":")
    if siblings := [name for name in NAMED if name.startswith(f"{kind}:")]:
        return f"there is no such {kind}; known: {', '.join(siblings)}"
    near = plugins.did_you_mean(word, [*known_words(), *(f"{known}:{rest}" for known in KINDS), *NAMED])
    return f"no module named {kind!r}{near}" if "did you mean" in near else ""


def described(oracle: Oracle, name: str) -> pb.DescribeReply | None:
    """What an expert says of itself; None if it says nothing. Raises OracleError where it fails."""
    if not isinstance(oracle, SelfDescribing):
        return None
    with one_line(f"expert {name} cannot describe itself"):
        said = oracle.describe()
    return said if isinstance(said, pb.DescribeReply) else None


def checked(oracle: Oracle, observation_space: Any, action_space: Any, name: str) -> CheckedOracle:
    """`oracle`, with its answers checked; raises OracleError if it says that it is for other spaces."""
    if (description := described(oracle, name)) is not None:
        _check_space(description, description.action_space, action_space, "action", name)
        _check_space(description, description.observation_space, observation_space, "observation", name)
    return CheckedOracle(oracle, action_space, name)


def _check_space(
    description: pb.DescribeReply,
    expert: pb.Space,
    environment: Any,
    what: Literal["action", "observation"],
    name: str,
) -> None:
    if expert.WhichOneof("kind") is None:
        return  # it does not know
    difference = codec.space_difference(expert, codec.describe_space(environment), what)
    if difference:
        known_for = f" (it is for {description.env_id})" if description.env_id else ""
        raise OracleError(f"{name}: {difference}{known_for}")


@dataclass(frozen=True)
class CheckedOracle:
    """An `Oracle` whose answers fit `action_space`: cast to its dtype, Box actions clipped to its bounds."""

    oracle: Oracle
    action_space: Any  # gymnasium's
    name: str

    def act(self, obs: Tree) -> Tree:
        """Actions [N, ...] of the action space; raises OracleError, in one line, for anything else."""
        who, N = f"expert {self.name}", len(tree.flatten(obs)[0])
        with one_line(f"{who} failed for {N} state{'s' * (N != 1)}"):
            actions = self.oracle.act(obs)
        if actions is None:
            raise OracleError(f"{who} returned None, expected actions; is a `return` missing?")
        return _fit(actions, self.action_space, N, who)

    def takes_over(self, obs: Tree, actions: Array, began: Array) -> Array:
        """Where the expert wants to act [N] bool; raises OracleError for one that does not watch."""
        if not isinstance(self.oracle, Supervisor):
            raise OracleError(
                f"expert {self.name} does not take over by itself; watching:{self.name} does, for experiments"
            )
        who, N = f"expert {self.name}", len(began)
        with one_line(f"{who} failed to watch {N} environments"):
            mask = np.asarray(self.oracle.takes_over(obs, actions, began))
        if mask.shape != (N,) or mask.dtype != np.bool_:
            raise OracleError(f"{who} takes over by {mask.dtype} {mask.shape}, expected bool {(N,)}")
        return mask


def _fit(actions: Tree, space: Any, N: int, who: str) -> Tree:
    match type(space).__name__:
        case "Dict":
            _check_keys(actions, set(space.spaces), dict, who)
            return {k: _fit(actions[k], part, N, f"{who}, part {k!r},") for k, part in space.spaces.items()}
        case "Tuple":
            _check_keys(actions, set(range(len(space.spaces))), (tuple, list), who)
            parts = enumerate(space.spaces)
            return tuple(_fit(actions[i], part, N, f"{who}, part {i},") for i, part in parts)
    try:
        array = np.asarray(actions)
    except ValueError as error:
        raise OracleError(f"{who} returned something that is no array: {error}") from None
    return _fit_array(array, space, N, who)


def _check_keys(actions: Tree, keys: set[Any], kind: Any, who: str) -> None:
    if not isinstance(actions, kind):
        raise OracleError(f"{who} returned {type(actions).__name__}, expected parts {sorted(keys)}")
    got = set(actions) if isinstance(actions, dict) else set(range(len(actions)))
    if got != keys:
        raise OracleError(f"{who} returned parts {sorted(got)}, expected {sorted(keys)}")


def _fit_array(actions: Array, space: Any, N: int, who: str) -> Array:
    expected = (N, *space.shape)
    if actions.shape != expected:
        every = " ".join(str(space).split())
        raise OracleError(f"{who} returned shape {actions.shape}, expected {expected}: {N} of {every}")
    box = type(space).__name__ == "Box"
    if actions.dtype.kind not in ("fiu" if box else "iub"):
        wanted = "numbers" if box else "integers"
        raise OracleError(f"{who} returned {actions.dtype}, expected {wanted} for {space}")
    if box:
        _check_rows(np.isfinite(actions), "NaN" if np.isnan(actions).any() else "infinity", who)
        return np.clip(actions, space.low, space.high).astype(space.dtype)
    low, high = _integer_range(space)
    _check_rows((actions >= low) & (actions < high), f"actions outside {space}", who)
    return actions.astype(space.dtype)


def _integer_range(space: Any) -> tuple[Any, Any]:
    """The first integer and one past the last."""
    match type(space).__name__:
        case "Discrete":
            return space.start, space.start + space.n
        case "MultiDiscrete":
            return space.start, space.start + space.nvec
        case "MultiBinary":
            return 0, 2
    raise OracleError(f"no expert can act in {space}; supported: Box, Discrete, MultiDiscrete, MultiBinary")


def _check_rows(good: Array, fault: str, who: str) -> None:
    bad = int((~good.all(axis=tuple(range(1, good.ndim)))).sum())
    if bad:
        raise OracleError(f"{who} returned {fault} for {bad} of {len(good)} states")
