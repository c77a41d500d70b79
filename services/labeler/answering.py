"""Scripted labelers: machines that answer as people would, in a process of their own, over gRPC.

    tutelage labeler answer 127.0.0.1:50061 mistake
    tutelage labeler answer 127.0.0.1:50061 oracle delay_s=3 away=0.1 away_s=120
    tutelage labeler answer 127.0.0.1:50061 checkpoint:cartpole
    tutelage labeler answer 127.0.0.1:50061 judge endpoint=http://127.0.0.1:8000/v1 model=NAME

The teacher is one of B-Pref's (oracle, stochastic, mistake, skip, equal, myopic), which compare segments by
the rewards of the environment; `drifting`, `adversarial`; `judge`, a language model that compares texts; or
an expert's word, which says what it would do in a state. All of them can be slow (`delay_s`) or absent
(`away`, `away_s`): then what they have leased goes to others when its time is over.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tree

from expert_oracle.judge import Judge
from expert_oracle.loading import KINDS, NAMED, OracleSpec
from expert_oracle.synthetic import NAMES, NoRewards, Teacher, synthetic
from services.labeler.client import LabelerClient, Leased
from tutelage import plugins
from tutelage.errors import ConfigError, ServiceError
from tutelage.protocols import Labeler, Oracle
from tutelage.types import Answer, Query, Segment

LOG = logging.getLogger(__name__)
BEAT_S = (0.1, 20.0)  # between two heart-beats: least, most
NONE_THERE = "these questions carry no rewards, by which it judges; people have to answer them"
HIDDEN = (
    "these questions came without rewards, by which it judges. An annotator's token is not shown any: use a "
    "trainer's, of `tutelage labeler invite --role trainer --name NAME`, with annotator=NAME. Where that is "
    "one, they carry none, and people have to answer them"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Actor:
    """An expert that is asked what it would do, one state at a time."""

    oracle: Oracle
    name: str

    def label(self, queries: Sequence[Query]) -> list[Answer]:
        """Raises OracleError where the expert does."""
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Answer:
        began = time.time()
        (state,) = query.options
        if isinstance(state, Segment):
            state = tree.map_structure(lambda leaf: leaf[-1], state.obs)
        batch = tree.map_structure(lambda leaf: np.asarray(leaf)[None], state)
        action = tree.map_structure(lambda leaf: np.asarray(leaf)[0], self.oracle.act(batch))
        return Answer(query.id, np.asarray(action), self.name, began, time.time())


def scripted(word: str, arguments: Mapping[str, Any]) -> tuple[Labeler, Sequence[str]]:
    """The labeler of that word, and the kinds of question that it answers. Raises ConfigError."""
    try:
        if word in NAMES:
            _check_settings(word, arguments, Teacher)
            return synthetic(word, **arguments), ("comparison",)
        if word == "judge":
            _check_settings(word, arguments, Judge)
            if missing := {"endpoint", "model"} - set(arguments):
                raise ConfigError(
                    f"labeler judge: it needs endpoint=URL model=NAME; no {min(missing)} is given"
                )
            return Judge(**arguments), ("text",)
    except TypeError as error:
        raise ConfigError(f"labeler {word}: {error}") from None
    if word.partition(":")[0] in KINDS or word in NAMED or "://" in word or ":" in word:
        spec = OracleSpec(word, dict(arguments))
        if spec.asks_people:
            raise ConfigError(f"labeler {word}: people answer on the page")
        return Actor(spec.build(), word), ("action",)
    known = [*NAMES, "judge", "an expert's word, as checkpoint:cartpole"]
    raise ConfigError(f"there is no labeler {word!r}{plugins.did_you_mean(word, known)}")


def _check_settings(word: str, arguments: Mapping[str, Any], made: Callable[..., Any]) -> None:
    """Raise ConfigError, naming what is known, for a setting of nobody's."""
    own = [name for name in inspect.signature(made).parameters if name != "name"]
    known = [*own, *(name for of in (Habits, LabelerClient) for name in inspect.signature(of).parameters)]
    for name in arguments:
        if name not in known:
            raise ConfigError(f"labeler {word}: unknown setting {name!r}{plugins.did_you_mean(name, known)}")


@dataclass
class Habits:
    """How a scripted labeler works. The arguments besides the teacher's own."""

    annotator: str = ""  # in whose name; empty: the teacher's word, or who the token says
    n: int = 8  # questions that it holds at a time
    delay_s: float = 0.0  # for one answer
    away: float = 0.0  # probability, after an answer, that it leaves
    away_s: float = 60.0  # for so long, with what it has leased
    idle_s: float = 0.2  # before it asks again where there was nothing
    answers: int = 0  # after so many it ends; 0: never
    until_empty: bool = False  # it ends where there is nothing left for it
    seed: int = 0  # of its leaving

    def __post_init__(self) -> None:
        for name in ("delay_s", "away_s", "idle_s", "answers"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"labeler: {name}={getattr(self, name)} is not 0 or more")
        if not 0 <= self.away <= 1:
            raise ConfigError(f"labeler: away={self.away} is not from 0 to 1")
        if not (isinstance(self.n, int) and 1 <= self.n <= 256):
            raise ConfigError(f"labeler: n={self.n} is not from 1 to 256")


