"""Experts that runs in the tests are given: one that is slow, and some that are wrong."""

import time

import numpy as np

from expert_oracle.loading import OracleSpec


class SlowCartPole:
    """The scripted expert, taking its time over each call."""

    def __init__(self, seconds=0.05):
        self.seconds = seconds
        self.expert = OracleSpec("scripted:cartpole", {}).build()

    def act(self, obs):
        time.sleep(self.seconds)
        return self.expert.act(obs)


def nan(obs):
    return np.full((len(obs), 3), np.nan, np.float32)


def wrong_shape(obs):
    return np.zeros((len(obs), 2), np.float32)


def sometimes_nan(obs):
    """Fine for the single state of the first check, of the wrong type for a rollout."""
    return np.zeros(len(obs)) if len(obs) == 1 else np.full(len(obs), np.nan)
