"""Tasks that no environment rewards, as scripted teachers have them in mind: from the observations [L, D] and
actions [L, ...] of a segment to rewards [L].

    tutelage train preference-halfcheetah feedback.arguments.reward=expert_oracle.tasks:backwards
"""

from __future__ import annotations

import numpy as np

from tutelage.types import Array


def upright(obs: Array, actions: Array) -> Array:
    """CartPole: an upright pole on a cart in the middle; 1 at best, less the more it leans or is off."""
    return 1 - np.abs(obs[:, 2]) / 0.2095 - np.abs(obs[:, 0]) / 2.4


def backwards(obs: Array, actions: Array) -> Array:
    """HalfCheetah: to run backwards, in m/s, with HalfCheetah's own cost of effort."""
    return -obs[:, 8] - 0.1 * (actions.clip(-1, 1) ** 2).sum(1)


def backflip(obs: Array, actions: Array) -> Array:
    """Hopper: to turn backwards in the air, in rad/s of its torso, the higher the better.

    Christiano et al. (2017) got one from 900 answers of people. The environment must not end when the hopper
    leans: `environment.env_config.terminate_when_unhealthy=false`.
    """
    height, spin = obs[:, 0], obs[:, 7]
    return -spin.clip(-10, 10) * (height > 0.7) + 2 * height
