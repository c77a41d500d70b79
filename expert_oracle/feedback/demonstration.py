"""Show how it is done: a person plays an episode in the page.

Options: none. Context: `env` id, `kwargs`, `seed`, `max_steps`, and as for `action` the names of actions and
the space. Value: the actions [T, ...] of the episode, which the server played and knows: the page sends none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expert_oracle.feedback import Body, Footage, Json, action, arguments, numbers, whole, words
from tutelage.types import Array, Query

MOST_STEPS = 10_000
GUIDE = [
    {
        "title": "Your turn",
        "text": "You play one episode yourself. The machine will learn from what you do, so play as well as "
        "you can, and rather calmly than fast.",
    },
    {
        "title": "Keys",
        "text": "Hold a key to act; let go to do nothing. The keys are written below the picture. Where "
        "there are sliders, a gamepad's sticks move them too.",
    },
    {
        "title": "When it ends",
        "text": "It begins with your first key, and ends by itself or when you press **Enter**. It is then "
        "kept. If it goes wrong before that, **R** begins again; after that, **Z** takes it back.",
    },
]


def footage(query: Query) -> list[Footage]:
    return []


def body(query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    env = query.context.get("env")
    if not isinstance(env, str) or not env:
        raise ValueError(f"context.env: expected the id of an environment, got {env!r}")
    known = action.KNOWN.get(env, {})
    return {
        "task": words(query, "task", known.get("task", "")),
        "env": env,
        "kwargs": arguments("context.kwargs", query.context.get("kwargs", {})),
        "seed": whole("context.seed", query.context.get("seed", 0), 0, 2**31 - 1),
        "max_steps": whole("context.max_steps", query.context.get("max_steps", 1000), 1, MOST_STEPS),
        **action.space_of(query, known),
    }


def sides(body: Body) -> int:
    return 1


def view(body: Body, order: Sequence[int]) -> dict[str, Any]:
    control: dict[str, Any] = {"type": "play", "socket": "/api/play/", "keys": None, "sliders": []}
    if "sliders" in body:
        control["sliders"] = body["sliders"]
    else:
        numbered = enumerate(zip(body["keys"], body["actions"], strict=True), body["start"])
        control["keys"] = {key: n for n, (key, _) in numbered}
        control["labels"] = dict(zip(body["keys"], body["actions"], strict=True))
    return {
        "prompt": "Play it yourself",
        "context": body["task"],
        "panels": [],
        "control": control,
        "cannot_tell": {"key": "x", "label": "Not this one"},
        "guide": GUIDE,
    }


def value(body: Body, said: Json) -> Array:
    """Actions [T] int64 or [T, A] float32."""
    if "sliders" in body:
        actions = numbers(said, (-1, len(body["sliders"]))).astype(np.float32)
    else:
        played = numbers(said, (-1,))
        last = body["start"] + len(body["actions"]) - 1
        if (played % 1 != 0).any() or (played < body["start"]).any() or (played > last).any():
            raise ValueError(f"value: expected actions from {body['start']} to {last}")
        actions = played.astype(np.int64)
    if not 1 <= len(actions) <= body["max_steps"]:
        raise ValueError(f"value: {len(actions)} actions; an episode has 1 to {body['max_steps']}")
    return actions


def agree(one: Array, other: Array) -> float:
    """The share of the shorter one's steps in which the same was done."""
    n = min(len(one), len(other))
    same = np.isclose(one[:n], other[:n]).reshape(n, -1).all(1) if n else np.zeros(0)
    return float(same.mean()) if n else 0.0


def example() -> dict[str, Any]:
    return body(
        Query("example", "demonstration", [], {"env": "CartPole-v1", "seed": 3, "max_steps": 200}), []
    )
