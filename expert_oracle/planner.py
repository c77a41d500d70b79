"""An expert that plans: the cross-entropy method in a simulator (Rubinstein & Kroese, 2004).

From each observed state, `candidates` plans of `horizon` actions are drawn and tried; the `elites`
with the largest sum of rewards say where the next are drawn, `iterations` times. The first action of the
plan is the answer, as in model-predictive control (Chua et al., 2018, with the simulator for the learnt
model).

1. Every state is planned for by itself, with the same random numbers: the same state gets the same action,
   whoever asks and whatever else is asked. So nothing is carried over from the step before.
2. Actions of a Box are drawn from a Gaussian, clipped to the Box; the mean plan's is the answer. Discrete
   actions are drawn from a categorical distribution per step; the best plan's is the answer.
3. An action may be held for `hold` steps: fewer numbers to find, and plans that get somewhere.
4. What lies beyond the horizon may be judged by `value`, a function of the last observations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expert_oracle.lookahead import make_model
from tutelage import codec, plugins
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import Array

Value = Callable[[Array], Array]
"""What states are worth beyond the horizon: observations [M, D] -> [M], in the unit of the rewards."""

AT_ONCE = 2**13
"""States times candidates that are looked ahead at once: their arrays stay in the processor's cache."""


def _balance(obs: Array) -> Array:
    """CartPole: steps to go, fewer the less upright, still and on the way to the middle it is.

    The rewards of all plans that keep the pole up are the same.
    """
    x, velocity, angle, spin = np.moveaxis(obs, -1, 0)
    return 100 - (x + velocity) ** 2 - (5 * angle) ** 2 - spin**2


def _climb(obs: Array) -> Array:
    """MountainCar: minus the steps to go, by the energy that is missing; the whole climb takes 100."""
    x, velocity = np.moveaxis(obs, -1, 0)
    energy = 0.0025 * np.sin(3 * x) / 3 + velocity**2 / 2
    return 6e4 * np.minimum(energy - 0.0025 / 3, 0)


VALUES: Mapping[str, Value] = {"CartPole-v1": _balance, "MountainCar-v0": _climb}


@dataclass(frozen=True)
class _Gaussian:
    """Where the plans for N states are drawn from, actions of a Box."""

    mean: Array  # [N, H, A]
    std: Array  # [N, H, A]
    space: Any

    @staticmethod
    def wide(space: Any, N: int, H: int) -> _Gaussian:
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        return _Gaussian(np.tile(middle, (N, H, 1)), np.tile(half, (N, H, 1)), space)

    def draw(self, rng: np.random.Generator, C: int) -> Array:  # [N, C, H, A]
        noise = rng.standard_normal((C, *self.mean.shape[1:]))
        plans = self.mean[:, None] + self.std[:, None] * noise
        return np.clip(plans, self.space.low, self.space.high).astype(self.space.dtype)

    def around(self, elites: Array) -> _Gaussian:  # [N, K, H, A]
        return _Gaussian(elites.mean(1), elites.std(1), self.space)

    def answer(self, best: Array) -> Array:
        return self.mean[:, 0].astype(self.space.dtype)


@dataclass(frozen=True)
class _Categorical:
    """The same for Discrete actions."""

    p: Array  # [N, H, n]
    space: Any

    @staticmethod
    def wide(space: Any, N: int, H: int) -> _Categorical:
        return _Categorical(np.full((N, H, space.n), 1 / space.n), space)

    def draw(self, rng: np.random.Generator, C: int) -> Array:  # [N, C, H]
        u = rng.random((C, self.p.shape[1], 1))
        below = self.p.cumsum(-1)[:, None, :, :-1] < u
        return below.sum(-1) + self.space.start

    def around(self, elites: Array) -> _Categorical:  # [N, K, H]
        chosen = elites[..., None] == np.arange(self.space.n) + self.space.start
        return _Categorical(0.9 * chosen.mean(1) + 0.1 / self.space.n, self.space)

    def answer(self, best: Array) -> Array:
        return best[:, 0]


class CEM:
    """A planner for one environment. An `Oracle`.

        actions = CEM("Pendulum-v1").act(obs)          # [N, D] -> [N, ...]

    env, env_kwargs: what gymnasium makes; pose: `module:attr`, a function pose(env, obs) that puts the
    unwrapped environment into an observed state, where the package has none; value: `module:attr`, see 4.
    above.
    """

    def __init__(
        self,
        env: str,
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        horizon: int = 20,
        hold: int = 1,
        candidates: int = 64,
        elites: int = 8,
        iterations: int = 5,
        pose: str | None = None,
        value: str | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < elites < candidates or min(horizon, hold, iterations) < 1:
            raise ConfigError(
                f"planner: horizon={horizon}, hold={hold} and iterations={iterations} must be 1 or more, "
                f"elites={elites} between 1 and candidates={candidates}"
            )
        self.horizon, self.candidates, self.elites, self.iterations = horizon, candidates, elites, iterations
        self.hold, self.seed = hold, seed
        self._env = _make(env, env_kwargs or {})
        self._model = make_model(self._env, pose)
        self._value: Value | None = VALUES.get(env) if value is None else plugins.load(value)
        self._wide = _proposal(self._env.action_space)

    def act(self, obs: Array) -> Array:
        """Actions [N, ...] for observations [N, D]."""
        obs, shape = np.asarray(obs), self._env.observation_space.shape
        if obs.shape[1:] != shape:
            raise OracleError(
                f"the planner for {self._env.spec.id} takes observations {shape}, got {obs.shape[1:]}"
            )
        at_once = max(1, AT_ONCE // self.candidates)
        parts = [self._plan(obs[n : n + at_once]) for n in range(0, max(len(obs), 1), at_once)]
        return np.concatenate(parts)

    def _plan(self, obs: Array) -> Array:
        rng, states = np.random.default_rng(self.seed), np.arange(len(obs))[:, None]
        proposal = self._wide(self._env.action_space, len(obs), -(-self.horizon // self.hold))
        best = np.empty(0)
        for _ in range(self.iterations):
            plans = proposal.draw(rng, self.candidates)
            order = np.argsort(-self._score(obs, plans), axis=1)[:, : self.elites]
            elites = plans[states, order]
            proposal, best = proposal.around(elites), elites[:, 0]
        return proposal.answer(best)

    def _score(self, obs: Array, plans: Array) -> Array:
        """[N, C]: the rewards along each plan, and the value where it ends."""
        returns, last, going_on = self._model.look_ahead(
            obs, plans.repeat(self.hold, axis=2)[:, :, : self.horizon]
        )
        return returns if self._value is None else returns + going_on * self._value(last)

    def describe(self) -> pb.DescribeReply:
        return pb.DescribeReply(
            name="planner:cem",
            env_id=self._env.spec.id,
            observation_space=codec.describe_space(self._env.observation_space),
            action_space=codec.describe_space(self._env.action_space),
        )


def _make(env: str, kwargs: Mapping[str, Any]) -> Any:
    import gymnasium

    try:
        made = gymnasium.make(env, **kwargs)
    except gymnasium.error.Error as error:
        raise ConfigError(f"planner: env={env}: {' '.join(str(error).split())}") from None
    made.reset(seed=0)
    return made


def _proposal(space: Any) -> Callable[[Any, int, int], _Gaussian | _Categorical]:
    match type(space).__name__:
        case "Box" if len(space.shape) == 1 and np.isfinite([space.low, space.high]).all():
            return _Gaussian.wide
        case "Discrete":
            return _Categorical.wide
    raise ConfigError(f"planner: it cannot plan in {space}; it can in Discrete and in a flat, bounded Box")
