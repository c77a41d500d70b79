"""Whether an expert can be learned from: its answers about states of its environment, compared.

tutelage oracle check mine.py:Planner gain=2 --env Pendulum-v1
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tree

from actors.environments import make_env
from expert_oracle.loading import CheckedOracle, FunctionOracle, OracleSpec, checked, described, one_line
from services.doctor import Check
from tutelage.errors import ConfigError, OracleError, Unreachable
from tutelage.protocols import Oracle
from tutelage.types import EnvRecipe, Tree

EPISODES = 4
"""The states are of at least so many, in which by turns the expert and chance act."""
CLOSE = 1e-3
"""Numbers that differ by less, relatively or at all, are the same: batches round sums otherwise."""


@dataclass(frozen=True)
class Visit:
    """States and what the expert answered about each alone."""

    obs: Tree  # [N, ...]
    actions: Tree  # [N, ...]
    seconds: Sequence[float]  # [N]


def first_answer(oracle: Oracle, recipe: EnvRecipe, name: str) -> Tree:
    """The expert's action [1, ...] in a first state. Raises OracleError where it is no use."""
    env = make_env(recipe)
    try:
        obs, _ = env.reset(seed=0)
        return checked(oracle, env.observation_space, env.action_space, name).act(_stacked([obs]))
    finally:
        env.close()


def examine(spec: OracleSpec, recipe: EnvRecipe, *, states: int) -> Iterator[Check]:
    """The checks, each as soon as it is done; after a failure to answer there are no more."""
    if spec.asks_people:
        raise ConfigError(
            f"{spec.oracle}: people are not examined; a run asks them, with expert.oracle={spec.oracle}"
        )
    oracle, env, what = spec.build(recipe), make_env(recipe), "spaces"
    try:
        expert = checked(oracle, env.observation_space, env.action_space, spec.oracle)
        said = described(oracle, spec.oracle)
        known = said is not None and said.HasField("observation_space") and said.HasField("action_space")
        words = "those of the environment" if known else "the expert does not say"
        yield Check("spaces", "ok", words)
        what = "answers"
        visit = visited(env, expert, states)
        yield Check("answers", "ok", _fitted(oracle, expert, visit.obs))
        yield from _compared(expert, visit)
    except OracleError as error:
        spaces = f"observations {env.observation_space} and takes actions {env.action_space}"
        advice = f"{recipe.id} has {' '.join(spaces.split())}; the expert sees and answers N at once"
        yield Check(what, "failure", str(error), "" if isinstance(error, Unreachable) else advice)
    finally:
        env.close()


def visited(env: Any, expert: Oracle, states: int) -> Visit:
    """So many states of seeded episodes."""
    obs, actions, seconds = [], [], []
    for episode in itertools.count():
        following, _ = env.reset(seed=episode)
        env.action_space.seed(episode)
        for _ in range(-(-states // EPISODES)):
            if len(obs) == states:
                return Visit(_stacked(obs), _stacked(actions), seconds)
            start = time.perf_counter()
            answer = expert.act(_stacked([following]))
            seconds.append(time.perf_counter() - start)
            obs.append(following)
            actions.append(tree.map_structure(lambda leaf: leaf[0], answer))
            action = actions[-1] if episode % 2 == 0 else env.action_space.sample()
            following, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
    raise AssertionError("episodes never end")


def _stacked(parts: Sequence[Tree]) -> Tree:
    return tree.map_structure(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *parts)


def _fitted(oracle: Oracle, expert: CheckedOracle, obs: Tree) -> str:
    """What the expert answers, and what becomes of it."""
    with one_line(f"expert {expert.name} failed for {_length(obs)} states"):
        raw = tree.map_structure(np.asarray, oracle.act(obs))
    fitted = replace(expert, oracle=FunctionOracle(lambda _: raw)).act(obs)
    kinds = dict.fromkeys(f"{leaf.dtype} {leaf.shape[1:]}" for leaf in tree.flatten(raw))
    said = f"{', '.join(kinds)} in {' '.join(str(expert.action_space).split())}"
    wanted = dict.fromkeys(str(leaf.dtype) for leaf in tree.flatten(fitted))
    if [str(leaf.dtype) for leaf in tree.flatten(raw)] != [str(leaf.dtype) for leaf in tree.flatten(fitted)]:
        said += f", cast to {', '.join(wanted)}"
    clipped = _differ(raw, fitted)
    return f"{said}; {clipped} of {_length(obs)} were outside and are clipped" if clipped else said


def _compared(expert: Oracle, visit: Visit) -> Iterator[Check]:
    N = _length(visit.obs)
    start = time.perf_counter()
    together = expert.act(visit.obs)
    seconds = time.perf_counter() - start
    if changed := _differ(together, expert.act(visit.obs)):
        advice = "a state's answer must depend on it alone: give a seed, carry nothing over from call to call"
        found = f"{changed} of {N} answers were others when asked again"
        yield Check(
            "asked again", "failure", found, f"{advice}; leave it where chance is meant, as in noisy:"
        )
    else:
        yield Check("asked again", "ok", f"the same {N} answers")
        yield _in_batches(_differ(visit.actions, together), N)
    alone = 1e3 * float(np.median(visit.seconds))
    yield Check(
        "time", "ok", f"{alone:.3g} ms for a state alone, {1e3 * seconds / N:.3g} ms in a batch of {N}"
    )


def _in_batches(changed: int, N: int) -> Check:
    if not changed:
        return Check("batches", "ok", f"alone and in a batch of {N} the same")
    advice = "compute each row by itself: no mean over the batch, and nothing kept from the row before"
    return Check("batches", "failure", f"{changed} of {N} answers differ alone and in a batch", advice)


def _length(obs: Tree) -> int:
    return len(tree.flatten(obs)[0])


def _differ(a: Tree, b: Tree) -> int:
    """Of how many rows [N, ...] the answers differ."""
    pairs = zip(tree.flatten(a), tree.flatten(b), strict=True)
    same = [np.isclose(x, y, rtol=CLOSE, atol=CLOSE).reshape(len(x), -1).all(1) for x, y in pairs]
    return int((~np.all(same, axis=0)).sum())
