"""Exact replay: an episode is its environment's recipe, its seed and its actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import tree

from actors.environments import EXACT, columns, concatenated, make_env, put, rows, to_env
from tutelage.types import Array, EnvRecipe, Episodes, Rollout, Tree

TEST_EPISODES = 8
TEST_STEPS = 50  # of each: an environment that remembers differs within a few


@dataclass(frozen=True)
class Recorded:
    """One episode from its beginning. Made by: cut, replay. Eaten by: clips, query sampler."""

    seed: int
    obs: Tree  # [L+1, ...], the last is where it ended or was left
    actions: Tree  # [L, ...]
    rewards: Array  # [L] float32
    terminated: bool
    truncated: bool


def replay(recipe: EnvRecipe, seed: int, actions: Array) -> Recorded:
    """The episode of `actions` [L, ...] in a fresh environment; shorter than L if it ends sooner."""
    env = make_env(recipe)
    try:
        return _play(env, seed, actions)
    finally:
        env.close()


def _play(env: gym.Env, seed: int, actions: Array) -> Recorded:
    """As `replay`, in an environment that is there."""
    obs, rewards = columns(env.observation_space, len(actions) + 1), np.zeros(len(actions), np.float32)
    put(obs, 0, env.reset(seed=seed)[0])
    t, terminated, truncated = 0, False, False
    for action in to_env(env.action_space, actions):
        observation, rewards[t], terminated, truncated, _ = env.step(action)
        t += 1
        put(obs, t, observation)
        if terminated or truncated:
            break
    return Recorded(
        seed, rows(obs, slice(t + 1)), actions[:t], rewards[:t], bool(terminated), bool(truncated)
    )


def is_reproducible(recipe: EnvRecipe) -> bool:
    """Whether episodes can be replayed: those of a reused environment are played again, each in a fresh one,
    and compared bit for bit. Vectorised backends do not seed their episodes, hence are not."""
    if recipe.backend not in EXACT:
        return False
    reused = make_env(recipe)
    reused.action_space.seed(0)
    try:
        for seed in range(TEST_EPISODES):
            actions = np.stack([reused.action_space.sample() for _ in range(TEST_STEPS)])
            if not same(_play(reused, seed, actions), replay(recipe, seed, actions)):
                return False
    finally:
        reused.close()
    return True


def same(a: Recorded, b: Recorded) -> bool:
    """Equal bit for bit."""
    if (a.terminated, a.truncated, len(a.rewards)) != (b.terminated, b.truncated, len(b.rewards)):
        return False
    pairs = zip(tree.flatten((a.obs, a.rewards)), tree.flatten((b.obs, b.rewards)), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


def cut(rollouts: Sequence[Rollout], index: int, entry: int) -> Recorded:
    """The episode of entry `entry` in the table of `rollouts[index]`, from its beginning.

    `rollouts` are consecutive ones of one runner. Raises ValueError if the episode begins before the first.
    """
    episodes = rollouts[index].episodes
    b = int(episodes.slot[entry])
    parts = _parts(rollouts, index, entry)
    rollout, end = rollouts[index], int(episodes.end[entry])
    last = rows(rollout.obs, (slice(end, end + 1), b))
    if episodes.done[entry]:
        last = rows(rollout.final_obs, (rollout.final_t == end - 1) & (rollout.final_b == b))
    return Recorded(
        seed=int(episodes.seed[entry]),
        obs=concatenated([*(rows(part.obs, (steps, b)) for part, steps in parts), last]),
        actions=concatenated([rows(part.actions, (steps, b)) for part, steps in parts]),
        rewards=concatenated([part.rewards[steps, b] for part, steps in parts]),
        terminated=bool(rollout.terminated[end - 1, b]),
        truncated=bool(rollout.truncated[end - 1, b]),
    )


def _parts(rollouts: Sequence[Rollout], index: int, entry: int) -> list[tuple[Rollout, slice]]:
    """The rollouts that an episode runs through up to `entry` of `rollouts[index]`, and its rows in each."""
    parts: list[tuple[Rollout, slice]] = []
    while True:
        episodes = rollouts[index].episodes
        parts.insert(0, (rollouts[index], slice(int(episodes.start[entry]), int(episodes.end[entry]))))
        if episodes.offset[entry] == 0:
            return parts
        if index == 0:
            raise ValueError("the episode begins before the first of these rollouts")
        index, entry = index - 1, _continued(rollouts[index - 1].episodes, episodes, entry)


def _continued(before: Episodes, after: Episodes, entry: int) -> int:
    """The entry of `before` that goes on as `entry` of `after`."""
    same_slot = (before.slot == after.slot[entry]) & (before.seed == after.seed[entry])
    found = np.flatnonzero(same_slot & ~before.done & (before.length == after.offset[entry]))
    if len(found) != 1:
        raise ValueError("the rollouts are not consecutive ones of the same runner")
    return int(found[0])
