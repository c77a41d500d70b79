"""Queries, answers and segments as messages: for the wire, and for the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tree

from services.labeler.queue import Event
from tutelage import codec
from tutelage.proto.tutelage.v1 import labeler_pb2 as pb
from tutelage.types import Answer, EnvRecipe, Query, Segment, Tree


def query_message(query: Query) -> pb.Query:
    """Raises ValueError, naming the field, for what cannot travel."""
    what = f"query {query.id}"
    return pb.Query(
        id=query.id,
        kind=query.kind,
        options=[_option(option, f"{what}, option {i}") for i, option in enumerate(query.options)],
        context={key: _context(value, f"{what}, context.{key}") for key, value in query.context.items()},
        priority=query.priority,
        answers_wanted=query.answers_wanted,
    )


def query_of(message: pb.Query) -> Query:
    """Raises ValueError, naming the field, if it is malformed. Texts are kept, lists become tuples."""
    what = f"query {message.id}"
    return Query(
        id=message.id,
        kind=message.kind,
        options=[_option_of(option, f"{what}, option {i}") for i, option in enumerate(message.options)],
        context={key: _context_of(value, f"{what}, context.{key}") for key, value in message.context.items()},
        priority=message.priority,
        answers_wanted=message.answers_wanted or 1,
    )


def without_pictures(query: Query) -> Query:
    """As machines are asked: they have what was observed, and many questions fit into a message."""
    options = [replace(o, pictures=None) if isinstance(o, Segment) else o for o in query.options]
    return replace(query, options=options)


def without_rewards(query: Query) -> Query:
    """As it may be shown to those whose judgement is asked for."""
    options = [replace(o, rewards=None) if isinstance(o, Segment) else o for o in query.options]
    return replace(query, options=options)


def _option(option: Any, name: str) -> pb.Option:
    if isinstance(option, Segment):
        return pb.Option(segment=segment_message(option, name))
    if isinstance(option, str):
        return pb.Option(text=option)
    if _is_tree(option):
        return pb.Option(state=codec.encode(option, name))
    return pb.Option(json=_json(option, name))


def _option_of(message: pb.Option, name: str) -> Any:
    match message.WhichOneof("what"):
        case "segment":
            return segment_of(message.segment, name)
        case "text":
            return message.text
        case "state":
            return codec.decode(message.state, name)
        case "json":
            return _from_json(message.json, name)
    raise ValueError(f"{name}: empty, expected a segment, a text or a state")


def segment_message(segment: Segment, name: str = "segment") -> pb.Segment:
    """Raises ValueError, naming the field, for what cannot travel."""
    message = pb.Segment(
        obs=codec.encode(segment.obs, f"{name}, obs"),
        actions=codec.encode(segment.actions, f"{name}, actions"),
        recipe=recipe_message(segment.recipe, f"{name}, recipe"),
        seed=segment.seed,
        prefix=codec.encode(segment.prefix, f"{name}, prefix"),
        played=segment.played or 0,
        pictures=segment.pictures or (),
    )
    if segment.rewards is not None:
        message.rewards.CopyFrom(codec.encode_tensor(segment.rewards, f"{name}, rewards"))
    return message


def segment_of(message: pb.Segment, name: str = "segment") -> Segment:
    """Raises ValueError, naming the field, if it is malformed."""
    rewards = (
        codec.decode_tensor(message.rewards, f"{name}, rewards") if message.HasField("rewards") else None
    )
    return Segment(
        obs=codec.decode(message.obs, f"{name}, obs"),
        actions=codec.decode(message.actions, f"{name}, actions"),
        recipe=recipe_of(message.recipe, f"{name}, recipe"),
        seed=message.seed,
        prefix=codec.decode(message.prefix, f"{name}, prefix"),
        rewards=rewards,
        played=message.played or None,
        pictures=tuple(message.pictures) or None,
    )


def recipe_message(recipe: EnvRecipe, name: str = "recipe") -> pb.Recipe:
    return pb.Recipe(
        id=recipe.id,
        kwargs=_json(dict(recipe.kwargs), f"{name}.kwargs"),
        backend=recipe.backend,
        versions=dict(recipe.versions),
    )


def recipe_of(message: pb.Recipe, name: str = "recipe") -> EnvRecipe:
    kwargs = _from_json(message.kwargs or "{}", f"{name}.kwargs")
    if not isinstance(kwargs, dict):
        raise ValueError(f"{name}.kwargs: expected an object, got {message.kwargs[:80]}")
    backend: Any = message.backend or "sync"
    return EnvRecipe(message.id, kwargs, backend, dict(message.versions))


def _context(value: Any, name: str) -> pb.ContextValue:
    if isinstance(value, EnvRecipe):
        return pb.ContextValue(recipe=recipe_message(value, name))
    if _is_tree(value):
        return pb.ContextValue(tree=codec.encode(value, name))
    return pb.ContextValue(json=_json(value, name))


def _context_of(message: pb.ContextValue, name: str) -> Any:
    match message.WhichOneof("what"):
        case "recipe":
            return recipe_of(message.recipe, name)
        case "tree":
            return codec.decode(message.tree, name)
        case "json":
            return _from_json(message.json, name)
    raise ValueError(f"{name}: empty")


def _is_tree(value: Tree) -> bool:
    """Whether it is made of arrays, and of nothing else."""
    leaves: Sequence[Any] = tree.flatten(value)
    return bool(leaves) and all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}; give arrays, or what JSON has") from None


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: no JSON: {error}") from None


def answered_message(event: Event) -> pb.Answered:
    answer = answer_of_body(event.question, event.annotator, event.body)
    return pb.Answered(
        event=event.id,
        query_id=answer.query_id,
        value=codec.encode_tensor(answer.value, "value"),
        annotator=answer.annotator,
        started_at=answer.started_at,
        answered_at=answer.answered_at,
        side_shown=answer.side_shown,
        cannot_tell=answer.cannot_tell,
        undone=event.type == "undo",
    )


def answer_of(message: pb.Answered) -> Answer:
    """An answer that was taken back is one that cannot tell."""
    return Answer(
        query_id=message.query_id,
        value=codec.decode_tensor(message.value, "value"),
        annotator=message.annotator,
        started_at=message.started_at,
        answered_at=message.answered_at,
        side_shown=tuple(message.side_shown),
        cannot_tell=message.cannot_tell or message.undone,
    )


def answer_of_body(query_id: str, annotator: str, body: Mapping[str, Any]) -> Answer:
    """What the queue holds of an answer, as an `Answer`; of one that cannot tell, `value` is empty."""
    value = np.asarray([] if body.get("value") is None else body["value"])
    return Answer(
        query_id=query_id,
        value=value.astype(np.float32) if value.dtype == np.float64 else value,
        annotator=annotator,
        started_at=float(body.get("started_at", 0.0)),
        answered_at=float(body.get("answered_at", 0.0)),
        side_shown=tuple(body.get("side_shown", ())),
        cannot_tell=bool(body.get("cannot_tell", False)),
    )
