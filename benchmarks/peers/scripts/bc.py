"""`imitation`'s BC.train: one pass over 100,000 transitions in minibatches of 256, an MLP of 2 x 64.

The transitions are random numbers of the environment's shapes: the speed does not depend on their values.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import version

import gymnasium
import numpy as np
import torch
from imitation.algorithms.bc import BC
from imitation.data.types import Transitions
from imitation.util.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy


def main(env: str, seed: int, transitions: int = 100_000, batch: int = 256, repeats: int = 5) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    spaces = gymnasium.make(env)
    policy = ActorCriticPolicy(
        spaces.observation_space, spaces.action_space, lambda _: 1e-3, net_arch=[64, 64]
    )
    with tempfile.TemporaryDirectory() as folder:
        bc = BC(
            observation_space=spaces.observation_space,
            action_space=spaces.action_space,
            rng=rng,
            policy=policy,
            demonstrations=_random(spaces, transitions, rng),
            batch_size=batch,
            custom_logger=configure(folder, format_strs=[]),
        )
        rates = []
        for _ in range(repeats + 1):  # the first warms up
            start = time.process_time()
            bc.train(n_epochs=1, progress_bar=False)
            rates.append(transitions / (time.process_time() - start))
    return {
        "peer": f"imitation {version('imitation')}",
        "value": round(statistics.median(rates[1:])),
        "unit": "samples/CPU-s",
    }


def _random(env: gymnasium.Env, count: int, rng: np.random.Generator) -> Transitions:
    obs = rng.standard_normal((count, *env.observation_space.shape), np.float32)
    acts = rng.uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)
    infos = np.array([{}] * count)
    return Transitions(obs=obs, acts=acts, infos=infos, next_obs=obs, dones=np.zeros(count, bool))


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
