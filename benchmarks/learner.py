"""The learner's update: `python -m benchmarks.learner [--json] [CASE...]`.

Behaviour cloning: 100,000 transitions of HalfCheetah's size, minibatch 256, one pass, beside a bare torch
loop with fused Adam. PPO: one iteration of 4,096 steps on CartPole with 16 environments, 10 epochs,
minibatch 256, collection included, beside RLlib's own PPO. SAC: updates of minibatches of 256, each with a
step of Pendulum, two layers of 64, beside RLlib's own SAC. `bc-10m`: the same learner in a process of its own
on 10 million transitions on disk (1.4 GB in the folder for temporary files) and on some in memory, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from benchmarks import peers
from benchmarks.common import Row, cpu_seconds, interleaved, row, run
from benchmarks.dataset import BLOCK, fill
from learner.dataset import Dataset
from learner.learner import CHUNK_ROWS, MethodLearner
from services.trainer_config import TrainerConfig
from tutelage.types import Demonstrations

ROWS, MINIBATCH = 100_000, 256
SAC_UPDATES, RLLIB_UPDATES = 200, 20
LARGE_ROWS, LARGE_CHUNKS = 10_000_000, 43  # chunks learned from: two of the seven parts that are read at once
LARGE_MB = 2_000


def transitions() -> tuple[np.ndarray, np.ndarray]:
    """Observations [ROWS, 17] and actions [ROWS, 6]."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS, 17), np.float32)
    return obs, np.tanh(obs[:, :6]).astype(np.float32)


def bc_learner(folder: Path) -> MethodLearner:
    """Our learner on the dataset in a run's folder."""
    env = gym.make("HalfCheetah-v5")
    config = TrainerConfig().environment("HalfCheetah-v5").method("bc").storage(run_directory=folder)
    config.training(num_epochs=1, minibatch_size=MINIBATCH)
    spaces = {DEFAULT_MODULE_ID: (env.observation_space, env.action_space)}
    learner = MethodLearner(config=config, module_spec=config.get_multi_rl_module_spec(spaces=spaces))
    learner.build()
    return learner


def our_bc(folder: Path) -> Callable[[], object]:
    """One update of our learner, its dataset on disk."""
    learner = bc_learner(folder)
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


def bc_from_disk() -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "disk" / "dataset", rows=LARGE_ROWS, block=BLOCK)
        fill(Path(folder) / "memory" / "dataset", rows=2 * CHUNK_ROWS, block=CHUNK_ROWS)
        learn = f"from benchmarks.learner import learn_in_turns; learn_in_turns({folder!r})"
        done = subprocess.run([sys.executable, "-c", learn], stdout=subprocess.PIPE, text=True, check=True)
    seconds = json.loads(done.stdout.splitlines()[-1])
    samples = LARGE_CHUNKS * CHUNK_ROWS
    yield row(
        "learner",
        f"BC, {LARGE_ROWS:,} transitions on disk",
        ours=samples / seconds["disk"],
        against="the same, all in memory",
        reference=samples / seconds["memory"],
        unit="samples/CPU-s",
        reach=0.8,
    )
    yield row(
        "learner",
        f"peak memory of BC, {LARGE_ROWS:,} transitions on disk",
        ours=seconds["peak_mb"],
        against="limit",
        reference=LARGE_MB,
        unit="MB",
        reach=1,
        smaller_is_better=True,
    )


def learn_in_turns(folder: str) -> None:
    """Print the CPU seconds that equally many samples take from the disk and from memory, and the peak
    memory of this process, as JSON."""
    torch.set_num_threads(1)
    learners = {"disk": bc_learner(Path(folder) / "disk"), "memory": bc_learner(Path(folder) / "memory")}
    learners["memory"].update([], key="", seed=0, env_steps=0)  # warms up
    learners["memory"].config.num_epochs = LARGE_CHUNKS
    chunks = {
        name: learner._chunks_of_dataset(dataset_of(learner), seed=0) for name, learner in learners.items()
    }
    seconds = dict.fromkeys(learners, 0.0)
    for _ in range(LARGE_CHUNKS):
        for name, learner in learners.items():
            seconds[name] += cpu_seconds(partial(learner._descend, islice(chunks[name], 1)))
    print(json.dumps({**seconds, "peak_mb": peak_mb()}))


def dataset_of(learner: MethodLearner) -> Dataset:
    assert learner.dataset is not None
    return learner.dataset


def peak_mb() -> float:
    """Of this process; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


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


def our_sac(env_id: str, width: int) -> Callable[[], object]:
    """SAC_UPDATES updates, each with a step of the environment."""
    trainer = (
        TrainerConfig()
        .environment(env_id)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, rollout_fragment_length=SAC_UPDATES // 4)
        .method("sac", first_steps=1, replay=ROWS)
        .rl_module(model_config={"fcnet_hiddens": [width, width]})
        .evaluation(evaluation_interval=None)
        .build_algo()
    )
    return trainer.train


def rllib_sac(env_id: str, width: int) -> Callable[[], object]:
    """RLLIB_UPDATES of RLlib's, likewise."""
    trainer = (
        SACConfig()
        .environment(env_id)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1, rollout_fragment_length=1)
        .training(
            train_batch_size_per_learner=MINIBATCH,
            num_steps_sampled_before_learning_starts=MINIBATCH,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": ROWS},
        )
        .rl_module(
            model_config={
                "fcnet_hiddens": [width, width],
                "fcnet_activation": "relu",
                "head_fcnet_hiddens": [],
            }
        )
        .reporting(min_sample_timesteps_per_iteration=RLLIB_UPDATES, min_time_s_per_iteration=0)
        .build_algo()
    )
    for _ in range(-(-MINIBATCH // RLLIB_UPDATES)):  # until it learns
        trainer.train()
    return trainer.train


def sac() -> Iterable[Row]:
    ours, theirs = interleaved(our_sac("Pendulum-v1", 64), rllib_sac("Pendulum-v1", 64))
    yield row(
        "learner",
        "SAC on Pendulum, 2 × 64, a step each",
        ours=SAC_UPDATES / ours,
        against="RLlib's SAC",
        reference=RLLIB_UPDATES / theirs,
        unit="updates/CPU-s",
        reach=4,
    )


def sac_beside_peer() -> Iterable[Row]:
    for env_id, width in (("Pendulum-v1", 64), ("HalfCheetah-v5", 256)):
        (ours,) = interleaved(our_sac(env_id, width))
        peer = peers.measure(f"sac-{width}")
        yield row(
            "learner",
            f"SAC of {env_id}'s size, 2 × {width}",
            ours=SAC_UPDATES / ours,
            against=peer["peer"],
            reference=peer["value"],
            unit=peer["unit"],
            reach=1,
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


CASES: dict[str, Any] = {
    "bc": bc,
    "ppo": ppo,
    "sac": sac,
    "bc-10m": bc_from_disk,
    "bc-peer": bc_beside_peer,
    "ppo-peer": ppo_beside_peer,
    "sac-peer": sac_beside_peer,
}

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    run(CASES)
