"""The learner's update: `python -m benchmarks.learner [--json] [CASE...]`.

Behaviour cloning: 100,000 transitions of HalfCheetah's size, minibatch 256, one pass, beside a bare torch
loop with fused Adam. PPO: one iteration of 4,096 steps on CartPole with 16 environments, 10 epochs,
minibatch 256, collection included, beside RLlib's own PPO.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from benchmarks import peers
from benchmarks.common import Row, interleaved, row, run
from learner.learner import MethodLearner
from services.trainer import TrainerConfig
from tutelage.types import Demonstrations

ROWS, MINIBATCH = 100_000, 256


def transitions() -> tuple[np.ndarray, np.ndarray]:
    """Observations [ROWS, 17] and actions [ROWS, 6]."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS, 17), np.float32)
    return obs, np.tanh(obs[:, :6]).astype(np.float32)


def our_bc(folder: Path) -> Callable[[], object]:
    """One update of our learner, its dataset on disk."""
    env = gym.make("HalfCheetah-v5")
    config = TrainerConfig().environment("HalfCheetah-v5").method("bc").storage(run_directory=folder)
    config.training(num_epochs=1, minibatch_size=MINIBATCH)
    spaces = {DEFAULT_MODULE_ID: (env.observation_space, env.action_space)}
    learner = MethodLearner(config=config, module_spec=config.get_multi_rl_module_spec(spaces=spaces))
    learner.build()
    assert learner.dataset is not None
    learner.dataset.append_demonstrations(Demonstrations(*transitions(), source="benchmark"), key="all")
    return partial(learner.update, [], key="", seed=0, env_steps=0)


def bare_bc() -> Callable[[], object]:
    """The same network, loss and optimiser in a loop of ten lines."""
    obs, actions = map(torch.from_numpy, transitions())
    net = nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6))
    log_std = nn.Parameter(torch.zeros(6))
    optimiser = torch.optim.Adam([*net.parameters(), log_std], lr=1e-3, fused=True)
    mean, std = obs.mean(0), obs.std(0)

    def epoch() -> None:
        order = torch.randperm(ROWS)
        shuffled_obs, shuffled_actions = obs[order], actions[order]
        for start in range(0, ROWS, MINIBATCH):
            x = ((shuffled_obs[start : start + MINIBATCH] - mean) / std).clamp(-10, 10)
            z = (shuffled_actions[start : start + MINIBATCH] - net(x)) * torch.exp(-log_std)
            loss = (0.5 * z * z + log_std).sum(-1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return epoch


def bc() -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = interleaved(our_bc(Path(folder)), bare_bc())
    yield row(
        "learner",
        f"BC, {ROWS:,} transitions",
        ours=ROWS / ours,
        against="bare torch loop",
        reference=ROWS / bare,
        unit="samples/CPU-s",
        reach=0.9,
    )


def our_ppo(env_id: str) -> Any:
    """A trainer whose `train()` is one iteration."""
    return (
        TrainerConfig()
        .environment(env_id)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16, rollout_fragment_length=256)
        .method("ppo")
        .training(minibatch_size=MINIBATCH, num_epochs=10)
        .evaluation(evaluation_interval=None)
        .build_algo()
    )


def ppo() -> Iterable[Row]:
    stock = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16)
        .training(train_batch_size_per_learner=4096, minibatch_size=MINIBATCH, num_epochs=10)
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh"})
        .build_algo()
    )
    seconds, reference = interleaved(our_ppo("CartPole-v1").train, stock.train)
    yield row(
        "learner",
        "PPO iteration on CartPole, 4,096 steps",
        ours=seconds,
        against="RLlib's PPO",
        reference=reference,
        unit="CPU-s",
        reach=4,
        smaller_is_better=True,
    )


def bc_beside_peer() -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        (ours,) = interleaved(our_bc(Path(folder)))
    peer = peers.measure("bc")
    yield row(
        "learner",
        f"BC, {ROWS:,} transitions",
        ours=ROWS / ours,
        against=peer["peer"],
        reference=peer["value"],
        unit=peer["unit"],
        reach=5,
    )


def ppo_beside_peer() -> Iterable[Row]:
    (ours,) = interleaved(our_ppo("HalfCheetah-v5").train)
    peer = peers.measure("ppo")
    yield row(
        "learner",
        "PPO iteration on HalfCheetah, 4,096 steps",
        ours=ours,
        against=peer["peer"],
        reference=peer["value"],
        unit=peer["unit"],
        reach=2,
        smaller_is_better=True,
    )


CASES: dict[str, Any] = {"bc": bc, "ppo": ppo, "bc-peer": bc_beside_peer, "ppo-peer": ppo_beside_peer}

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    run(CASES)
