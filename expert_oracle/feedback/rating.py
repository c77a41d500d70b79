"""How good is this clip? As a whole, or praise and scolding as it plays (Deep TAMER; Warnell et al., 2018).

Options: one segment. Value: a rating [1] from -1 to 1; with `per_frame` in the context, marks [M, 3]: the
frame that was shown, -1 or 1, and when the key was pressed, in seconds of viewing. Which steps a mark is
about, since people need a while to react, is the learner's to say. Context: `task`; `per_frame`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expert_oracle.feedback import CANNOT_TELL, Body, Footage, Json, clip_panel, footage_of, numbers, words
from tutelage.types import Array, Query

LABELS = ("Bad", "Rather bad", "So-so", "Rather good", "Good")
GUIDE = [
    {
        "title": "One clip at a time",
        "text": "Say how good the behaviour in the clip is for the task that is written above it.",
    },
    {
        "title": "Judge only what you see",
        "text": "Do not guess what came before or what comes after. Use the whole scale: what is best among "
        "all that you saw so far is good, even if it could be better still.",
    },
    {"title": "Keys", "text": "**1** is bad and **5** is good. **Z** takes the last answer back."},
]
GUIDE_PER_FRAME = [
    {
        "title": "Praise and scold",
        "text": "The clip plays once. Each time you see something good press **2**, each time you see "
        "something bad press **1**, as you would train a dog.",
    },
    {
        "title": "At once, and often",
        "text": "Press the moment you see it. Your reaction time is allowed for. Saying nothing means "
        "neither good nor bad.",
    },
    {
        "title": "Then send it",
        "text": "**Enter** sends what you pressed, **R** plays the clip again from zero.",
    },
]


def footage(query: Query) -> list[Footage]:
    if len(query.options) != 1:
        raise ValueError(f"options: a rating is about one segment, got {len(query.options)}")
    return [footage_of(query, 0)]


def body(query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    per_frame = query.context.get("per_frame", False)
    if not isinstance(per_frame, bool):
        raise ValueError(f"context.per_frame: expected true or false, got {per_frame!r}")
    return {"task": words(query, "task", ""), "clip": dict(clips[0]), "per_frame": per_frame}


def sides(body: Body) -> int:
    return 1


def view(body: Body, order: Sequence[int]) -> dict[str, Any]:
    shown = {"context": body["task"], "panels": [clip_panel(body["clip"])], "cannot_tell": CANNOT_TELL}
    if body["per_frame"]:
        marks = [{"key": "1", "label": "Bad", "value": -1}, {"key": "2", "label": "Good", "value": 1}]
        control = {"type": "frames", "marks": marks}
        return {"prompt": "Good or bad, as it happens?", "control": control, "guide": GUIDE_PER_FRAME} | shown
    choices = [
        {"key": str(n + 1), "label": label, "value": [n / 2 - 1], "panel": None}
        for n, label in enumerate(LABELS)
    ]
    return {
        "prompt": "How good is it?",
        "control": {"type": "choice", "choices": choices},
        "guide": GUIDE,
    } | shown


def value(body: Body, said: Json) -> Array:
    """A rating [1], or marks [M, 3], float32."""
    if not body["per_frame"]:
        rating = numbers(said, (1,))
        if abs(rating[0]) > 1:
            raise ValueError(f"value: a rating is from -1 to 1, got {rating[0]:g}")
        return rating.astype(np.float32)
    marks = np.zeros((0, 3)) if said == [] else numbers(said, (-1, 3))
    frames = body["clip"]["frames"]
    wrong = (marks[:, 0] < 0) | (marks[:, 0] >= frames) | (marks[:, 0] % 1 != 0) | (abs(marks[:, 1]) > 1)
    if wrong.any():
        frame, mark, _ = marks[wrong][0]
        raise ValueError(f"value: a mark of {mark:g} at frame {frame:g} of {frames}; marks are from -1 to 1")
    return marks.astype(np.float32)


def agree(one: Array, other: Array) -> float:
    """By the rating, or by the mean of the marks."""
    return float(1 - 0.5 * abs(_rating(one) - _rating(other)))


def _rating(value: Array) -> float:
    marks = value if value.ndim == 1 else value[:, 1]
    return float(marks.mean()) if len(marks) else 0.0


def example() -> dict[str, Any]:
    clip = {"clip": "0" * 64 + ".mp4", "frames": 30, "fps": 20.0, "width": 256, "height": 256}
    return {"task": "Stand upright.", "clip": clip, "per_frame": False}