@dataclass
class Worker:
    """Leases, judges, answers, until it is stopped. What it cannot judge it gives back, for others."""

    client: LabelerClient
    labeler: Labeler
    kinds: Sequence[str]
    habits: Habits
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: Counter[str] = field(default_factory=Counter)

    def work(self) -> Counter[str]:
        """What became of the answers, by outcome."""
        rng = np.random.default_rng(self.habits.seed)
        while not self._over():
            leased = self.client.lease(self.habits.annotator, self.habits.n, self.kinds)
            if not leased and self.habits.until_empty:
                break
            if not leased:
                self.stop.wait(self.habits.idle_s)
                continue
            with self._keeping(leased) as held:
                leaves = self._answer_or_leave(leased, held, rng)
            if leaves:
                self.stop.wait(self.habits.away_s)  # what it had may be somebody else's by then
        return self.outcomes

    def _answer_or_leave(self, leased: Sequence[Leased], held: set[str], rng: np.random.Generator) -> bool:
        """As `_answer_all`. Raises ConfigError, with all given back, where there is nothing to judge by."""
        try:
            return self._answer_all(leased, held, rng)
        except NoRewards:
            for id in sorted(held):
                self.client.give_back(id, self.habits.annotator)
            why = HIDDEN if self.client.access.metadata() else NONE_THERE
            raise ConfigError(f"labeler: {why}") from None

    def _answer_all(self, leased: Sequence[Leased], held: set[str], rng: np.random.Generator) -> bool:
        """True: it leaves in the middle."""
        for one in leased:
            if one.id not in held:  # it went to somebody else
                continue
            self._answer(one)
            held.discard(one.id)
            if self._over():
                return False
            if rng.random() < self.habits.away:
                return True
        return False

    @contextlib.contextmanager
    def _keeping(self, leased: Sequence[Leased]) -> Iterator[set[str]]:
        """What it still has of these, while a thread says that it is there, however long one answer takes."""
        held, over = {one.id for one in leased}, threading.Event()
        thread = threading.Thread(target=self._beat, args=(held, over, _beat_s(leased)), daemon=True)
        thread.start()
        try:
            yield held
        finally:
            over.set()
            thread.join()

    def _beat(self, held: set[str], over: threading.Event, every_s: float) -> None:
        while not over.wait(every_s):
            ids = list(held)
            with contextlib.suppress(ServiceError):  # who answers meets it too
                held -= set(ids) - set(self.client.beat(ids, self.habits.annotator))

    def _over(self) -> bool:
        enough = self.habits.answers and self.outcomes["accepted"] >= self.habits.answers
        return self.stop.is_set() or bool(enough)

    def _answer(self, one: Leased) -> None:
        began = time.time()
        self.stop.wait(self.habits.delay_s)
        try:
            (answer,) = self.labeler.label([one.query])
        except NoRewards:
            raise
        except ValueError as error:  # this question is none for it, but may be one for others
            LOG.warning("given back: %s", error)
            self.client.give_back(one.id, self.habits.annotator)
            self.outcomes["given back"] += 1
            return
        outcome, _ = self.client.answer(
            one.id,
            answer.value,
            annotator=self.habits.annotator,
            cannot_tell=answer.cannot_tell,
            started_at=began,
            reason=getattr(self.labeler, "reasons", {}).pop(one.query.id, ""),
        )
        self.outcomes[outcome] += 1


def _beat_s(leased: Sequence[Leased]) -> float:
    """Well before a lease ends, by the store's clock as it was told."""
    return min(max((leased[0].ends_at - time.time()) / 3, BEAT_S[0]), BEAT_S[1])


def worker(address: str, word: str, arguments: Mapping[str, Any]) -> Worker:
    """A scripted labeler. `arguments` are shared out by name: its habits, the connection, its own."""
    own = dict(arguments)
    habits = {name: own.pop(name) for name in inspect.signature(Habits).parameters if name in own}
    if "seed" in habits and word in NAMES:
        own["seed"] = habits["seed"]
    named = [name for name in inspect.signature(LabelerClient).parameters if name != "address"]
    connection = {name: own.pop(name) for name in named if name in own}
    labeler, kinds = scripted(word, own)
    client = LabelerClient(address, **connection)
    known = {"annotator": "" if client.access.metadata() else word, **habits}
    return Worker(client, labeler, kinds, Habits(**known))


def answer_command(address: str, word: str, arguments: Mapping[str, Any], say: Say) -> dict[str, int]:
    """`tutelage labeler answer`: until SIGTERM, Ctrl-C, or its own end."""
    import signal

    one = worker(address, word, arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop.set())
    who = one.habits.annotator or "who its token says"
    say(f"{word} answers questions of kind {', '.join(one.kinds)} at {one.client.address} as {who}")
    try:
        outcomes = one.work()
    finally:
        one.client.close()
    say(", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) or "nothing to answer")
    return dict(outcomes)
