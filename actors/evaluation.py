"""Whole episodes, played to measure a policy."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from actors.environments import Act, columns, make_env, put, rows, to_env
from tutelage.types import Array, EnvRecipe


def evaluate(act: Act, recipe: EnvRecipe, seeds: Sequence[int], num_envs: int = 8) -> tuple[Array, Array]:
    """Undiscounted returns [n] float64 and lengths [n] int64 of one whole episode for each seed."""
    envs = [make_env(recipe) for _ in range(min(num_envs, len(seeds)))]
    try:
        return play(act, envs, seeds)
    finally:
        for env in envs:
            env.close()


def play(act: Act, envs: Sequence[gym.Env], seeds: Sequence[int]) -> tuple[Array, Array]:
    """As `evaluate`, in environments that are there. Every episode that is begun counts, long or short."""
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    if not len(seeds):
        return returns, lengths
    obs = columns(envs[0].observation_space, len(envs))
    waiting = iter(range(len(seeds)))
    playing: list[tuple[gym.Env, int]] = []  # in the order of obs, each with the number of its episode
    for env, n in zip(envs, waiting, strict=False):
        put(obs, len(playing), env.reset(seed=int(seeds[n]))[0])
        playing.append((env, n))
    while playing:
        actions = to_env(envs[0].action_space, act(rows(obs, slice(len(playing)))))
        for i in reversed(range(len(playing))):
            env, n = playing[i]
            observation, reward, terminated, truncated, _ = env.step(actions[i])
            returns[n] += float(reward)
            lengths[n] += 1
            put(obs, i, observation)
            if not (terminated or truncated):
                continue
            n = next(waiting, None)
            if n is not None:
                put(obs, i, env.reset(seed=int(seeds[n]))[0])
                playing[i] = (env, n)
                continue
            put(obs, i, rows(obs, len(playing) - 1))
            playing[i] = playing[-1]
            playing.pop()
    return returns, lengths
