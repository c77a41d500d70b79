"""Environments from recipes: one, or B stepped together, each episode begun with a seed of its own."""

from __future__ import annotations

import difflib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Protocol, get_args, get_type_hints

import gymnasium as gym
import numpy as np
import tree
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from actors.pictures import JPEG, Drawn
from tutelage.errors import ConfigError
from tutelage.policy import distribution_of
from tutelage.types import Array, EnvRecipe, Tree

Act = Callable[[Tree], Array]
"""Observations [N, ...] -> actions [N, ...] of the action space; Box actions need not be clipped."""

LEAF_SPACES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
EXACT = ("sync", "async")  # backends that seed every single episode
SIMULATORS = {  # distributions by the package that the environment's class is in
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.box2d": "box2d",
    "ale_py": "ale-py",
}


def make_env(recipe: EnvRecipe, render_mode: str | None = None) -> gym.Env:
    """One environment. Raises ConfigError if there is none of that name or its spaces are not supported."""
    kwargs = {**recipe.kwargs, **({"render_mode": render_mode} if render_mode else {})}
    try:
        if "mujoco" in str(getattr(gym.registry.get(recipe.id), "entry_point", "")):
            calm_mujoco()
        env = gym.make(recipe.id, disable_env_checker=True, **kwargs)
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        raise ConfigError(why_not(recipe, error)) from error
    check_spaces(recipe.id, env.observation_space, env.action_space)
    return env


def make_drawn(recipe: EnvRecipe) -> Drawn:
    """One environment that is drawn in every state."""
    return Drawn(make_env(recipe, render_mode="rgb_array"))


@cache
def calm_mujoco() -> None:
    """Have MuJoCo say each kind of warning once, instead of for every environment and into a file; what it
    tells the authors of models (of gymnasium's, for ours) is left out."""
    try:
        import mujoco
    except ImportError:
        return  # the environment will say so
    set_handler: Any = mujoco.set_mju_user_warning  # pyright: ignore[reportAttributeAccessIssue]
    set_handler(lambda text: None if "deprecated" in text else _say_once(text.split(". ")[0]))


@cache
def _say_once(warning: str) -> None:
    warnings.warn(f"MuJoCo: {warning}", RuntimeWarning, stacklevel=2)


