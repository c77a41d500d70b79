"""An expert in the `expert-mlp/1` format (NAME.npz and NAME.json) as a policy of Stable-Baselines3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "identity": lambda x: x}
Act = Callable[[np.ndarray], np.ndarray]


class ExpertPolicy(BasePolicy):
    """Acts deterministically, in numpy, a whole batch in one forward."""

    def __init__(self, path: str, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        super().__init__(observation_space, action_space)
        self.meta = json.loads(Path(path).with_suffix(".json").read_text())
        self.arrays = dict(np.load(path, allow_pickle=False))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions [N, ...] for observations [N, D]."""
        x = obs.astype(np.float32)[:, : self.meta["obs_dim"]]
        if self.meta.get("obs_norm"):
            x = (x - self.arrays["obs_mean"]) / self.arrays["obs_std"]
            if self.meta["obs_norm"].get("clip"):
                x = np.clip(x, -self.meta["obs_norm"]["clip"], self.meta["obs_norm"]["clip"])
        for layer in self.meta["layers"]:
            x = ACTIVATIONS[layer["activation"]](x @ self.arrays[layer["W"]] + self.arrays[layer["b"]])
        if self.meta["output"] == "argmax":
            return x.argmax(-1)
        if self.meta["output"] == "clip":
            return np.clip(x, self.action_space.low, self.action_space.high)
        raise ValueError(f"{self.meta['name']}: output {self.meta['output']!r} is not supported here")

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return torch.as_tensor(self.act(observation.numpy()))


def mean_return(
    act: Callable[[np.ndarray], np.ndarray], env_id: str, *, seed: int, episodes: int = 20
) -> float:
    """Mean undiscounted return of episodes that begin with the seeds `seed`, `seed` + 1, ..."""
    envs = gymnasium.make_vec(env_id, num_envs=episodes, vectorization_mode="sync")
    obs, _ = envs.reset(seed=[seed + i for i in range(episodes)])
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        returns += rewards * running
        running &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())
