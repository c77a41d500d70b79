"""An expert held to its action space in few steps, for a service that does so thousands of times a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from expert_oracle.loading import CheckedOracle, FunctionOracle
from tutelage.types import Array, Tree


class QuicklyChecked:
    """A `CheckedOracle` that costs little where nothing is to be mended: arrays in a Box or a Discrete."""

    def __init__(self, checked: CheckedOracle) -> None:
        self._checked = checked
        self._ask = checked.oracle.act
        self._space = _limits(checked.action_space)

    def act(self, obs: Tree) -> Tree:
        try:
            actions = self._ask(obs)
        except Exception as error:
            return self._with(_raising(error), obs)
        if self._fits(actions):
            return actions
        return self._with(lambda _: actions, obs)

    def _with(self, answer: Callable[[Tree], Tree], obs: Tree) -> Tree:
        """What `CheckedOracle` makes of an answer that is there already; the expert is not asked again."""
        return replace(self._checked, oracle=FunctionOracle(answer)).act(obs)

    def _fits(self, actions: Tree) -> bool:
        if self._space is None or type(actions) is not np.ndarray:
            return False
        dtype, shape, low, high = self._space
        if actions.dtype != dtype or actions.shape[1:] != shape:
            return False
        return bool((actions >= low).all() and (actions <= high).all())  # NaN is neither


def _limits(space: Any) -> tuple[Any, tuple[int, ...], Array | int, Array | int] | None:
    """Dtype, shape, least and greatest actions; None for other kinds of spaces."""
    match type(space).__name__:
        case "Box":
            return space.dtype, space.shape, space.low, space.high
        case "Discrete":
            return space.dtype, (), int(space.start), int(space.start + space.n - 1)
    return None


def _raising(error: Exception) -> Callable[[Tree], Tree]:
    def answer(_: Tree) -> Tree:
        raise error

    return answer
