"""Collecting experience: B environments stepped under a policy and an expert, into columns [T, B]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import gymnasium as gym
import numpy as np
import tree

from actors.environments import (
    Act,
    SyncEnvs,
    VectorEnvs,
    columns,
    concatenated,
    make_vector,
    put,
    rows,
    to_env,
)
from actors.forward import Forward, Judge
from actors.mixture import Controller, Mixture, Turn
from actors.replay import is_reproducible
from actors.takeover import controller_of
from tutelage.errors import ConfigError, OracleError
from tutelage.policy import distribution_of, log_prob
from tutelage.protocols import Oracle
from tutelage.types import Array, EnvRecipe, Episodes, Pictures, Provenance, Rollout, TakeoverRule, Tree

MASK_64 = 2**64 - 1
PURPOSES = {"actions": 0, "mixture": 1}


@dataclass(frozen=True)
class Running:
    """Episodes that are under way between two rollouts, by slot."""

    seed: Array  # [B] int64, -1: not seeded
    length: Array  # [B] int32, steps so far
    returns: Array  # [B] float64, undiscounted, so far
    began: Array  # [B] bool, the next step is an episode's first
    resetting: Array  # [B] bool, the next step will be spent on a reset


@dataclass(frozen=True)
class Columns:
    """A rollout being filled."""

    obs: Tree  # [T+1, B, ...]
    actions: Array  # [T, B, ...]
    rewards: Array  # [T, B] float32
    terminated: Array  # [T, B] bool
    truncated: Array  # [T, B] bool
    expert_actions: Array | None  # [T, B, ...]; None: the expert is not asked
    by_expert: Array | None  # [T, B] bool
    asked: Array | None  # [T, B] bool
    pictures: Array | None  # [T+1, C] bytes; None: none are drawn
    final_pictures: list[bytes] = field(default_factory=list)  # of the same episodes as `final_obs`
    final_obs: list[Tree] = field(default_factory=list)  # of the episodes that ended in one step
    seeds: list[int] = field(default_factory=list)  # of the episodes begun, in the order of the ends before


@dataclass(frozen=True)
class _Cast:
    """Who takes part in a rollout in which an expert may act."""

    act: Act  # the novice's
    oracle: Oracle
    judge: Judge
    rng: np.random.Generator
    running: Running  # when the rollout began


class Collector:
    """Steps B environments and writes what happens into columns.

        collector = Collector(recipe, 64, run_seed=0)
        rollout = collector.collect(act, 128)
        rollout = label(rollout, oracle, collector.envs.action_space)

    Episodes go on from one rollout to the next. Each begins with a seed derived from (run seed, round,
    runner, slot, k), where k counts the slot's episodes, so that no restart repeats old ones.

    `in_halves`: under the mixture the expert is asked about one half of the environments while the other half
    is stepped. Pays where an expert's time grows with the number of states, and needs the backend `sync`.
    `drawn`: environments that are drawn in every state, where episodes cannot be replayed; else none is.
    """

    def __init__(
        self,
        recipe: EnvRecipe,
        num_envs: int,
        *,
        run_seed: int = 0,
        runner: int = 0,
        mixture_per: Literal["step", "episode"] = "step",
        in_halves: bool = False,
        reproducible: bool | None = None,  # None: find out
        drawn: int = 0,
    ) -> None:
        self.reproducible = is_reproducible(recipe) if reproducible is None else reproducible
        self._drawn = 0 if self.reproducible else drawn
        self.envs = make_vector(recipe, num_envs, drawn=self._drawn)
        self.run_seed = run_seed & MASK_64
        self.runner = runner
        self._whole = slice(0, num_envs)
        self._parts = _halves(self.envs) if in_halves else [self._whole]
        self.mixtures = [Mixture(per=mixture_per) for _ in self._parts]
        self._ruled: tuple[TakeoverRule, Controller] | None = None
        self._obs = columns(self.envs.observation_space, num_envs)  # to act on next
        self._running: Running | None = None  # None: all environments have to be reset
        self._begun = [0] * num_envs  # episodes, by slot
        self._rollouts = 0

    def collect(
        self,
        act: Act,
        steps: int,
        *,
        round: int = 0,
        beta: float = 0.0,
        rule: TakeoverRule | None = None,
        oracle: Oracle | None = None,
        judge: Judge | None = None,
        version: int = 0,
        force_reset: bool = False,
    ) -> Rollout:
        """`steps` steps of each environment.

        With β > 0 or a `rule`, `oracle` acts where the mixture or the rule says so, and what it answers are
        the rollout's labels. A rule may go by what the novice's `judge` says. After an error
        the next call begins new episodes. Raises CutShort, with the steps made, where the oracle fails.
        """
        running = self._running
        if running is None or force_reset:
            running = self._begin(round)
        self._running = None
        together = beta > 0 or rule is not None
        taken = self._columns(steps, asked=together)
        put(taken.obs, 0, self._obs)
        if taken.pictures is not None:
            taken.pictures[0] = self.envs.pictures
        watched, error = False, None
        if together:
            if oracle is None:
                raise ValueError("an expert that may act needs an oracle")
            controllers = self._controllers_of(rule, beta)
            watched = any(controller.watches for controller in controllers)
            cast = _Cast(act, oracle, judge or Judge(None), self.generator(round, "mixture"), running)
            done, error = self._act_together(taken, cast, controllers, round)
            taken = taken if error is None else first_steps(taken, done)
        else:
            for t in range(steps):
                taken.actions[t] = act(rows(taken.obs, t))
                self._step(taken, t, self._whole, round)
        put(self._obs, ..., rows(taken.obs, -1))
        provenance = Provenance(self.runner, version, beta, round, self.envs.recipe, watched)
        rollout, still_running = self._finish(taken, running, provenance)
        if error is not None:
            raise CutShort(str(error), rollout) from error
        self._running = still_running
        return rollout

    def _step(self, taken: Columns, t: int, part: slice, round: int) -> None:
        """Step these environments with what was chosen, and begin new episodes where one ended."""
        obs_tp1 = rows(taken.obs, t + 1)
        executed = to_env(self.envs.action_space, taken.actions[t, part])
        outcomes = taken.rewards[t, part], taken.terminated[t, part], taken.truncated[t, part]
        if part is self._whole:
            ended = self.envs.step(executed, obs_tp1, *outcomes)
        else:
            assert isinstance(self.envs, SyncEnvs)
            ended = self.envs.step(executed, rows(obs_tp1, part), *outcomes, first=part.start)
        if ended:
            taken.final_obs.append(rows(obs_tp1, ended))
            if taken.pictures is not None:
                seen = self.envs.pictures
                taken.final_pictures.extend(seen[i] if i < len(seen) else b"" for i in ended)
            taken.seeds.extend(self._restart(ended, obs_tp1, round))
        if taken.pictures is not None:
            taken.pictures[t + 1, part] = self.envs.pictures[part]

    # With an expert that may act

    def _controllers_of(self, rule: TakeoverRule | None, beta: float) -> list[Controller]:
        """One for each part of the environments; a rule's remember what they said while the rule stays."""
        if rule is None:
            for mixture in self.mixtures:
                mixture.beta = beta
            return list(self.mixtures)
        if self._ruled is None or self._ruled[0] != rule:
            self._ruled = rule, controller_of(rule, self.envs.action_space)
        return [self._ruled[1]]

    def _act_together(
        self, taken: Columns, cast: _Cast, controllers: Sequence[Controller], round: int
    ) -> tuple[int, OracleError | None]:
        """Fill the columns; how many steps were made, and the error that ended them, if they were some."""
        done = 0
        try:
            for steps in self._steps_together(taken, cast, controllers, round):
                done = steps
        except OracleError as error:
            if not done:
                raise
            return done, error
        return done, None

    def _steps_together(
        self, taken: Columns, cast: _Cast, controllers: Sequence[Controller], round: int
    ) -> Iterator[int]:
        """Choose and step, and give the number of steps that all environments have made.

        With two parts the expert thinks about one while the other is stepped.
        """
        if len(controllers) == 1:
            for t in range(len(taken.rewards)):
                self._choose(taken, t, self._whole, cast, controllers[0])
                self._step(taken, t, self._whole, round)
                yield t + 1
            return
        with ThreadPoolExecutor(1, "expert") as expert:  # an oracle is asked by one thread at a time
            asked = [self._ask_ahead(expert, taken, 0, part, cast) for part in self._parts]
            for t in range(len(taken.rewards)):
                for i, part in enumerate(self._parts):
                    asked[i].result()
                    self._choose(taken, t, part, cast, controllers[i])
                    self._step(taken, t, part, round)
                    if t + 1 < len(taken.rewards):
                        asked[i] = self._ask_ahead(expert, taken, t + 1, part, cast)
                yield t + 1

    def _ask_ahead(
        self, expert: ThreadPoolExecutor, taken: Columns, t: int, part: slice, cast: _Cast
    ) -> Future[Array]:
        everywhere = np.ones(part.stop - part.start, bool)
        return expert.submit(self._ask, taken, t, part, cast, everywhere)

    def _choose(self, taken: Columns, t: int, part: slice, cast: _Cast, controller: Controller) -> None:
        """Write what is to be done in step t: by the novice, or by the expert where the rule says so."""
        assert taken.by_expert is not None
        obs = rows(rows(taken.obs, t), part)
        novice = cast.act(obs)
        executed = to_env(self.envs.action_space, novice)
        began, real = self._began(taken, t, cast)[part], ~self._resetting(taken, t, cast)[part]
        ask = partial(self._ask, taken, t, part, cast)
        by_expert = controller(Turn(obs, executed, began, cast.rng, ask, cast.judge, cast.oracle)) & real
        taken.by_expert[t, part] = by_expert
        mask = by_expert.reshape(-1, *[1] * (novice.ndim - 1))
        taken.actions[t, part] = np.where(mask, ask(by_expert), novice)

    def _began(self, taken: Columns, t: int, cast: _Cast) -> Array:
        """Whether step t is an episode's first [B]: after an end, or after the reset that took a step."""
        if t < 1 + self.envs.autoreset:
            return cast.running.resetting if t else cast.running.began
        before = t - 1 - self.envs.autoreset
        return taken.terminated[before] | taken.truncated[before]

    def _resetting(self, taken: Columns, t: int, cast: _Cast) -> Array:
        """Whether step t is spent on a reset [B]."""
        if not self.envs.autoreset or t == 0:
            return cast.running.resetting
        return taken.terminated[t - 1] | taken.truncated[t - 1]

    def _ask(self, taken: Columns, t: int, part: slice, cast: _Cast, mask: Array) -> Array:
        """What the expert would do [n, ...] in these environments; it is asked once about each, and not at
        all where the step is spent on a reset."""
        assert taken.expert_actions is not None
        assert taken.asked is not None
        answers, asked, oracle = taken.expert_actions[t, part], taken.asked[t, part], cast.oracle
        new = np.flatnonzero(mask & ~asked & ~self._resetting(taken, t, cast)[part])
        if len(new) == len(mask):
            answers[:] = to_env(self.envs.action_space, oracle.act(rows(rows(taken.obs, t), part)))
        elif len(new):
            some = rows(rows(rows(taken.obs, t), part), new)
            answers[new] = to_env(self.envs.action_space, oracle.act(some))
        asked[new] = True
        return answers

    def generator(self, round: int, purpose: Literal["actions", "mixture"]) -> np.random.Generator:
        """Randomness for the next rollout; no other rollout or purpose in the run has the same."""
        return np.random.default_rng([self.run_seed, round, self.runner, self._rollouts, PURPOSES[purpose]])

    def close(self) -> None:
        self.envs.close()

    def _begin(self, round: int) -> Running:
        """Reset all environments."""
        B = self.envs.num_envs
        seeds = [self._next_seed(slot, round) for slot in range(B)]
        self.envs.reset(range(B), seeds, self._obs)
        return Running(
            seed=np.full(B, -1) if self.envs.autoreset else np.array(seeds),
            length=np.zeros(B, np.int32),
            returns=np.zeros(B),
            began=np.ones(B, bool),
            resetting=np.zeros(B, bool),
        )

    def _restart(self, ended: Sequence[int], obs: Tree, round: int) -> list[int]:
        """Begin new episodes where one ended, and return their seeds."""
        if self.envs.autoreset:
            return [-1] * len(ended)
        seeds = [self._next_seed(slot, round) for slot in ended]
        self.envs.reset(ended, seeds, obs)
        return seeds

    def _next_seed(self, slot: int, round: int) -> int:
        k = self._begun[slot]
        self._begun[slot] += 1
        return episode_seed(self.run_seed, round, self.runner, slot, k)

    def _columns(self, steps: int, *, asked: bool) -> Columns:
        B = self.envs.num_envs
        return Columns(
            obs=columns(self.envs.observation_space, steps + 1, B),
            actions=columns(self.envs.action_space, steps, B),
            rewards=np.zeros((steps, B), np.float32),
            terminated=np.zeros((steps, B), bool),
            truncated=np.zeros((steps, B), bool),
            expert_actions=columns(self.envs.action_space, steps, B) if asked else None,
            by_expert=np.zeros((steps, B), bool) if asked else None,
            asked=np.zeros((steps, B), bool) if asked else None,
            pictures=np.full((steps + 1, self._drawn), b"", object) if self._drawn else None,
        )

    def _finish(self, taken: Columns, running: Running, provenance: Provenance) -> tuple[Rollout, Running]:
        self._rollouts += 1
        autoreset = self.envs.autoreset
        ends = taken.terminated | taken.truncated
        episodes, still_running = stretches(
            ends, taken.rewards, taken.seeds, running, autoreset=autoreset, reproducible=self.reproducible
        )
        final_t, final_b = (index.astype(np.int32) for index in np.nonzero(ends))
        rollout = Rollout(
            obs=taken.obs,
            actions=taken.actions,
            rewards=taken.rewards,
            terminated=taken.terminated,
            truncated=taken.truncated,
            final_t=final_t,
            final_b=final_b,
            final_obs=concatenated(taken.final_obs or [columns(self.envs.observation_space, 0)]),
            episodes=episodes,
            provenance=provenance,
            expert_actions=taken.expert_actions,
            by_expert=taken.by_expert,
            asked=None if taken.asked is None or taken.asked.all() else taken.asked,
            valid=~np.concatenate([running.resetting[None], ends[:-1]]) if autoreset else None,
            pictures=None
            if taken.pictures is None
            else Pictures(taken.pictures, np.array(taken.final_pictures, object)),
        )
        return rollout, still_running


