"""One iteration of Stable-Baselines3's PPO: 4,096 steps of 8 environments, 10 epochs, minibatches of 256."""

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


def main(env: str, seed: int, num_envs: int = 8, steps: int = 4096, repeats: int = 5) -> dict:
    torch.set_num_threads(1)
    rows = steps // num_envs
    venv = make_vec_env(env, num_envs, seed=seed)
    model = PPO("MlpPolicy", venv, n_steps=rows, n_epochs=10, batch_size=256, seed=seed, device="cpu")
    model._setup_learn(steps * (repeats + 1))
    callback = CallbackList([])
    callback.init_callback(model)
    collect, update = [], []
    for _ in range(repeats + 1):  # the first warms up
        start = time.process_time()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, rows)
        middle = time.process_time()
        model.train()
        collect.append(middle - start)
        update.append(time.process_time() - middle)
    collect_s, update_s = statistics.median(collect[1:]), statistics.median(update[1:])
    return {
        "peer": f"stable-baselines3 {version('stable-baselines3')}",
        "value": round(collect_s + update_s, 3),
        "unit": "CPU-s",
        "collect": round(collect_s, 3),
        "update": round(update_s, 3),
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
