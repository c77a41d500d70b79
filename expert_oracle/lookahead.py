"""What planners look ahead in: an environment put into the state that an observation shows, or its equations.

    returns, obs, going_on = model.look_ahead(obs, plans)     # C plans of H actions from each of N states

Pendulum and CartPole are stepped all at once in numpy. Any other environment is stepped plan by plan, after
a function `pose(env, obs)` has put it into the state: those for gymnasium's classic control and MuJoCo
environments are here, others are given as `module:attr`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tutelage import plugins
from tutelage.errors import ConfigError, OracleError
from tutelage.types import Array

Pose = Callable[[Any, Array], None]
"""Put the unwrapped environment into the state that an observation [D] shows."""


class Model(Protocol):
    """A simulator to plan in."""

    def look_ahead(self, obs: Array, plans: Array) -> tuple[Array, Array, Array]:
        """From observations [N, D] along plans [N, C, H, ...]: the sums of rewards [N, C], the last
        observations [N, C, D], and whether the episode goes on there [N, C]."""
        ...


@dataclass(frozen=True)
class Equations:
    """An environment's equations of motion for many states at once; a state is an array [S, ...]."""

    state: Callable[[Array], Array]  # obs [N, D] -> [S, N]
    step: Callable[[Array, Array], tuple[Array, Array, Array]]  # state, actions -> state, rewards, ended
    obs: Callable[[Array], Array]  # state [S, ...] -> [..., D]

    def look_ahead(self, obs: Array, plans: Array) -> tuple[Array, Array, Array]:
        state = np.repeat(self.state(obs)[..., None], plans.shape[1], axis=-1)
        returns, going_on = np.zeros(plans.shape[:2]), np.ones(plans.shape[:2], bool)
        for h in range(plans.shape[2]):
            following, rewards, ended = self.step(state, plans[:, :, h])
            state = np.where(going_on, following, state) if ended.any() or not going_on.all() else following
            returns += rewards * going_on
            going_on = going_on & ~ended
        return returns, self.obs(state), going_on


def _pendulum_state(obs: Array) -> Array:
    return np.stack([np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]]).astype(np.float64)


def _pendulum_step(state: Array, actions: Array) -> tuple[Array, Array, Array]:
    """Pendulum-v1: angle from the top and spin; g 10, mass and length 1, steps of 0.05 s."""
    angle, spin = state
    u = np.clip(actions[..., 0], -2, 2)
    upright = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    rewards = -(upright * upright + 0.1 * spin * spin + 0.001 * u * u)
    spin = np.clip(spin + (15 * np.sin(angle) + 3 * u) * 0.05, -8, 8)
    return np.stack([angle + spin * 0.05, spin]), rewards, np.zeros(rewards.shape, bool)


def _pendulum_obs(state: Array) -> Array:
    angle, spin = state
    return np.stack([np.cos(angle), np.sin(angle), spin], axis=-1)


FALLEN = 12 * 2 * np.pi / 360


def _cartpole_step(state: Array, actions: Array) -> tuple[Array, Array, Array]:
    """CartPole-v1: place, velocity, angle, spin; cart 1 kg, pole 0.1 kg and 1 m, 10 N, steps of 0.02 s."""
    x, velocity, angle, spin = state
    cos, sin = np.cos(angle), np.sin(angle)
    push = (np.where(actions == 1, 10.0, -10.0) + 0.05 * spin * spin * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1))
    pull = push - 0.05 * turn * cos / 1.1
    state = state + 0.02 * np.stack([velocity, pull, spin, turn])
    return state, np.ones(x.shape), (np.abs(state[0]) > 2.4) | (np.abs(state[2]) > FALLEN)


EQUATIONS: Mapping[str, Equations] = {
    "Pendulum-v1": Equations(_pendulum_state, _pendulum_step, _pendulum_obs),
    "CartPole-v1": Equations(
        lambda obs: obs.T.astype(np.float64), _cartpole_step, lambda state: np.moveaxis(state, 0, -1)
    ),
}


