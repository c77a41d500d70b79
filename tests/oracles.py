"""Small experts for tests of loading and of the service."""

import threading
import time

import numpy as np


def first_two(obs):
    return obs[:, :2]


def offset(obs, *, by=0.0):
    return obs[:, :2] + by


class Planner:
    """An expert with arguments."""

    def __init__(self, horizon, *, seed=0):
        self.horizon, self.seed = horizon, seed

    def act(self, obs):
        return np.full((len(obs), 2), self.horizon, np.float32)


class Slow:
    """Takes its time, refuses negative numbers, and notes how large its batches were."""

    def __init__(self, seconds=0.01):
        self.seconds = seconds
        self.batches = []

    def act(self, obs):
        time.sleep(self.seconds)
        self.batches.append(len(obs))
        if (obs < 0).any():
            raise RuntimeError("negative\nnumbers")
        return obs[:, :2]


class Counting:
    """Notes every row that it labels; can be made to wait."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.rows = []
        self.go = threading.Event()
        self.go.set()

    def act(self, obs):
        self.go.wait(20)
        if self.seconds:
            time.sleep(self.seconds)
        self.rows += [row.tobytes() for row in obs]
        return obs[:, :2]


class Mute:
    """No expert."""


class Unlicensed:
    """An expert that cannot be made."""

    def __init__(self):
        raise PermissionError("no licence\nfor this machine")

    def act(self, obs):
        return obs


class Shy(Unlicensed):
    """An expert that does not say what it is."""

    def __init__(self):
        pass

    def describe(self):
        raise ZeroDivisionError("no idea")


ready = Planner(3)


def ones(obs):
    """Always 1."""
    return np.ones(len(obs), np.int64)
