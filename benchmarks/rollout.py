"""Rollout collection, steps a CPU-second: `python -m benchmarks.rollout [--json] [CASE...]`.

64 environments, an MLP of 2×64 units, all columns stored, a seed for each episode. Beside it in the same
process: the same vector environment alone with actions drawn beforehand, and RLlib's stock runner.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from actors.collect import Collector
from actors.forward import actor, forward_of
from benchmarks import peers
from benchmarks.common import Row, interleaved, row, run
from learner.nets import PolicyModule
from tutelage.types import EnvRecipe

ENVS = 64
STEPS = {"CartPole-v1": 512, "HalfCheetah-v5": 64}


def ours(env_id: str, backend: str = "sync") -> Callable[[], object]:
    """Collect one rollout with a policy that samples."""
    collector = Collector(EnvRecipe(env_id, backend=backend), ENVS, reproducible=True)  # type: ignore[arg-type]
    envs = collector.envs
    module = PolicyModule(
        observation_space=envs.observation_space,
        action_space=envs.action_space,
        model_config={"value": False},
    )
    act = actor(forward_of(module), envs.action_space, explore=True, rng=np.random.default_rng(0))
    return partial(collector.collect, act, STEPS[env_id])


def bare(env_id: str) -> Callable[[], object]:
    """Step the vector environment alone; finished episodes are reset by mask, without a seed."""
    envs = SyncVectorEnv([lambda: gym.make(env_id)] * ENVS, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(STEPS[env_id])]

    def step() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            ended = terminated | truncated
            if ended.any():
                envs.reset(options={"reset_mask": ended})

    return step


def stock(env_id: str) -> Callable[[], Any]:
    """RLlib's own runner."""
    config = (
        PPOConfig()
        .environment(env_id)
        .env_runners(num_envs_per_env_runner=ENVS, rollout_fragment_length=STEPS[env_id])
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh"})
    )
    runner = SingleAgentEnvRunner(config=config)
    return lambda: runner.sample(num_timesteps=ENVS * STEPS[env_id])


def rows(env_id: str, *, reach_bare: float, reach_stock: float | None) -> Iterable[Row]:
    """Ours beside the bare environment and the stock runner."""
    steps = ENVS * STEPS[env_id]
    sides: dict[str, tuple[Callable[[], object], float | None]] = {
        "bare vector env": (bare(env_id), reach_bare),
        "RLlib's runner": (stock(env_id), reach_stock),
    }
    seconds = interleaved(ours(env_id), *(side for side, _ in sides.values()))
    for (against, (_, reach)), reference in zip(sides.items(), seconds[1:], strict=True):
        yield row(
            "rollout",
            env_id,
            ours=steps / seconds[0],
            against=against,
            reference=steps / reference,
            unit="steps/CPU-s",
            reach=reach,
        )


def beside_peer(env_id: str, case: str, *, backend: str = "sync", reach: float | None) -> Iterable[Row]:
    """Ours beside Stable-Baselines3's `collect_rollouts`, measured in an environment of its own."""
    (seconds,) = interleaved(ours(env_id, backend))
    peer = peers.measure(case)
    yield row(
        "rollout",
        env_id if backend == "sync" else f"{env_id} {backend}",
        ours=ENVS * STEPS[env_id] / seconds,
        against=peer["peer"],
        reference=peer["value"],
        unit=peer["unit"],
        reach=reach,
    )


CASES: dict[str, Any] = {
    "cartpole": partial(rows, "CartPole-v1", reach_bare=0.8, reach_stock=6),
    "halfcheetah": partial(rows, "HalfCheetah-v5", reach_bare=0.9, reach_stock=None),
    "cartpole-peer": partial(beside_peer, "CartPole-v1", "rollout-cartpole", reach=1.7),
    "cartpole-vectorised-peer": partial(
        beside_peer, "CartPole-v1", "rollout-cartpole", backend="vector_entry_point", reach=10
    ),
    "halfcheetah-peer": partial(beside_peer, "HalfCheetah-v5", "rollout-halfcheetah", reach=None),
}

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    torch.set_num_threads(1)
    run(CASES)
