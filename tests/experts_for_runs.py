"""Experts that runs in the tests are given: one that is slow, and some that are wrong."""

import time
from pathlib import Path

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


class OneFails:
    """Two of these share a folder: the first that is asked about a rollout answers, the other refuses."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.expert = OracleSpec("scripted:cartpole", {}).build()
        self.answers = None

    def act(self, obs):
        if len(obs) > 4 and self.answers is None:
            self.answers = self._is_first()
        if self.answers is False:
            raise RuntimeError("had enough")
        return self.expert.act(obs)

    def _is_first(self):
        try:
            (self.folder / "taken").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Counting:
    """The scripted expert, which notes in a file how many states of rollouts it was asked about."""

    def __init__(self, file):
        self.file = Path(file)
        self.expert = OracleSpec("scripted:cartpole", {}).build()

    def act(self, obs):
        if len(obs) > 4:
            with self.file.open("ab") as file:
                file.write(b"." * len(obs))
        return self.expert.act(obs)


class FailsAfter:
    """The scripted expert, for so many calls."""

    def __init__(self, calls):
        self.left, self.expert = calls, OracleSpec("scripted:cartpole").build()

    def act(self, obs):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("gone")
        return self.expert.act(obs)
