"""Scripted experts: a few lines of control theory each, vectorised over N states.

`scripted:NAME` names one in a config. Returns in the docstrings are means of 50 episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tutelage import codec, plugins
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import Array


def cartpole(obs: Array) -> Array:
    """CartPole-v1, obs [N, 4] -> [N]: push towards where the pole falls, leaning it towards the centre.

    Return 500.
    """
    x, velocity, angle, spin = obs.T
    lean = np.clip(0.1 * x + 0.2 * velocity, -0.1, 0.1)
    return (angle + lean * 0.5 + 0.3 * spin > 0).astype(np.int64)


def lunarlander(obs: Array) -> Array:
    """LunarLander-v3 (discrete), obs [N, 8] -> [N]: a PD controller for the angle and one for the descent.

    The craft leans towards the pad by as much as it is off it and drifts; its height is to shrink with the
    distance from the pad. Whichever error is larger gets its engine. On the ground only the fall is braked.
    Return 234.
    """
    x, y, vx, vy, angle, spin, left, right = obs.T
    grounded = (left > 0) | (right > 0)
    angle_error = np.clip(0.5 * x + vx, -0.4, 0.4) - angle
    turn = np.where(grounded, 0, 0.5 * angle_error - spin)
    lift = np.where(grounded, -0.5 * vy, 0.5 * (0.55 * np.abs(x) - y) - 0.5 * vy)
    side = np.where(turn < -0.05, 3, np.where(turn > 0.05, 1, 0))
    return np.where((lift > np.abs(turn)) & (lift > 0.05), 2, side)


def mountaincar(obs: Array) -> Array:
    """MountainCar-v0, obs [N, 2] -> [N]: push along the velocity, but turn back early on the right.

    Pushing along the velocity always adds energy; the curve says how fast is fast enough to go on climbing.
    Return -107.
    """
    x, velocity = obs.T
    climb = x + 0.5
    return np.where(velocity > -0.0003 + 0.0142 * climb - 0.0102 * climb**2, 2, 0)


def acrobot(obs: Array) -> Array:
    """Acrobot-v1, obs [N, 6] -> [N]: pump energy, the torque on the elbow along the elbow's own spin.

    Return -93.
    """
    return np.where(obs[:, 5] < 0, 0, 2)


def pendulum(obs: Array) -> Array:
    """Pendulum-v1, obs [N, 3] -> [N, 1]: supply the energy that is missing for the top, and hold it there.

    With mass and length 1 and g = 10 the energy is w²/6 + 5 cos(angle); upright at rest it is 5. A torque
    along the spin w adds energy, one against it takes it away. Return -145.
    """
    cos, sin, spin = obs.T
    missing = 5 * (1 - cos) - spin**2 / 6
    swing = 2 * missing * np.where(spin < 0, -1, 1)
    hold = -10 * np.arctan2(sin, cos) - 2 * spin
    return np.clip(np.where(cos > 0.85, hold, swing), -2, 2)[:, None]


@dataclass(frozen=True)
class ScriptedExpert:
    """A rule and the environment that it is for. An `Oracle`."""

    env_id: str
    observations: int  # D
    action_space: pb.Space
    rule: Callable[[Array], Array]  # [N, D] -> actions [N, ...]

    def act(self, obs: Array) -> Array:
        obs = np.asarray(obs)
        if obs.ndim != 2 or obs.shape[1] != self.observations:
            raise OracleError(
                f"the scripted expert for {self.env_id} takes observations of shape "
                f"(N, {self.observations}), got {obs.shape}"
            )
        return self.rule(obs)

    def describe(self) -> pb.DescribeReply:
        return pb.DescribeReply(
            name=f"scripted:{self.rule.__name__}",
            env_id=self.env_id,
            observation_space=codec.unbounded_space([self.observations]),
            action_space=self.action_space,
        )


TORQUE = codec.box_space(np.array([-2.0]), np.array([2.0]))

SCRIPTED: Mapping[str, ScriptedExpert] = {
    "cartpole": ScriptedExpert("CartPole-v1", 4, codec.discrete_space(2), cartpole),
    "lunarlander": ScriptedExpert("LunarLander-v3", 8, codec.discrete_space(4), lunarlander),
    "mountaincar": ScriptedExpert("MountainCar-v0", 2, codec.discrete_space(3), mountaincar),
    "acrobot": ScriptedExpert("Acrobot-v1", 6, codec.discrete_space(3), acrobot),
    "pendulum": ScriptedExpert("Pendulum-v1", 3, TORQUE, pendulum),
}


def scripted(name: str) -> ScriptedExpert:
    """The scripted expert of that name. ConfigError for an unknown one."""
    if name not in SCRIPTED:
        raise ConfigError(f"no scripted expert {name!r}{plugins.did_you_mean(name, SCRIPTED)}")
    return SCRIPTED[name]
