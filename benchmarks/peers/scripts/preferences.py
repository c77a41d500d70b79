"""`imitation`'s PreferenceComparisons with PPO: the true return after so many labels and steps of the env.

The steps are counted in the environment, those for fragments and in episodes that are finished for them too:
`train(total_timesteps=N)` makes far more than N. Rounds are added until the budget is spent or a little more.
PPO has our presets' settings, and the teacher is as perfect as ours: it always prefers the larger return
(temperature 0). The rest is as `imitation` has it: the reward normalised by NormalizedRewardNet and fitted in
3 epochs a round (its own script for preferences), in 200 times as many at first, a tenth of the labels before
the first round and the others by a hyperbolic schedule, no fragments explored for (the defaults).
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
import torch
from expert import mean_return
from imitation.algorithms.preference_comparisons import (
    AgentTrainer,
    BasicRewardTrainer,
    CrossEntropyRewardLoss,
    PreferenceComparisons,
    PreferenceModel,
    RandomFragmenter,
    SyntheticGatherer,
)
from imitation.policies.base import NormalizeFeaturesExtractor
from imitation.rewards.reward_nets import BasicRewardNet, NormalizedRewardNet
from imitation.util.logger import configure
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper

ROLLOUT = 2048  # steps that PPO learns from at once


class Counted(VecEnvWrapper):
    """Environments that know how many steps they have made."""

    steps = 0

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> tuple:
        self.steps += self.num_envs
        return self.venv.step_wait()


def main(
    env: str,
    seed: int,
    labels: int,
    env_steps: int,
    segment: int,
    ppo: dict,
    lr: tuple[float, float],
    rollouts_a_round: int,
    horizon: int,
    num_envs: int = 8,
    log_std_init: float = 0.0,
) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    venv = Counted(make_vec_env(env, num_envs, seed=seed))
    agent = PPO(
        "MlpPolicy",
        venv,
        learning_rate=lambda _: lr[0] + (lr[1] - lr[0]) * min(1.0, venv.steps / env_steps),
        n_steps=ROLLOUT // num_envs,
        n_epochs=10,
        policy_kwargs={
            "features_extractor_class": NormalizeFeaturesExtractor,
            "net_arch": [64, 64],
            "log_std_init": log_std_init,
        },
        seed=seed,
        device="cpu",
        **ppo,
    )
    round_steps = rollouts_a_round * ROLLOUT
    rounds = math.ceil((env_steps - num_envs * horizon) / round_steps)  # after whole episodes of each
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(venv, agent, segment, rounds - 1, rng, folder)
        trainer.train((rounds - 1) * round_steps, labels)  # it trains the agent once more than it is told
    seconds, steps = time.process_time() - start, venv.steps

    def act(obs: np.ndarray) -> np.ndarray:
        return agent.predict(obs, deterministic=True)[0]

    return {
        "peer": f"imitation {version('imitation')}",
        "value": round(mean_return(act, env, seed=1000), 1),
        "unit": "return",
        "labels": len(trainer.dataset),
        "env_steps": steps,
        "agent_steps": agent.num_timesteps,
        "cpu_s": round(seconds, 1),
    }


def _trainer(
    venv: Counted, agent: PPO, segment: int, iterations: int, rng: np.random.Generator, folder: str
) -> PreferenceComparisons:
    net = BasicRewardNet(
        venv.observation_space, venv.action_space, hid_sizes=(64, 64), normalize_input_layer=RunningNorm
    )
    reward = NormalizedRewardNet(net, RunningNorm)
    return PreferenceComparisons(
        AgentTrainer(agent, reward, venv, rng=rng, exploration_frac=0.0),
        reward,
        num_iterations=iterations,
        fragmenter=RandomFragmenter(rng, warning_threshold=0),
        preference_gatherer=SyntheticGatherer(temperature=0, rng=rng),
        reward_trainer=BasicRewardTrainer(PreferenceModel(reward), CrossEntropyRewardLoss(), rng, epochs=3),
        fragment_length=segment,
        transition_oversampling=1,
        initial_comparison_frac=0.1,
        custom_logger=configure(folder, format_strs=[]),
        allow_variable_horizon=True,
    )


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
