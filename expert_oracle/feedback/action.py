"""What would you do here? The question of DAgger, put to a person (Ross et al., 2011).

Options: one state: a segment, of which the last picture counts and the rest shows how it came to that, or an
observation alone. Value: one action, as the environment takes it: an integer [] or numbers [A]. Context:

    env      id of the environment; known ones have names for actions and numbers
    space    {"n": 2, "start": 0} or {"low": [...], "high": [...]}
    actions  names of the actions, or of their components
    draw     {"id": ..., "kwargs": {...}}: an environment that can be put into the observed state is drawn
    observation  names of the observation's numbers
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tree

from expert_oracle.feedback import (
    Body,
    Footage,
    Json,
    clip_panel,
    footage_of,
    numbers,
    text_panel,
    texts,
    whole,
    words,
)
from tutelage.types import Array, EnvRecipe, Query, Segment

LEFT, RIGHT, UP, DOWN = "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "CartPole-v1": {
        "task": "Keep the pole upright and the cart near the middle.",
        "actions": ("Push left", "Push right"),
        "keys": (LEFT, RIGHT),
        "observation": ("cart position (m)", "cart velocity (m/s)", "pole angle (rad)", "pole spin (rad/s)"),
    },
    "MountainCar-v0": {
        "task": "Get up the hill on the right.",
        "actions": ("Push left", "Do nothing", "Push right"),
        "keys": (LEFT, DOWN, RIGHT),
        "observation": ("position", "velocity"),
    },
    "Acrobot-v1": {
        "task": "Swing the tip above the line.",
        "actions": ("Turn left", "Do nothing", "Turn right"),
        "keys": (LEFT, DOWN, RIGHT),
    },
    "LunarLander-v3": {
        "task": "Land softly between the flags.",
        "actions": ("Do nothing", "Left engine", "Main engine", "Right engine"),
        "keys": (DOWN, LEFT, UP, RIGHT),
        "observation": ("x", "y", "x speed", "y speed", "angle", "spin", "left leg down", "right leg down"),
    },
    "Pendulum-v1": {
        "task": "Swing the pole up and keep it there.",
        "actions": ("torque (Nm)",),
        "observation": ("cos of the angle", "sin of the angle", "spin (rad/s)"),
    },
}
"""What gymnasium's pages call actions and observations, and the keys that lie at hand."""
KEYS = "1234567890abcdefghijklmopqstuvwy"  # not n, r, x and z, which the pages need themselves
MOST_ACTIONS = len(KEYS)
MOST_NUMBERS = 64
GUIDE = [
    {
        "title": "You are the expert",
        "text": "You see a situation that the machine got itself into. Say what you would do at this very "
        "moment; the machine learns to do the same.",
    },
    {
        "title": "One step, not a plan",
        "text": "Choose the single best next action. The situation may be hopeless: then choose what you "
        "would still try. Where a clip is shown, its last picture is the moment that counts.",
    },
    {
        "title": "Keys",
        "text": "Each button shows its key. **Z** takes the last answer back. If you do not know what you "
        "would do, say that you can't tell.",
    },
]


def footage(query: Query) -> list[Footage]:
    if len(query.options) != 1:
        raise ValueError(f"options: an action is asked for in one state, got {len(query.options)}")
    state = query.options[0]
    if isinstance(state, Segment):
        shown = footage_of(query, 0)  # without the last action: it is what is asked for
        return [dataclasses.replace(shown, actions=tree.map_structure(lambda leaf: leaf[:-1], shown.actions))]
    if (draw := query.context.get("draw")) is None:
        return []
    try:
        recipe = draw if isinstance(draw, EnvRecipe) else EnvRecipe(draw["id"], dict(draw.get("kwargs", {})))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(f"context.draw: expected {{'id': ..., 'kwargs': {{...}}}}, got {draw!r}") from None
    obs = tree.map_structure(lambda leaf: np.asarray(leaf)[None], state)
    return [Footage(recipe, -1, np.zeros(0), 0, obs, posed=True)]


