"""`imitation`'s SimpleDAggerTrainer until it acts as well as 95 % of its expert.

It stops when two disjoint sets of 20 deterministic episodes are both at 95 % of the expert's return on the
same seeds. The CPU time is that of the rounds alone, without imports and evaluations. A step costs a label.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
import torch
from expert import ExpertPolicy, mean_return
from imitation.algorithms.bc import BC
from imitation.algorithms.dagger import SimpleDAggerTrainer
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.util.logger import configure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv

SEED_SETS = (1000, 5000)


def main(
    env: str,
    expert: str,
    seed: int,
    batch_size: int = 128,
    num_envs: int = 1,
    round_steps: int = 500,
    max_rounds: int = 40,
) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    venv = make_vec_env(env, num_envs, seed=seed, wrapper_class=RolloutInfoWrapper)
    teacher = ExpertPolicy(expert, venv.observation_space, venv.action_space)
    bars = [0.95 * mean_return(teacher.act, env, seed=first) for first in SEED_SETS]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(venv, teacher, scratch, batch_size, rng)
        seconds, returns, reached, rounds = 0.0, [], False, 0
        while not reached and rounds < max_rounds:
            start = time.process_time()
            trainer.train(
                1,  # at least one step: exactly one round
                rollout_round_min_episodes=1,
                rollout_round_min_timesteps=round_steps,
                bc_train_kwargs={"n_epochs": 4, "log_rollouts_venv": None, "progress_bar": False},
            )
            seconds += time.process_time() - start
            rounds += 1
            returns, reached = _evaluate(trainer.policy, env, bars)
        labels = sum(len(trajectory) for trajectory in trainer._all_demos)
    return {
        "peer": f"imitation {version('imitation')}",
        "value": round(seconds, 3),
        "unit": "CPU-s",
        "labels": labels,
        "rounds": rounds,
        "reached": reached,
        "returns": [round(value, 1) for value in returns],
        "expert_returns": [round(bar / 0.95, 1) for bar in bars],
    }


def _trainer(
    venv: VecEnv, teacher: ExpertPolicy, scratch: str, batch_size: int, rng: np.random.Generator
) -> SimpleDAggerTrainer:
    silent = configure(scratch, format_strs=[])
    policy = ActorCriticPolicy(venv.observation_space, venv.action_space, lambda _: 1e-3, net_arch=[64, 64])
    bc = BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=policy,
        batch_size=batch_size,
        custom_logger=silent,
    )
    return SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=scratch,
        expert_policy=teacher,
        rng=rng,
        bc_trainer=bc,
        custom_logger=silent,
    )


def _evaluate(policy: BasePolicy, env: str, bars: list[float]) -> tuple[list[float], bool]:
    """Returns on the sets of seeds, the second only where the first is good enough; whether both are."""

    def act(obs: np.ndarray) -> np.ndarray:
        return policy.predict(obs, deterministic=True)[0]

    returns = [mean_return(act, env, seed=SEED_SETS[0])]
    if returns[0] < bars[0]:
        return returns, False
    returns.append(mean_return(act, env, seed=SEED_SETS[1]))
    return returns, returns[1] >= bars[1]


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
