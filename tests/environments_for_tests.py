"""Small environments with spaces that the usual ones lack; `tests.environments_for_tests:NAME` makes one."""

import os
import signal

import gymnasium as gym
import numpy as np


class Counting(gym.Env):
    """Shows how many steps were made and the seed's digest; ends after `length` steps, by a cut if `cut`."""

    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Dict(
        {
            "steps": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "image": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "phase": gym.spaces.Tuple((gym.spaces.Discrete(10), gym.spaces.MultiBinary(2))),
        }
    )

    def __init__(self, length=5, cut=False):
        self.length, self.cut = length, cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.noise = 0, self.np_random.random()
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        assert self.steps < self.length, "stepped after the end"
        self.steps += 1
        over = self.steps == self.length
        return self.observe(), float(action), over and not self.cut, over and self.cut, {}

    def observe(self):
        return {
            "steps": np.array([self.steps, self.noise]),
            "image": np.full((4, 4, 3), self.steps, np.uint8),
            "phase": (self.steps % 10, np.array([self.steps % 2, 1], np.int8)),
        }


class Spaces(gym.Env):
    """Any spaces; checks that its actions are in its space and pays their sum."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(3).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.np_random.random(3).astype(np.float32), float(np.sum(action)), False, False, {}


class Night(gym.Env):
    """Its pictures are black, or there are none, or drawing ends the process."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, render_mode=None, draws="black"):
        self.render_mode, self.draws = render_mode, draws
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        if self.draws == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((32, 48, 3), np.uint8) if self.draws == "black" else None


class Restless(gym.Env):
    """Shows a number by chance whatever the seed, as a grey of its pictures; ends after 20 to 40 steps."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, render_mode=None, broken=False):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
        self.render_mode, self.broken = render_mode, broken
        self.chance = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.chance.integers(20, 40))
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), float(action), self.left == 0, False, {}

    def observe(self):
        self.shown = np.float32(self.chance.random())
        return np.array([self.shown])

    def render(self):
        if self.broken:
            raise RuntimeError("no colours left")
        assert self.render_mode == "rgb_array"
        return np.full((60, 40, 3), round(255 * float(self.shown)), np.uint8)


gym.register("Counting-v0", f"{__name__}:Counting")
gym.register("Spaces-v0", f"{__name__}:Spaces")
gym.register("Night-v0", f"{__name__}:Night")
gym.register("Restless-v0", f"{__name__}:Restless")