def body(query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = KNOWN.get(str(query.context.get("env", "")), {})
    body: dict[str, Any] = {"task": words(query, "task", known.get("task", "")), **space_of(query, known)}
    if clips:
        body["clip"] = dict(clips[0])
    if not isinstance(query.options[0], Segment):  # one picture shows no speed
        names = query.context.get("observation", known.get("observation")) or ()
        body["numbers"] = _named_numbers(query.options[0], names)
    elif not clips:
        raise ValueError("clips: a segment is shown as a clip, and there is none")
    return body


def space_of(query: Query, known: Mapping[str, Any]) -> dict[str, Any]:
    """`actions` to choose from, or `sliders`."""
    space = query.context.get("space")
    names = texts("context.actions", query.context.get("actions", known.get("actions", ())))
    if space is None and len(names) > 1:
        space = {"n": len(names)}
    if not isinstance(space, Mapping) or not ({"n"} <= set(space) or {"low", "high"} <= set(space)):
        raise ValueError(
            f"context.space: expected {{'n': ...}} or {{'low': [...], 'high': [...]}}, got {space!r}"
        )
    if "n" in space:
        n = whole("context.space.n", space["n"], 1, MOST_ACTIONS)
        start = whole("context.space.start", space.get("start", 0), -(2**31), 2**31)
        keys = known.get("keys", ())
        if len(keys) != n or len(names) != n:
            keys = KEYS[:n]
        names = names if len(names) == n else [f"Action {start + k}" for k in range(n)]
        return {"actions": names, "keys": list(keys), "start": start}
    low, high = (
        numbers(space["low"], (-1,), "context.space.low"),
        numbers(space["high"], (-1,), "context.space.high"),
    )
    if len(low) != len(high) or not (low < high).all():
        raise ValueError(f"context.space: low {low.tolist()} is not below high {high.tolist()}")
    names = names if len(names) == len(low) else [f"component {k + 1}" for k in range(len(low))]
    return {
        "sliders": [
            {"label": name, "low": a, "high": b, "start": min(max(0.0, a), b), "step": (b - a) / 200}
            for name, a, b in zip(names, low.tolist(), high.tolist(), strict=True)
        ]
    }


def _named_numbers(state: Any, names: Sequence[str]) -> list[list[Any]]:
    """[[name, number], ...] of an observation's first numbers."""
    flat: list[tuple[str, float]] = []
    for path, leaf in tree.flatten_with_path(state):
        where = ".".join(map(str, path)) or "obs"
        try:
            values = np.asarray(leaf, np.float64).reshape(-1)[:MOST_NUMBERS]
        except (TypeError, ValueError):
            raise ValueError(f"options[0], {where}: a state is made of numbers, got {leaf!r:.60}") from None
        flat += [(f"{where}[{k}]", float(number)) for k, number in enumerate(values)]
    if len(names) == len(flat):
        flat = [(str(name), number) for name, (_, number) in zip(names, flat, strict=True)]
    return [
        [name, round(number, 6) if np.isfinite(number) else str(number)]
        for name, number in flat[:MOST_NUMBERS]
    ]


def sides(body: Body) -> int:
    return 1


def view(body: Body, order: Sequence[int]) -> dict[str, Any]:
    panels = []
    if "clip" in body:
        panels.append(clip_panel(body["clip"]) | {"hold_last": True})
    if "numbers" in body:
        rows = "\n".join(f"| {name} | {number} |" for name, number in body["numbers"])
        panels.append(text_panel(f"| what | now |\n|---|---|\n{rows}"))
    return {
        "prompt": "What would you do now?",
        "context": body["task"],
        "panels": panels,
        "control": _control(body),
        "cannot_tell": {"key": "x", "label": "Can't tell"},
        "guide": GUIDE,
    }


def _control(body: Body) -> dict[str, Any]:
    if "sliders" in body:
        return {"type": "sliders", "sliders": body["sliders"]}
    choices = [
        {"key": key, "label": name, "value": body["start"] + k, "panel": None}
        for k, (key, name) in enumerate(zip(body["keys"], body["actions"], strict=True))
    ]
    return {"type": "choice", "choices": choices}


def value(body: Body, said: Json) -> Array:
    """An action: int64 [], or float32 [A] within the sliders' ends."""
    if "sliders" in body:
        low, high = (np.array([slider[end] for slider in body["sliders"]]) for end in ("low", "high"))
        action = numbers(said, low.shape)
        if ((action < low - 1e-9) | (action > high + 1e-9)).any():
            raise ValueError(f"value: {action.tolist()} is not within {low.tolist()} and {high.tolist()}")
        return action.astype(np.float32)
    first, last = body["start"], body["start"] + len(body["actions"]) - 1
    if (
        isinstance(said, bool)
        or not isinstance(said, int | float)
        or not first <= said <= last
        or said != int(said)
    ):
        raise ValueError(f"value: expected an action from {first} to {last}, got {said!r}")
    return np.array(int(said), np.int64)


def agree(one: Array, other: Array) -> float:
    """The same choice, or how near two vectors are, by the larger of them."""
    if np.ndim(one) == 0 or one.dtype.kind in "iu":
        return float(np.array_equal(one, other))
    size = max(float(abs(one).max(initial=0.0)), float(abs(other).max(initial=0.0)), 1e-9)
    return float(1 - abs(one - other).max(initial=0.0) / (2 * size))


def example() -> dict[str, Any]:
    query = Query(
        "example", "action", [np.array([0.1, 0.2, -0.03, -0.4], np.float32)], {"env": "CartPole-v1"}
    )
    return body(query, [])