class CutShort(OracleError):
    """An expert that failed after it had answered: `rollout` is what was collected or labelled by then."""

    def __init__(self, message: str, rollout: Rollout) -> None:
        super().__init__(message)
        self.rollout = rollout


def first_steps(taken: Columns, steps: int) -> Columns:
    """The first `steps` steps of columns that were being filled."""
    ended = int((taken.terminated[:steps] | taken.truncated[:steps]).sum())
    cut = {
        name: value[:steps]
        for name in ("actions", "rewards", "terminated", "truncated", "expert_actions", "by_expert", "asked")
        if (value := getattr(taken, name)) is not None
    }
    final_obs = [rows(concatenated(taken.final_obs), slice(ended))] if ended else []
    obs = rows(taken.obs, slice(steps + 1))
    if taken.pictures is not None:
        cut |= {"pictures": taken.pictures[: steps + 1], "final_pictures": taken.final_pictures[:ended]}
    return replace(taken, obs=obs, final_obs=final_obs, seeds=taken.seeds[:ended], **cut)


def _halves(envs: VectorEnvs) -> list[slice]:
    """The environments in two parts. Raises ConfigError where they cannot be stepped apart."""
    if not isinstance(envs, SyncEnvs) or envs.num_envs < 2:
        raise ConfigError(
            "collection.in_halves needs env_runners.gym_env_vectorize_mode=sync and "
            "env_runners.num_envs_per_env_runner of at least 2"
        )
    middle = envs.num_envs // 2
    return [slice(0, middle), slice(middle, envs.num_envs)]


