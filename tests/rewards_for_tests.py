"""Rewards that teachers of tests have in mind and nobody else sees."""

import numpy as np


def upright(obs, actions):
    """An upright, centred pole of CartPole: 1 at best, less the more it leans and the farther it is off."""
    return 1 - np.abs(obs[:, 2]) / 0.2 - np.abs(obs[:, 0]) / 2.4