def why_not(recipe: EnvRecipe, error: Exception) -> str:
    """One line on why an environment cannot be made, with a near id where the id is unknown."""
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, gym.error.UnregisteredEnv):
        near = difflib.get_close_matches(recipe.id, gym.registry, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "gymnasium.pprint_registry() shows those that do"
        return f"environment {recipe.id!r} does not exist; {hint}"
    return f"environment {recipe.id!r} with {dict(recipe.kwargs)} cannot be made: {reason}"


def check_spaces(name: str, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Raise ConfigError unless policies can be made for these spaces."""
    for space in leaf_spaces(observation_space):
        if not isinstance(space, LEAF_SPACES):
            raise ConfigError(
                f"{name}: observations of {space} are not supported; supported: Box, Discrete, "
                "MultiDiscrete, MultiBinary, and Dict and Tuple of these"
            )
    try:
        distribution_of(action_space)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if isinstance(action_space, gym.spaces.Box) and action_space.dtype.kind != "f":
        raise ConfigError(f"{name}: Box actions of whole numbers are not supported, got {action_space}")
    if np.any(getattr(action_space, "start", 0)):
        raise ConfigError(f"{name}: actions that do not count from 0 are not supported, got {action_space}")


def leaf_spaces(space: gym.Space) -> list[gym.Space]:
    """Leaves of nested Dict and Tuple spaces."""
    if isinstance(space, gym.spaces.Dict):
        return [leaf for part in space.spaces.values() for leaf in leaf_spaces(part)]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    return [space]


def with_versions(recipe: EnvRecipe, env: gym.Env | VectorEnv | None) -> EnvRecipe:
    """The recipe with the versions of everything that an exact replay depends on."""
    modules = [cls.__module__ for cls in type(env.unwrapped).__mro__] if env is not None else []
    simulators = {
        distribution
        for package, distribution in SIMULATORS.items()
        if any(module == package or module.startswith(package + ".") for module in modules)
    }
    if recipe.backend == "envpool":
        simulators.add("envpool")
    names = ["gymnasium", "numpy", *sorted(simulators)]
    return replace(recipe, versions={name: importlib.metadata.version(name) for name in names})


def columns(space: gym.Space, *leading: int) -> Tree:
    """Zeros [*leading, ...] for elements of `space`; 64-bit floats are kept as 32-bit ones."""
    if isinstance(space, gym.spaces.Dict):
        return {name: columns(part, *leading) for name, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(columns(part, *leading) for part in space.spaces)
    dtype = np.float32 if space.dtype == np.float64 else space.dtype
    return np.zeros((*leading, *(space.shape or ())), dtype)


def rows(value: Tree, index: Any) -> Tree:
    """`value[index]` of every leaf."""
    if isinstance(value, np.ndarray):
        return value[index]
    return tree.map_structure(lambda leaf: leaf[index], value)


def put(out: Tree, index: Any, value: Tree) -> None:
    """`out[index] = value` in every leaf."""
    if isinstance(out, np.ndarray):
        out[index] = value
        return
    for to, leaf in zip(tree.flatten(out), tree.flatten(value), strict=True):
        to[index] = leaf


def concatenated(parts: Sequence[Tree]) -> Tree:
    """The parts one after the other along their first axis."""
    return tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def to_env(action_space: gym.Space, actions: Array) -> Array:
    """What the environments receive for `actions` [N, ...]: Box actions clipped, in the space's dtype."""
    if not isinstance(action_space, gym.spaces.Box):
        return actions
    clipped = np.minimum(np.maximum(actions, action_space.low), action_space.high)
    return clipped.astype(action_space.dtype, copy=False)


class VectorEnvs(Protocol):
    """B environments stepped together; what they show is written into the caller's arrays.

        envs.reset(range(B), seeds, obs[0])
        for t in range(T):
            ended = envs.step(actions[t], obs[t + 1], rewards[t], terminated[t], truncated[t])
            if ended and not envs.autoreset:
                envs.reset(ended, [seed for each], obs[t + 1])

    `terminated` and `truncated` are given as False, and only what is True need be written. Where `autoreset`,
    environments can be seeded only all together, and the step after an end is spent on a reset: its action
    is ignored and its reward is 0.
    """

    num_envs: int
    observation_space: gym.Space  # of one environment
    action_space: gym.Space  # of one environment
    recipe: EnvRecipe  # with versions
    autoreset: bool

    @property
    def pictures(self) -> Sequence[bytes]:
        """JPEGs of the first ones, as many as are drawn, as they are now."""
        ...

    def reset(self, which: Sequence[int], seeds: Sequence[int], obs: Tree) -> None: ...

    def step(
        self, actions: Array, obs: Tree, rewards: Array, terminated: Array, truncated: Array
    ) -> Sequence[int]: ...

    def close(self) -> None: ...


def make_vector(recipe: EnvRecipe, num_envs: int, *, drawn: int = 0) -> VectorEnvs:
    """`num_envs` environments by the recipe's backend, the first `drawn` of them drawn in every state.

    Raises ConfigError as `make_env` does, and where the backend draws nothing.
    """
    if drawn and recipe.backend not in EXACT:
        raise ConfigError(
            f"env_runners.gym_env_vectorize_mode: with {recipe.backend} episodes are neither replayed nor "
            "drawn, so there are no pictures that people could judge; set sync or async"
        )
    match recipe.backend:
        case "sync":
            return SyncEnvs(recipe, num_envs, drawn)
        case "async":
            return AsyncEnvs(recipe, num_envs, drawn)
        case "vector_entry_point":
            return AutoresetEnvs(recipe, make_vectorised(recipe, num_envs))
        case "envpool":
            return PoolEnvs(recipe, num_envs)
    known = ", ".join(get_args(get_type_hints(EnvRecipe)["backend"]))
    raise ConfigError(f"env_runners.gym_env_vectorize_mode: {recipe.backend!r} is unknown; known: {known}")


class SyncEnvs:
    """Environments stepped one after the other in this process."""

    autoreset = False

    def __init__(self, recipe: EnvRecipe, num_envs: int, drawn: int = 0) -> None:
        self._drawn = [make_drawn(recipe) for _ in range(drawn)]
        self.envs = [*self._drawn, *(make_env(recipe) for _ in range(num_envs - drawn))]
        self.num_envs = num_envs
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self._discrete = isinstance(self.action_space, gym.spaces.Discrete)
        self.recipe = with_versions(recipe, self.envs[0])

    def reset(self, which: Sequence[int], seeds: Sequence[int], obs: Tree) -> None:
        for i, seed in zip(which, seeds, strict=True):
            put(obs, i, self.envs[i].reset(seed=seed)[0])

    def step(
        self,
        actions: Array,
        obs: Tree,
        rewards: Array,
        terminated: Array,
        truncated: Array,
        *,
        first: int = 0,
    ) -> list[int]:
        """Of as many environments as there are actions, beginning with the one numbered `first`; the
        numbers of those that ended."""
        ended = []
        envs = self.envs[first : first + len(actions)]
        if self._discrete:
            actions = actions.tolist()  # Discrete.contains, which many call, is slow on numpy's integers
        for i, (env, action) in enumerate(zip(envs, actions, strict=True)):
            observation, rewards[i], end, cut, _ = env.step(action)
            put(obs, i, observation)
            if end or cut:
                terminated[i], truncated[i] = end, cut
                ended.append(first + i)
        return ended

    @property
    def pictures(self) -> list[bytes]:
        return [env.jpeg for env in self._drawn]

    def close(self) -> None:
        for env in self.envs:
            env.close()


class AsyncEnvs:
    """Environments stepped at the same time, each in a process of its own."""

    autoreset = False

    def __init__(self, recipe: EnvRecipe, num_envs: int, drawn: int = 0) -> None:
        first = make_env(recipe)  # says in this process what is wrong with the recipe
        self.recipe = with_versions(recipe, first)
        first.close()
        makers = [partial(make_drawn, recipe)] * drawn + [partial(make_env, recipe)] * (num_envs - drawn)
        self.vector = AsyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self.pictures = [b""] * drawn
        self.num_envs = num_envs
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(self, which: Sequence[int], seeds: Sequence[int], obs: Tree) -> None:
        which = list(which)
        mask = np.zeros(self.num_envs, np.bool_)
        mask[which] = True
        by_slot: list[int | None] = [None] * self.num_envs
        for i, seed in zip(which, seeds, strict=True):
            by_slot[i] = seed
        observed, infos = self.vector.reset(seed=by_slot, options={"reset_mask": mask})
        put(obs, which, rows(observed, which))
        self._look(infos)

    def step(
        self, actions: Array, obs: Tree, rewards: Array, terminated: Array, truncated: Array
    ) -> list[int]:
        ended, infos = step_together(self.vector, actions, obs, rewards, terminated, truncated)
        self._look(infos)
        return ended

    def _look(self, infos: Mapping[str, Any]) -> None:
        """Take the pictures of those that were reset or stepped."""
        for i, jpeg in zip(range(len(self.pictures)), infos.get(JPEG, ()), strict=False):
            self.pictures[i] = jpeg or self.pictures[i]

    def close(self) -> None:
        self.vector.close()


def step_together(
    vector: Any, actions: Array, obs: Tree, rewards: Array, terminated: Array, truncated: Array
) -> tuple[list[int], Mapping[str, Any]]:
    """One step of a vector environment, written into the caller's arrays; the environments that ended, and
    the step's info."""
    observed, rewards[:], terminated[:], truncated[:], infos = vector.step(actions)
    put(obs, ..., observed)
    return np.flatnonzero(terminated | truncated).tolist(), infos


class AutoresetEnvs:
    """An environment's own vectorised version, which resets by itself in the step after an end."""

    autoreset = True
    pictures: Sequence[bytes] = ()

    def __init__(self, recipe: EnvRecipe, vector: Any) -> None:
        self.vector = vector
        self.num_envs: int = vector.num_envs
        self.observation_space: gym.Space = vector.single_observation_space
        self.action_space: gym.Space = vector.single_action_space
        self.recipe = with_versions(recipe, vector)

    def reset(self, which: Sequence[int], seeds: Sequence[int], obs: Tree) -> None:
        put(obs, ..., self.vector.reset(seed=seeds[0])[0])

    def step(
        self, actions: Array, obs: Tree, rewards: Array, terminated: Array, truncated: Array
    ) -> list[int]:
        return step_together(self.vector, actions, obs, rewards, terminated, truncated)[0]

    def close(self) -> None:
        self.vector.close()


def make_vectorised(recipe: EnvRecipe, num_envs: int) -> VectorEnv:
    """gymnasium's vectorised version of an environment. Raises ConfigError where there is none."""
    try:
        vector = gym.make_vec(
            recipe.id, num_envs, vectorization_mode="vector_entry_point", **dict(recipe.kwargs)
        )
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        raise ConfigError(why_not(recipe, error)) from error
    check_spaces(recipe.id, vector.single_observation_space, vector.single_action_space)
    mode = vector.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        vector.close()
        raise ConfigError(
            f"{recipe.id}: the vectorised version resets by {mode}, only NEXT_STEP is supported"
        )
    return vector


class PoolEnvs(AutoresetEnvs):
    """Environments of the `envpool` package, stepped in C++; made at each reset, with its seed."""

    def __init__(self, recipe: EnvRecipe, num_envs: int) -> None:
        envpool = import_envpool()
        if recipe.id not in envpool.list_all_envs():
            nearest = difflib.get_close_matches(recipe.id, envpool.list_all_envs(), n=1, cutoff=0.0)
            raise ConfigError(f"envpool has no environment {recipe.id!r}; the nearest is {nearest[0]!r}")
        kwargs = dict(recipe.kwargs)
        self._make = partial(envpool.make, recipe.id, env_type="gymnasium", num_envs=num_envs, **kwargs)
        spec = envpool.make_spec(recipe.id, **kwargs)
        self.vector: Any = None
        self.num_envs = num_envs
        self.observation_space = spec.gymnasium_observation_space
        self.action_space = spec.gymnasium_action_space
        check_spaces(recipe.id, self.observation_space, self.action_space)
        self.recipe = with_versions(recipe, None)

    def reset(self, which: Sequence[int], seeds: Sequence[int], obs: Tree) -> None:
        self.close()
        self.vector = self._make(seed=seeds[0])
        put(obs, ..., self.vector.reset()[0])

    def step(
        self, actions: Array, obs: Tree, rewards: Array, terminated: Array, truncated: Array
    ) -> list[int]:
        cast = actions.astype(self.action_space.dtype, copy=False)
        return step_together(self.vector, cast, obs, rewards, terminated, truncated)[0]

    def close(self) -> None:
        if self.vector is not None:
            self.vector.close()


def import_envpool() -> Any:
    try:
        import envpool  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        if error.name != "envpool":
            raise ConfigError(f"envpool cannot be imported: {error}; install tutelage[envpool]") from error
        raise ConfigError(
            "env_runners.gym_env_vectorize_mode=envpool needs the package of that name; "
            "install tutelage[envpool]"
        ) from None
    return envpool
