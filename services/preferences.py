"""The third process of learning from preferences: ask, hear, refit the reward, while the policy goes on.

    preferences = Preferences(settings, spaces, folder, labeler, seed)
    learnt = preferences.advance(rollouts, env_steps)       # weights of the reward model, and figures

`Beside` has it in an actor of its own: the policy then learns from the newest reward that there is, at most
`max_lag` rounds old (Christiano et al., 2017, section 2.2: "these processes run asynchronously").
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
from ray.exceptions import RayActorError, RayTaskError

from expert_oracle.loading import one_line
from learner.learner import fetched
from learner.reward_learner import RewardLearner, RewardSettings
from tutelage import plugins
from tutelage.errors import ConfigError, ServiceError, TrainingError, TutelageError
from tutelage.protocols import Labeler
from tutelage.types import Answer, Rollout

GRPC = "grpc://"
PEOPLE = "human"
LOOK_S = 0.5  # between two looks for answers, while the policy waits for the first ones


@dataclass(frozen=True)
class LabelerSpec:
    """How to reach somebody who compares. Made by: the config. Eaten by: the trainer.

    The word is `human`, `grpc://HOST:PORT`, `synthetic:NAME`, `package.module:attribute` or
    `file.py:attribute`.
    """

    labeler: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks_people(self) -> bool:
        return self.labeler == PEOPLE or self.labeler.startswith(GRPC)

    def build(self, seed: int | tuple[int, ...] = 0) -> Labeler:
        """The labeler; `seed` is a scripted teacher's where the arguments give none. Raises ConfigError for a
        word or an argument that is not known."""
        from expert_oracle.synthetic import NAMES, synthetic
        from services.labeler.client import LabelerClient

        scheme, _, rest = self.labeler.partition(":")
        try:
            if self.labeler.startswith(GRPC):
                return LabelerClient(self.labeler, **self.arguments)
            if self.labeler == PEOPLE:
                return LabelerClient(**self.arguments)
            if scheme == "synthetic":
                return synthetic(rest, **{"seed": seed, **self.arguments})
            value = plugins.load(self.labeler)
            labeler = value(**self.arguments) if isinstance(value, type) or self.arguments else value
        except TypeError as error:
            raise ConfigError(f"feedback.arguments: labeler {self.labeler}: {error}") from None
        except ConfigError as error:
            known = [PEOPLE, "grpc://HOST:PORT", *(f"synthetic:{name}" for name in NAMES)]
            if self.labeler in known:
                raise ConfigError(f"feedback.arguments: labeler {self.labeler}: {error}") from None
            near = "" if scheme in ("synthetic", "grpc") else plugins.did_you_mean(self.labeler, known)
            raise ConfigError(f"feedback.labeler {self.labeler!r}: {error}{near}") from None
        if not isinstance(labeler, Labeler):
            raise ConfigError(f"feedback.labeler {self.labeler}: it has no `label(queries)`")
        return labeler


@dataclass(frozen=True)
class Learnt:
    """What follows from the answers so far. Made by: preferences. Eaten by: the trainer."""

    ready: bool  # the first questions are answered, and a reward is fitted where one is
    weights: Mapping[str, Any] | None  # of the reward model, if there is one
    figures: Mapping[str, float]


class Preferences:
    """Asks a labeler about segments of what was collected, and fits the reward to what it answers."""

    def __init__(
        self,
        settings: RewardSettings,
        spaces: tuple[gym.Space, gym.Space],
        folder: Path,
        labeler: LabelerSpec,
        seed: int,
    ) -> None:
        self.reward = RewardLearner(settings, *spaces, folder, seed=seed)
        self.labeler = labeler.build((seed, 17, self.reward.comparisons.asked))  # no teacher repeats itself
        self._word, self._served = labeler.labeler, labeler.asks_people
        if self._served:
            _greet(self.labeler)
        self._began = False

    def advance(self, rollouts: Sequence[Rollout | ray.ObjectRef], env_steps: int) -> Learnt:
        """Cut segments, ask what is due, take what was answered, refit. Waits for nobody.

        Raises OracleError for what a labeler's own code raises, TrainingError where it does not give answers.
        """
        queries = [] if self._began else self.reward.comparisons.open()  # asked before a restart
        self.reward.observe(fetched(rollouts))
        queries += self.reward.ask(env_steps)
        with one_line(f"feedback.labeler {self._word}"):
            answers = list(self.labeler.label(queries))
        if odd := [type(one).__name__ for one in answers if not isinstance(one, Answer)]:
            raise TrainingError(
                f"feedback.labeler {self._word}: its label() gave a {odd[0]}, expected tutelage.types.Answer"
            )
        self.reward.hear(answers)
        self._began = True
        self.reward.fit()
        return self.learnt()

    def learnt(self) -> Learnt:
        """What is known by now."""
        fits = self.reward.ready and self.reward.settings.fits
        weights = self.reward.model.state_dict() if fits else None
        return Learnt(self.reward.ready, weights, dict(self.reward.figures))

    def trouble(self) -> str:
        """What keeps a served labeler from asking, a clause to end a line with; empty: nothing."""
        return trouble(self.labeler) if self._served else ""

    def get_state(self) -> dict[str, Any]:
        return self.reward.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.reward.set_state(state)

    def close(self) -> None:
        """Hang up."""
        close = getattr(self.labeler, "close", None)
        if close is not None:
            close()


def _greet(labeler: Any) -> None:
    """Raises ServiceError where a service does not let us in, before anything is collected."""
    try:
        labeler.stats()
    except ServiceError as error:
        words = str(error).replace("token_file=", "feedback.arguments.token_file=")
        raise type(error)(words) from None


def trouble(labeler: Any) -> str:
    """As `Preferences.trouble`, of a client of the service."""
    said = labeler.stats()
    dead = int(said.counts.get("dead", 0))
    cannot = f"; {dead} cannot be asked, the labeler's operator page says why and asks them again"
    return cannot * bool(dead) + f"; the labeler: {said.fault}" * bool(said.fault)


class Here:
    """Preferences in this process: each round waits for the fit."""

    def __init__(self, make: Callable[[], Preferences]) -> None:
        self._make = make

    def begin(self) -> None:
        """Reach the labeler. Raises what `LabelerSpec.build` does; as a task, so that it comes out of an
        actor."""
        self.preferences = self._make()

    def advance(self, rollouts: Sequence[Any], env_steps: int, *, wait: bool = False) -> Learnt:
        return self.preferences.advance(rollouts, env_steps)

    def call(self, name: str, *arguments: Any) -> Any:
        """What a method of the preferences returns."""
        return getattr(self.preferences, name)(*arguments)

    def stop(self) -> None:
        self.preferences.close()


class Beside:
    """Preferences in an actor: a round takes the newest reward, at most `max_lag` rounds old."""

    def __init__(self, make: Callable[[], Preferences], max_lag: int) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(Here).remote(make)
        self._max_lag = max_lag
        self._under_way: deque[Any] = deque()
        self._newest = Learnt(False, None, {})

    def begin(self) -> None:
        """Reach the labeler. Raises what `LabelerSpec.build` does."""
        result_of(self._actor.begin.remote())

    def advance(self, rollouts: Sequence[Any], env_steps: int, *, wait: bool = False) -> Learnt:
        """wait: for the reward that these rollouts lead to."""
        sent = [one if isinstance(one, ray.ObjectRef) else ray.put(one) for one in rollouts]
        self._under_way.append(self._actor.advance.remote(sent, env_steps))
        most = 0 if wait else self._max_lag
        while self._under_way and (
            len(self._under_way) > most or ray.wait([self._under_way[0]], timeout=0)[0]
        ):
            self._newest = result_of(self._under_way.popleft())
        return replace(
            self._newest, figures={**self._newest.figures, "reward_lag": float(len(self._under_way))}
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """What a method of the preferences returns."""
        return result_of(self._actor.call.remote(name, *arguments))

    def stop(self) -> None:
        with contextlib.suppress(RayActorError, TutelageError):
            self.call("close")
        ray.kill(self._actor)


def result_of(reference: Any) -> Any:
    """What a task in an actor returned, or its error out of Ray's wrapping; an actor's death stays Ray's."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None


def until_heard(
    side: Here | Beside,
    rollouts: Sequence[Any],
    env_steps: int,
    stopped: Callable[[], bool],
    *,
    heard: bool = False,
    most: float = math.inf,
    say: Callable[[str], None] = lambda words: None,
) -> Learnt:
    """What was learnt once all first questions are answered, some are still to be asked about rollouts to
    come, or the run is `stopped`; later, once at most so many wait for their answer.

    The policy has nothing to learn from before that, and people take their time. heard: they were answered
    before, so the newest reward that is there does.
    """
    learnt, said = side.advance(rollouts, env_steps, wait=not heard), ""
    while _is_awaited(learnt, most) and not stopped():
        asked, unanswered = learnt.figures["asked"], learnt.figures["unanswered"]
        words = f"waiting for {asked:.0f} answers, {asked - unanswered:.0f} there{side.call('trouble')}"
        if words != said:
            say(words)
            said = words
        time.sleep(LOOK_S)
        learnt = side.advance([], env_steps, wait=True)
    return learnt


def _is_awaited(learnt: Learnt, most: float) -> bool:
    if not learnt.ready:
        return not learnt.figures["first_unasked"]
    return learnt.figures["unanswered"] > most
