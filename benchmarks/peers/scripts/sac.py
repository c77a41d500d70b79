"""Updates of Stable-Baselines3's SAC, without the environment's steps."""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version

import torch
from stable_baselines3 import SAC


def main(env: str, seed: int, width: int, updates: int = 200, repeats: int = 5) -> dict:
    torch.set_num_threads(1)
    settings = {"net_arch": [width, width]}
    model = SAC("MlpPolicy", env, policy_kwargs=settings, learning_starts=1000, seed=seed, device="cpu")
    model.learn(1001)  # fills the replay
    rates = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.process_time()
        model.train(gradient_steps=updates, batch_size=256)
        rates.append(updates / (time.process_time() - start))
    return {
        "peer": f"stable-baselines3 {version('stable-baselines3')}",
        "value": round(statistics.median(rates[1:]), 1),
        "unit": "updates/CPU-s",
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
