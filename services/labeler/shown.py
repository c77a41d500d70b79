"""What is known of the questions that annotators were shown: what is in them, and since when who has one.

The latest are remembered; others are looked up in the queue, or filmed once more.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any

from expert_oracle import feedback
from services.labeler.publishing import Filming
from services.labeler.queries import Queries
from services.labeler.queue import Known, Lease, Queue
from tutelage.errors import NoRoom

LOG = logging.getLogger(__name__)
REMEMBERED = 2048  # bodies of questions, and as many leases


class Shown:
    """Thread-safe."""

    def __init__(self, queue: Queue, queries: Queries, clips: Filming) -> None:
        self._queue, self._queries, self._clips = queue, queries, clips
        self._lock = threading.Lock()
        self._bodies: OrderedDict[str, Known] = OrderedDict()
        self._began: OrderedDict[tuple[str, str], float] = OrderedDict()  # leases, by question and annotator

    def remember(self, lease: Lease, annotator: str) -> None:
        self._remember(self._bodies, lease.id, Known(lease.kind, lease.body, lease.again))
        self._remember(self._began, (lease.id, annotator), lease.began_at)

    def look_up(self, question: str) -> Known | None:
        """What there is of it; None where there is no such question."""
        with self._lock:
            if (known := self._bodies.get(question)) is not None:
                return known
        return self._queue.look_up(question)

    def with_body(self, question: str) -> Known | None:
        """Of what was asked, however long ago; None: not yet. No body: it cannot be had any more."""
        known = self.look_up(question)
        if known is not None and known.body is not None:
            return known
        try:
            query = self._queries[question]
            kind = feedback.kind(query.kind)
            films = [self._clips.film(footage) for footage in kind.footage(query)]
            if not all(film.done() for film in films):
                return None
            known = Known(query.kind, kind.body(query, [film.result() for film in films]))
        except NoRoom:
            return None
        except Exception as error:
            LOG.warning("question %s cannot be asked again: %s", question, error)
            return Known("", None)
        self._remember(self._bodies, question, known)
        return known

    def began_at(self, question: str, annotator: str) -> float:
        """The beginning of the lease; 0 where it is over and forgotten."""
        with self._lock:
            began = self._began.get((question, annotator))
        return began if began is not None else self._queue.leased_at(question, annotator) or 0.0

    def _remember(self, what: OrderedDict[Any, Any], name: Any, value: Any) -> None:
        with self._lock:
            what[name] = value
            what.move_to_end(name)
            while len(what) > REMEMBERED:
                what.popitem(last=False)