def stretches(
    ends: Array,  # [T, B] bool
    rewards: Array,  # [T, B]
    seeds: Sequence[int],  # [F] of the episodes that begin after each end, ends in the order of np.nonzero
    running: Running,
    *,
    autoreset: bool,
    reproducible: bool,
) -> tuple[Episodes, Running]:
    """The stretches of episodes in a rollout, ordered by slot and time, and what goes on after it."""
    T, B = ends.shape
    final_t, final_b = np.nonzero(ends)
    slot = np.concatenate([np.arange(B), final_b])
    start = np.concatenate([running.resetting, final_t + 1 + autoreset])
    order = np.lexsort((start, slot))
    slot, start = slot[order], np.minimum(start[order], T)
    last = np.append(slot[1:] != slot[:-1], True)  # of its slot: not ended in this rollout
    end = np.where(last, T, np.roll(start, -1) - autoreset)
    end[~last] = final_t[np.lexsort((final_t, final_b))] + 1
    before = np.zeros(len(final_t))
    seed = np.concatenate([running.seed, np.asarray(seeds, np.int64)])[order]
    offset = np.concatenate([running.length, before]).astype(np.int32)[order]
    so_far = np.vstack([np.zeros(B), np.cumsum(rewards, axis=0, dtype=np.float64)])  # [T+1, B]
    returns = np.concatenate([running.returns, before])[order] + so_far[end, slot] - so_far[start, slot]
    some = end > start
    episodes = Episodes(
        slot=slot[some].astype(np.int32),
        start=start[some].astype(np.int32),
        end=end[some].astype(np.int32),
        seed=seed[some],
        offset=offset[some],
        returns=returns[some],
        done=~last[some],
        reproducible=reproducible,
    )
    still_running = Running(
        seed=seed[last],
        length=(offset + end - start)[last].astype(np.int32),
        returns=returns[last],
        began=ends[-1] if not autoreset else ends[-2] if T > 1 else running.resetting,
        resetting=ends[-1] & autoreset,
    )
    return episodes, still_running