@dataclass(frozen=True)
class Simulated:
    """An environment that is put into each state and stepped along each plan."""

    env: Any  # gymnasium's, unwrapped, reset once
    pose: Pose

    def look_ahead(self, obs: Array, plans: Array) -> tuple[Array, Array, Array]:
        N, C = plans.shape[:2]
        outcomes = [self._follow(obs[n], plans[n, c]) for n in range(N) for c in range(C)]
        returns, last, going_on = (np.stack(part) for part in zip(*outcomes, strict=True))
        return returns.reshape(N, C), last.reshape(N, C, -1), going_on.reshape(N, C)

    def _follow(self, obs: Array, plan: Array) -> tuple[float, Array, bool]:
        self.pose(self.env, obs)
        total = 0.0
        for action in plan:
            obs, reward, ended, _, _ = self.env.step(action)
            total += float(reward)
            if ended:
                return total, obs, False
        return total, obs, True


def _pose_state(env: Any, obs: Array) -> None:
    env.state = np.asarray(obs, np.float64)


def _pose_cartpole(env: Any, obs: Array) -> None:
    _pose_state(env, obs)
    env.steps_beyond_terminated = None


def _pose_pendulum(env: Any, obs: Array) -> None:
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], np.float64)


def _pose_acrobot(env: Any, obs: Array) -> None:
    angles = np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2])
    env.state = np.array([*angles, obs[4], obs[5]], np.float64)


def _pose_double_pendulum(env: Any, obs: Array) -> None:
    _set_mujoco(env, np.array([obs[0], *np.arctan2(obs[1:3], obs[3:5])]), obs[5:8])


def _pose_reacher(env: Any, obs: Array) -> None:
    _set_mujoco(env, np.concatenate([np.arctan2(obs[2:4], obs[:2]), obs[4:6]]), np.array([*obs[6:8], 0, 0]))


def _pose_mujoco(env: Any, obs: Array) -> None:
    """Positions that are not observed are 0: how far it has run changes neither motion nor reward."""
    parts = env.observation_structure
    known = parts["qpos"]
    qpos = np.concatenate([np.zeros(parts.get("skipped_qpos", 0)), obs[:known]])
    _set_mujoco(env, qpos, obs[known : known + parts["qvel"]])


def _set_mujoco(env: Any, qpos: Array, qvel: Array) -> None:
    env.data.qacc_warmstart[:] = 0  # the solver's memory of another state
    env.set_state(qpos, qvel)


POSES: Mapping[str, Pose] = {
    "CartPole": _pose_cartpole,
    "Pendulum": _pose_pendulum,
    "Acrobot": _pose_acrobot,
    "MountainCar": _pose_state,
    "MountainCarContinuous": _pose_state,
    "InvertedDoublePendulum": _pose_double_pendulum,
    "Reacher": _pose_reacher,
}


def make_model(env: Any, pose: str | None) -> Model:
    """What to plan in for a gymnasium environment. `pose`: a function of one's own, `module:attr`."""
    if pose is None and env.spec.id in EQUATIONS and not env.spec.kwargs:
        return EQUATIONS[env.spec.id]
    simulated = Simulated(env.unwrapped, pose_for(env) if pose is None else plugins.load(pose))
    _check_pose(env, simulated)
    return simulated


def pose_for(env: Any) -> Pose:
    env_id = env.spec.id
    name = env_id.rpartition("/")[2].rpartition("-v")[0]
    if name in POSES:
        return POSES[name]
    if getattr(env.unwrapped, "observation_structure", None):
        return _pose_mujoco
    raise ConfigError(
        f"nobody knows how to put {env_id} into a state that was observed: "
        "give pose=module:attr, a function pose(env, obs)"
    )


def _check_pose(env: Any, simulated: Simulated) -> None:
    """A step from an observed state must be the one from the state itself. Raises OracleError."""
    real, (obs, _) = env.unwrapped, env.reset(seed=0)
    env.action_space.seed(0)
    steps = []
    for _ in range(5):
        action = _small(env.action_space.sample())
        following, reward, ended, _, _ = real.step(action)
        steps.append((obs, action, np.append(following, reward)))
        obs = following
        if ended:
            break
    for obs, action, expected in steps:
        simulated.pose(real, obs)
        following, reward, *_ = real.step(action)
        off = float(np.abs(np.append(following, reward) - expected).max())
        if not off < 1e-3 * (1 + float(np.abs(expected).max())):
            raise OracleError(
                f"a step of {env.spec.id} from an observed state is not the one from the state itself (off "
                f"by {off:.2g}): it observes too little to plan, or pose(env, obs) is wrong"
            )


def _small(action: Any) -> Any:
    """A tenth of a Box action: nothing gets so fast that observations are cut off."""
    return action / 10 if isinstance(action, np.ndarray) and action.dtype.kind == "f" else action
