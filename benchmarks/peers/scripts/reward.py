"""`imitation`'s EnsembleTrainer: passes over 700 comparisons of segments of 50 steps, three networks of
two layers.

The segments are random numbers of the environment's shapes: the speed does not depend on their values.
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
from imitation.algorithms.preference_comparisons import (
    CrossEntropyRewardLoss,
    EnsembleTrainer,
    PreferenceDataset,
    PreferenceModel,
)
from imitation.data.types import TrajectoryWithRew
from imitation.rewards.reward_nets import BasicRewardNet, RewardEnsemble
from imitation.util.logger import configure


def main(
    env: str,
    seed: int,
    width: int,
    comparisons: int = 700,
    steps: int = 50,
    members: int = 3,
    batch: int = 64,
    repeats: int = 3,
) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    made = gymnasium.make(env)
    spaces = made.observation_space, made.action_space
    nets = [BasicRewardNet(*spaces, hid_sizes=(width, width)) for _ in range(members)]
    dataset = PreferenceDataset()
    pairs = [(_random(*spaces, steps, rng), _random(*spaces, steps, rng)) for _ in range(comparisons)]
    dataset.push(pairs, rng.integers(0, 2, comparisons).astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        trainer = EnsembleTrainer(
            PreferenceModel(RewardEnsemble(*spaces, nets), noise_prob=0.1),
            CrossEntropyRewardLoss(),
            rng,
            batch_size=batch,
            custom_logger=configure(folder, format_strs=[]),
        )
        rates = []
        for _ in range(repeats + 1):  # the first warms up
            start = time.process_time()
            trainer.train(dataset)
            rates.append(comparisons / (time.process_time() - start))
    return {
        "peer": f"imitation {version('imitation')}",
        "value": round(statistics.median(rates[1:]), 1),
        "unit": "comparisons/CPU-s",
    }


def _random(
    observations: gymnasium.Space, actions: gymnasium.Space, steps: int, rng: np.random.Generator
) -> TrajectoryWithRew:
    return TrajectoryWithRew(
        obs=rng.standard_normal((steps + 1, *observations.shape)),
        acts=rng.uniform(-1, 1, (steps, *actions.shape)).astype(np.float32),
        infos=None,
        terminal=False,
        rews=rng.standard_normal(steps).astype(np.float32),
    )


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