def label(rollout: Rollout, oracle: Oracle, action_space: gym.Space, *, batch: int = 4096) -> Rollout:
    """The rollout with the expert's actions for all its states, asked for `batch` states at a time.

    Rows that were spent on a reset are not asked about and get zeros. A labelled rollout comes back as it is.
    Raises CutShort, with the labels given, where the oracle fails after some.
    """
    if rollout.expert_actions is not None:
        return rollout
    T, B = rollout.shape
    states = flat_states(rollout)
    asked = np.arange(T * B) if rollout.valid is None else np.flatnonzero(rollout.valid)
    answers = columns(action_space, T * B)
    for i in range(0, len(asked), batch):
        some = asked[i : i + batch]
        try:
            answers[some] = to_env(action_space, oracle.act(rows(states, some)))
        except OracleError as error:
            if not i:
                raise
            given = np.zeros(T * B, bool)
            given[asked[:i]] = True
            raise CutShort(str(error), _labelled(rollout, answers, given.reshape(T, B))) from error
    return _labelled(rollout, answers, None)


def _labelled(rollout: Rollout, answers: Array, asked: Array | None) -> Rollout:
    answers = answers.reshape(*rollout.shape, *answers.shape[1:])
    return replace(rollout, expert_actions=answers, asked=asked)


