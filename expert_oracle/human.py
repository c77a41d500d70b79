"""A person as an expert: states become questions of kind "action", answers become actions.

    human                 people behind a labeler service: the argument `address` says where it is
    human:module:attr     where module:attr is a LabelerClient, or makes one when called

`tutelage train ... expert.oracle=human` without an address starts a labeler for the run. What a labeler
must promise is in `LabelerClient`. A question's id is that of its state, so whoever asks again about a state,
after a timeout or a restart, finds the answer that came late: no answer of a person is lost, and nobody is
asked twice.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tree

from expert_oracle.loading import LEAVING
from expert_oracle.lookahead import pose_for
from expert_oracle.wrappers import agreed
from tutelage import plugins
from tutelage.errors import ConfigError, OracleError, Unreachable
from tutelage.protocols import Oracle
from tutelage.types import Answer, Array, EnvRecipe, Query, Tree

KIND = "action"
SERVICE = "services.labeler.client:LabelerClient"
"""By name: this package does not import the services."""
LOOK_S = 1.0  # how often one that waits for people looks whether it is to stop


@runtime_checkable
class LabelerClient(Protocol):
    """The way to people.

        ids = client.submit(queries)
        answers = client.wait(ids, timeout_s=5.0)

    `submit` hands questions over and gives their ids in order; one that it has under the same id already is
    not put a second time. `wait` gives all answers to these questions that there are, old ones too: as soon
    as each has its `answers_wanted`, at the latest after `timeout_s`. The value of an answer is one action.
    """

    def submit(self, queries: Sequence[Query]) -> Sequence[str]: ...

    def wait(self, ids: Sequence[str], timeout_s: float) -> Sequence[Answer]: ...


class HumanOracle:
    """People behind a labeler, asked for actions. An `Oracle`.

    client: the way to them, or the `module:attr` that is it or makes it
    context: goes with every question, for the page that shows it: the environment's id, what to press
    batch: questions in one `submit`
    timeout_s: how long one `act` waits for all its answers
    answers_wanted: by so many people, who are then averaged; of Discrete actions the majority counts
    otherwise: the word of an expert that acts where nobody answered or could tell; without it that is an
        OracleError with their number
    """

    asks_people = True

    def __init__(
        self,
        client: LabelerClient | str,
        *,
        context: Mapping[str, Any] | None = None,
        batch: int = 256,
        timeout_s: float = 600.0,
        answers_wanted: int = 1,
        priority: float = 0.0,
        otherwise: str | None = None,
    ) -> None:
        if min(batch, answers_wanted) < 1 or timeout_s < 0:
            raise ConfigError(
                f"human: batch={batch} and answers_wanted={answers_wanted} must be 1 or more, "
                f"timeout_s={timeout_s} 0 or more"
            )
        self.client = _client(client) if isinstance(client, str) else client
        self.context = dict(context or {})
        self.batch, self.timeout_s = batch, timeout_s
        self.answers_wanted, self.priority = answers_wanted, priority
        self.otherwise = None if otherwise is None else _expert(otherwise)
        self._leaving = LEAVING.get()

    def act(self, obs: Tree) -> Array:
        """Actions [N, ...] for observations [N, ...], as people answer them."""
        N = len(tree.flatten(obs)[0])
        states = [tree.map_structure(lambda leaf, n=n: np.asarray(leaf)[n], obs) for n in range(N)]
        ids = [self._id(state) for state in states]
        self._submit(dict(zip(ids, states, strict=True)))
        answers = _by_query(self._wait(list(dict.fromkeys(ids))))
        actions = [_action(answers.get(query_id, [])) for query_id in ids]
        return self._complete(actions, obs, sum(query_id in answers for query_id in ids))

    def _id(self, state: Tree) -> str:
        digest = hashlib.sha256(repr(sorted(self.context.items())).encode())
        for path, leaf in tree.flatten_with_path(state):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{path}{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return f"action-{digest.hexdigest()[:32]}"

    def _submit(self, states: Mapping[str, Tree]) -> None:
        queries = [
            Query(query_id, KIND, [state], self.context, self.priority, self.answers_wanted)
            for query_id, state in states.items()
        ]
        for start in range(0, len(queries), self.batch):
            part = queries[start : start + self.batch]
            if list(self.client.submit(part)) != [query.id for query in part]:
                raise OracleError(
                    f"human: the labeler took other questions than the {len(part)} it was given"
                )

    def _wait(self, ids: Sequence[str]) -> list[Answer]:
        """The answers to all of `ids`, asked for in batches within one deadline."""
        deadline, answers = time.monotonic() + self.timeout_s, list[Answer]()
        for start in range(0, len(ids), self.batch):
            answers += self._wait_for(ids[start : start + self.batch], deadline)
        return answers

    def _wait_for(self, ids: Sequence[str], deadline: float) -> Sequence[Answer]:
        """As `client.wait`. Raises OracleError once whoever waits is to stop."""
        while True:
            began = time.monotonic()
            left = max(0.0, deadline - began)
            try:
                answers = self.client.wait(ids, min(left, LOOK_S))
                if left <= LOOK_S or time.monotonic() < began + LOOK_S:
                    return answers
            except Unreachable:
                if left <= LOOK_S:
                    raise
            if self._leaving is not None and self._leaving.is_set():
                raise OracleError("human: the run ends")

    def _complete(self, actions: list[Array | None], obs: Tree, answered: int) -> Array:
        """`actions` with the gaps filled in by the expert for that."""
        gaps = np.array([action is None for action in actions], bool)
        if gaps.any():
            if self.otherwise is None:
                raise OracleError(self._lack(int(gaps.sum()), len(actions), answered))
            filled = self.otherwise.act(tree.map_structure(lambda leaf: np.asarray(leaf)[gaps], obs))
            for n, action in zip(np.flatnonzero(gaps), filled, strict=True):
                actions[n] = action
        arrays = [np.asarray(action) for action in actions]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise OracleError(f"human: answers are of different shapes: {sorted(shapes)}")
        return np.stack(arrays)

    def _lack(self, lacking: int, N: int, answered: int) -> str:
        unsure = lacking - (N - answered)
        return (
            f"human: {lacking} of {N} states have no action: {N - answered} nobody answered in "
            f"{self.timeout_s:g} s, {unsure} nobody could tell; ask again for those that came late, wait "
            "longer (timeout_s), or name an expert for them (otherwise=WORD)"
        )


def people(
    address: str = "",
    *,
    page: str = "",
    context: Mapping[str, Any] | None = None,
    batch: int = 256,
    timeout_s: float = 86_400.0,
    answers_wanted: int = 1,
    priority: float = 0.0,
    otherwise: str | None = None,
    **connection: Any,
) -> HumanOracle:
    """Those behind a labeler service at host:port, who may come and go for a day.

    page: of a labeler that `tutelage train` starts, where people reach it
    connection: settings of `services.labeler.client:LabelerClient`, as `token_file`, `ca`.
    """
    if not address:
        raise ConfigError(
            "human: where are they? Set expert.arguments.address=HOST:PORT, of the gRPC of `tutelage labeler "
            "serve`; only `tutelage train` starts a labeler of its own"
        )
    if page:
        raise ConfigError("human: `page` is for the labeler of a run; the one at `address` has its own")
    connect = plugins.load(SERVICE)
    try:
        inspect.signature(connect).bind(address, **connection)
    except TypeError as error:
        raise ConfigError(f"human: {error}") from None
    return HumanOracle(
        connect(address, **connection),
        context=context,
        batch=batch,
        timeout_s=timeout_s,
        answers_wanted=answers_wanted,
        priority=priority,
        otherwise=otherwise,
    )


def context_of(env: Any, recipe: EnvRecipe) -> dict[str, Any]:
    """What the page has to know of an environment to ask for actions, and to draw its states."""
    space = env.action_space
    if (n := getattr(space, "n", None)) is not None and space.shape == ():
        actions: dict[str, Any] = {"n": int(n), "start": int(space.start)}
    elif getattr(space, "low", None) is not None and len(space.shape) == 1 and space.dtype.kind == "f":
        actions = {"low": space.low.tolist(), "high": space.high.tolist()}
    else:
        raise ConfigError(f"human: people cannot be asked for an action of {space}: Discrete or a flat Box")
    context = {"env": recipe.id.rpartition(":")[2], "space": actions}
    if _can_be_drawn(env):
        context["draw"] = {"id": recipe.id, "kwargs": dict(recipe.kwargs)}
    return context


def _can_be_drawn(env: Any) -> bool:
    """Whether it can be put into a state that was observed, and has pictures."""
    try:
        pose_for(env)
    except ConfigError:
        return False
    return "rgb_array" in env.metadata.get("render_modes", ())


def _by_query(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    by_query: dict[str, list[Answer]] = {}
    for answer in answers:
        by_query.setdefault(answer.query_id, []).append(answer)
    return by_query


def _action(answers: Sequence[Answer]) -> Array | None:
    """What those who could tell agree on; None if there are none."""
    values = [np.asarray(answer.value) for answer in answers if not answer.cannot_tell]
    if not values:
        return None
    try:
        return agreed([value[None] for value in values], discrete=all(v.dtype.kind in "iub" for v in values))[
            0
        ]
    except ValueError:
        shapes = sorted({value.shape for value in values})
        raise OracleError(
            f"human: answers to {answers[0].query_id} are of different shapes: {shapes}"
        ) from None


def _client(word: str) -> LabelerClient:
    """The client that the plug-in `word` is, or makes when called without arguments."""
    value = plugins.load(word)
    client = value() if callable(value) else value
    if not isinstance(client, LabelerClient):
        kind = type(client).__name__
        raise ConfigError(
            f"human: {word} is of type {kind}, without submit(queries) and wait(ids, timeout_s)"
        )
    return client


def _expert(word: str) -> Oracle:
    from expert_oracle.loading import OracleSpec

    return OracleSpec(word).build()
