"""Stable-Baselines3's PPO collecting rollouts: 64 environments in one process, an MLP of 2 x 64."""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env


def main(env: str, seed: int, num_envs: int = 64, steps: int = 256, repeats: int = 5) -> dict:
    torch.set_num_threads(1)
    venv = make_vec_env(env, num_envs, seed=seed)
    model = PPO("MlpPolicy", venv, n_steps=steps, seed=seed, device="cpu")
    model._setup_learn(num_envs * steps * (repeats + 1))
    callback = CallbackList([])
    callback.init_callback(model)
    rates = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.process_time()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, steps)
        rates.append(num_envs * steps / (time.process_time() - start))
    return {
        "peer": f"stable-baselines3 {version('stable-baselines3')}",
        "value": round(statistics.median(rates[1:])),
        "unit": "steps/CPU-s",
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
