"""Which of these clips is better? (Christiano et al., 2017.)

Options: K segments. Value: weights [K] that sum to 1; a tie is 1/K each. Who cannot tell says so instead: it
is not a tie, and nothing is learnt from it. Context: `task`, what to judge by; `prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expert_oracle.feedback import (
    CANNOT_TELL,
    Body,
    Footage,
    Json,
    choices_between,
    clip_panel,
    footage_of,
    weights,
    words,
)
from tutelage.types import Array, Query

MOST_OPTIONS = 9
GUIDE = [
    {
        "title": "Two short clips",
        "text": "You see the same kind of robot or game in each. Say which clip shows the better behaviour "
        "for the task that is written above them. They play in a loop for as long as you like.",
    },
    {
        "title": "Judge only what you see",
        "text": "Do not guess what happened before the clip or what will come after it. If the two are "
        "about as good, press **up**. If you cannot say which is better, because you do not see what "
        "matters, press **down**: that is not the same, and just as useful to know.",
    },
    {
        "title": "Stay on the keyboard",
        "text": "**Left** and **right** answer, **space** pauses, **Z** takes the last answer back. Most "
        "people need three to five seconds for a pair. Which clip is on which side means nothing.",
    },
]


def footage(query: Query) -> list[Footage]:
    K = len(query.options)
    if not 2 <= K <= MOST_OPTIONS:
        raise ValueError(f"options: a comparison is between 2 and {MOST_OPTIONS} segments, got {K}")
    return [footage_of(query, k) for k in range(K)]


def body(query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "prompt": words(query, "prompt", "Which one is better?"),
        "task": words(query, "task", ""),
        "clips": [dict(clip) for clip in clips],
    }


def sides(body: Body) -> int:
    return len(body["clips"])


def view(body: Body, order: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": body["prompt"],
        "context": body["task"],
        "panels": [clip_panel(body["clips"][option], option) for option in order],
        "control": {"type": "choice", "choices": choices_between(order, "better")},
        "cannot_tell": CANNOT_TELL,
        "guide": GUIDE,
    }


def value(body: Body, said: Json) -> Array:
    """Weights [K] float32."""
    return weights(said, len(body["clips"]))


def agree(one: Array, other: Array) -> float:
    """1 - the total variation distance of the two."""
    return float(1 - 0.5 * abs(one - other).sum())


def example() -> dict[str, Any]:
    clip = {"clip": "0" * 64 + ".mp4", "frames": 30, "fps": 20.0, "width": 256, "height": 256}
    clips = [clip, {**clip, "clip": "1" * 64 + ".mp4"}]
    return {"prompt": "Which one is better?", "task": "Run forward.", "clips": clips}
