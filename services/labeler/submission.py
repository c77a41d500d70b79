"""What may be asked: a submission is checked whole, and its fault is named, before any of it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from expert_oracle import feedback
from services.labeler.queue import check_name
from tutelage.types import Array, Query


def check(
    queries: Sequence[Query],
    gold: Mapping[str, Any],
    only: Mapping[str, Sequence[str]],
    never: Mapping[str, Sequence[str]],
) -> None:
    """As of `Labeling.submit`. Raises ValueError, naming the field."""
    for query in queries:
        _check_query(query)
        _check_names(query, only.get(query.id), never.get(query.id))
    for field, by_id in {"gold": gold, "only": only, "never": never}.items():
        if unknown := sorted(set(by_id) - {query.id for query in queries}):
            raise ValueError(f"{field}: {unknown[0]!r} is none of the queries")
    if targeted := sorted(set(gold) & {*only, *never}):
        raise ValueError(f"gold: {targeted[0]!r} is asked of everybody; it takes neither only nor never")
    for query in queries:
        kind = feedback.kind(query.kind)
        if not kind.footage(query):
            body = kind.body(query, [])
            if query.id in gold:
                _named(f"gold, {query.id}", lambda k=kind, b=body, q=query.id: k.value(b, gold[q]))


def _check_query(query: Query) -> None:
    if not query.id or len(query.id) > 150 or not query.id.isprintable():
        raise ValueError(f"query: id {query.id!r} is not of 1 to 150 printable characters")
    if query.answers_wanted < 1:
        raise ValueError(f"query {query.id}: answers_wanted={query.answers_wanted} is not 1 or more")
    if not np.isfinite(query.priority):
        raise ValueError(f"query {query.id}: priority={query.priority} is not a number")


def _check_names(query: Query, only: Sequence[str] | None, never: Sequence[str] | None) -> None:
    for field, names in (("only", only), ("never", never)):
        if names is not None and not names:
            raise ValueError(f"{field}: nobody is named for {query.id!r}")
        for name in names or ():
            check_name(f"{field}, {query.id}", name)
    if only and (left := len(set(only) - set(never or ()))) < query.answers_wanted:
        raise ValueError(
            f"only: {query.id!r} wants {query.answers_wanted} answers, of as many annotators; {left} are left"
        )


def _named(what: str, check: Callable[[], Array]) -> None:
    try:
        check()
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
