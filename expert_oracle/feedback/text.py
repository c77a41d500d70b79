"""Which of these texts is the better answer? (Ouyang et al., 2022.)

Options: K texts. Context: `prompt`, what they answer; `rubric`, what to judge by. Value: weights [K] that sum
to 1; a tie is 1/K each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expert_oracle.feedback import (
    CANNOT_TELL,
    Body,
    Footage,
    Json,
    checked_text,
    choices_between,
    text_panel,
    weights,
    words,
)
from tutelage.types import Array, Query

MOST_OPTIONS = 9
GUIDE = [
    {
        "title": "One question, several answers",
        "text": "Read the question, then each of the answers below it. Say which answer is the better one.",
    },
    {
        "title": "What is better",
        "text": "Does it do what was asked, is it true, is it clear? A longer answer is not a better one. "
        "If they are about as good, press **up**; if you cannot judge, press **down**.",
    },
    {
        "title": "Stay on the keyboard",
        "text": "**Left** and **right** answer, **D** shows where two answers differ, **Z** takes the last "
        "answer back.",
    },
]


def footage(query: Query) -> list[Footage]:
    return []


def body(query: Query, clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not 2 <= len(query.options) <= MOST_OPTIONS:
        raise ValueError(f"options: a choice is between 2 and {MOST_OPTIONS} texts, got {len(query.options)}")
    return {
        "asked": words(query, "prompt", ""),
        "rubric": words(query, "rubric", ""),
        "texts": [checked_text(f"options[{k}]", option) for k, option in enumerate(query.options)],
    }


def sides(body: Body) -> int:
    return len(body["texts"])


def view(body: Body, order: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": "Which answer is better?",
        "context": body["asked"],
        "help": body["rubric"],
        "panels": [text_panel(body["texts"][option], option) for option in order],
        "control": {"type": "choice", "choices": choices_between(order, "better")},
        "cannot_tell": CANNOT_TELL,
        "guide": GUIDE,
    }


def value(body: Body, said: Json) -> Array:
    """Weights [K] float32."""
    return weights(said, len(body["texts"]))


def agree(one: Array, other: Array) -> float:
    """1 - the total variation distance of the two."""
    return float(1 - 0.5 * abs(one - other).sum())


def example() -> dict[str, Any]:
    return {
        "asked": "Why is the sky blue?",
        "rubric": "True and short.",
        "texts": ["Air scatters **blue** light more than red.", "Because it mirrors the sea."],
    }
