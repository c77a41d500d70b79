"""Kinds of question that a person or a machine is asked: one file each, found because it is there.

    kind = feedback.kind("comparison")
    clips = [film(part) for part in kind.footage(query)]
    body = kind.body(query, clips)               # what the queue holds
    view = kind.view(body, order=[1, 0])         # all that the page shows, options in this order
    weights = kind.value(body, said)             # the answer, checked

A kind is a module with the functions of `Kind`. The page draws whatever `view` says, so a new kind changes
nothing else. docs/feedback-kinds.md has an example from beginning to end.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import tree

from tutelage.types import Array, EnvRecipe, Query, Segment, Tree

Json = Any
Body = Mapping[str, Any]
"""What the queue holds of a question: JSON, small, and nothing the annotator must not know."""
LONGEST_TEXT = 16_000  # characters of one text


@dataclass(frozen=True)
class Footage:
    """A stretch of an episode to be filmed, or one state. Made by: kinds. Eaten by: clips.

    A state that is known only by its observation is `posed`: the environment is put into it, nothing is
    replayed, and the clip is one picture.
    """

    recipe: EnvRecipe
    seed: int  # of the episode
    actions: Tree  # [T, ...] from the episode's first step to the last that is shown
    start: int  # first step that is shown
    obs: Tree | None = None  # [T - start, ...] as seen then: the replay has to show the same
    frames: Array | Sequence[bytes] | None = None  # [n, height, width, 3] uint8, or n JPEGs, kept when it
    # happened: nothing is replayed
    posed: bool = False  # `obs` [1, ...] is the state
    held: int = 0  # how often the last picture is shown besides: the task had ended


class Kind(Protocol):
    """What the module of a kind has. Each raises ValueError that names what is wrong, in one line."""

    def footage(self, query: Query) -> list[Footage]:
        """What has to be filmed before the question can be put; in the order in which `body` gets it."""
        ...

    def body(self, query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The question as JSON. clips: what was made of each footage, `{"clip": NAME, "frames": ...}`."""
        ...

    def sides(self, body: Body) -> int:
        """How many options are shown in random order; 1 where there is nothing to shuffle."""
        ...

    def view(self, body: Body, order: Sequence[int]) -> dict[str, Any]:
        """What the page shows: `prompt`, `panels`, `control`, `cannot_tell`, `guide`. No reward is in it."""
        ...

    def value(self, body: Body, said: Json) -> Array:
        """The value of an answer from what the page or a machine sent, options in the query's order."""
        ...

    def agree(self, one: Array, other: Array) -> float:
        """How alike two values are: 1 the same judgement, 0 opposite ones."""
        ...

    def example(self) -> dict[str, Any]:
        """A body, for tests and guides."""
        ...


@functools.cache
def kinds() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def kind(name: str) -> Kind:
    """The kind of that name. Raises ValueError, listing those that there are."""
    if name not in kinds():
        raise ValueError(f"kind: there is no {name!r}; known: {', '.join(kinds())}")
    return cast(Kind, importlib.import_module(f"{__name__}.{name}"))


# What several kinds are made of


def footage_of(query: Query, option: int) -> Footage:
    """The footage of a segment."""
    segment = query.options[option]
    if not isinstance(segment, Segment):
        kind_of = type(segment).__name__
        raise ValueError(f"options[{option}]: a {query.kind} is about segments, got {kind_of}")
    start, held = len(tree.flatten(segment.prefix)[0]), int(segment.ended.sum())
    played = slice(len(segment.ended) - held)
    actions, obs = (tree.map_structure(lambda x: x[played], part) for part in (segment.actions, segment.obs))
    if start:
        actions = tree.map_structure(lambda a, b: np.concatenate([a, b]), segment.prefix, actions)
    return Footage(segment.recipe, segment.seed, actions, start, obs, frames=segment.pictures, held=held)


def clip_panel(clip: Mapping[str, Any], option: int = 0) -> dict[str, Any]:
    """A clip on the page."""
    return {"type": "clip", "option": option, **clip}


def text_panel(text: str, option: int = 0) -> dict[str, Any]:
    """A text on the page, in Markdown."""
    return {"type": "text", "option": option, "text": text}


def words(query: Query, name: str, default: str) -> str:
    """A text of the query's context. Raises ValueError where it is none, or too long."""
    value = query.context.get(name, default)
    return checked_text(f"context.{name}", value)


def checked_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {type(value).__name__}")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{name}: {len(value):,} characters; at most {LONGEST_TEXT:,}")
    return value


def texts(name: str, value: Any) -> list[str]:
    """A list of texts. Raises ValueError where it is none."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name}: expected a list of texts, got {_short(value)}")
    return [checked_text(f"{name}[{i}]", one) for i, one in enumerate(value)]


def whole(name: str, value: Any, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name}: expected an integer from {low:,} to {high:,}, got {_short(value)}")
    return int(value)


def arguments(name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments: names and JSON."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}: expected {{NAME: VALUE, ...}}, got {_short(value)}")
    return dict(value)


def numbers(said: Json, shape: tuple[int, ...], name: str = "value") -> Array:
    """Finite numbers of this shape, float64; -1: any length."""
    try:
        array = np.asarray(said)
    except ValueError:  # ragged
        array = np.asarray("")
    if array.dtype.kind not in "iuf":  # texts that look like numbers are none
        raise ValueError(f"{name}: expected numbers, got {_short(said)}")
    array = array.astype(np.float64)
    if len(array.shape) != len(shape) or any(
        want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    ):
        raise ValueError(f"{name}: expected numbers of shape {_shape(shape)}, got {_short(said)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {_short(said)} is not finite")
    return array


def weights(said: Json, options: int) -> Array:
    """Weights [K] float32 over the options, 0 or more, that sum to 1."""
    array = numbers(said, (options,))
    if (array < 0).any() or not math.isclose(array.sum(), 1.0, abs_tol=1e-3):
        raise ValueError(f"value: expected {options} weights that sum to 1, got {_short(said)}")
    return (array / array.sum()).astype(np.float32)


def choices_between(order: Sequence[int], better: str) -> list[dict[str, Any]]:
    """One of several options, or a tie: by arrow keys for two, by digits for more. Weights are in the
    query's order, whatever the order in which the options are shown."""
    K = len(order)
    sides = ("Left", "Right") if K == 2 else tuple(f"Number {k + 1}" for k in range(K))
    keys = ("ArrowLeft", "ArrowRight") if K == 2 else tuple(str(k + 1) for k in range(K))
    one_of = [
        {"key": key, "label": f"{side} is {better}", "value": np.eye(K)[option].tolist(), "panel": k}
        for k, (side, key, option) in enumerate(zip(sides, keys, order, strict=True))
    ]
    tie = {"key": "ArrowUp", "label": "Equally good", "value": [1 / K] * K, "panel": None}
    return [*one_of, tie]


CANNOT_TELL = {"key": "ArrowDown", "label": "Can't tell"}


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "..."


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if n == -1 else str(n) for n in shape) + "]"