def with_logp(rollout: Rollout, forward: Forward, action_space: gym.Space, *, batch: int = 4096) -> Rollout:
    """The rollout with the log-probabilities of its actions under the policy that drew them, whose `forward`
    is asked for `batch` states at a time."""
    T, B = rollout.shape
    distribution, nvec = distribution_of(action_space)
    states = flat_states(rollout)
    actions = rollout.actions.reshape(T * B, *rollout.actions.shape[2:])
    logp = np.empty(T * B, np.float32)
    for i in range(0, T * B, batch):
        some = slice(i, i + batch)
        logp[some] = log_prob(forward(rows(states, some)), actions[some], distribution, nvec)
    return replace(rollout, logp=logp.reshape(T, B))


def flat_states(rollout: Rollout) -> Tree:
    """The observations [T B, ...] that were acted on."""
    T, B = rollout.shape
    return tree.map_structure(lambda leaf: leaf[:T].reshape(T * B, *leaf.shape[2:]), rollout.obs)


def episode_seed(run_seed: int, round: int, runner: int, slot: int, k: int) -> int:
    """A seed in [0, 2^31) for the k-th episode of a slot, the same on every machine (splitmix64)."""
    x = 0
    for key in (run_seed, round, runner, slot, k):
        x = (x + key + 0x9E3779B97F4A7C15) & MASK_64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
        x ^= x >> 31
    return x & 0x7FFFFFFF
