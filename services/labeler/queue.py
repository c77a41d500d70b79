"""The queue of questions, in Redis or Valkey: who is asked what, who answered, and what nobody could.

    queue = Queue(redis.Redis.from_url(url), "pendulum")
    queue.submit([Question("q1", "comparison", body={...}, wanted=2)])
    for lease in queue.lease("anna", n=3):
        queue.answer(lease.id, "anna", {"weights": [1, 0]})
    events, cursor = queue.events(cursor)

Every change is one function on the server (`queue.lua`), so a double click, a late answer, an annotator who
left and a killed process each end with exactly the wanted answers. Questions and answers are small: clips
and tensors are elsewhere, by name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, NamedTuple

import redis

from tutelage.errors import ServiceError

LEASE_S = 90.0
BROKEN_LIMIT = 3
"""Annotators for whom a question has to be broken before nobody else is bothered."""
MAX_BODY = 64 * 2**10  # bytes
Outcome = Literal["accepted", "duplicate", "lost", "unknown"]
Undoing = Literal["undone", "late", "unknown"]


class Banned(ServiceError):
    """An annotator who is asked nothing any more."""


@dataclass(frozen=True)
class Question:
    """What annotators are asked. Made by: the service. Eaten by: the queue."""

    id: str
    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)  # JSON: what the page shows, by name
    priority: float = 0.0  # larger is asked first; then the older one
    wanted: int = 1  # answers, each by another annotator
    only: Sequence[str] = ()  # annotators who may answer; empty: all
    never: Sequence[str] = ()  # annotators who may not
    gold: Any = None  # the known answer, JSON: it measures the annotator and is not learned from
    kept: bool = False  # leased by `lend` only, to any number of annotators
    again: str = ""  # the id of the question that this one asks once more


@dataclass(frozen=True)
class Lease:
    """A question that an annotator has until a time. Made by: the queue. Eaten by: the page."""

    id: str
    kind: str
    body: Mapping[str, Any]
    ends_at: float  # seconds since the epoch, by the store's clock
    began_at: float = 0.0  # likewise
    again: str = ""  # as of the question


@dataclass(frozen=True)
class Event:
    """Something that happened to an answer. Made by: the queue. Eaten by: learner, ledger."""

    id: str  # of the event; larger ones are later
    type: Literal["answer", "undo"]
    question: str
    kind: str
    annotator: str
    body: Mapping[str, Any] = field(default_factory=dict)  # of an answer
    gold: Any = None  # the known answer, where the question had one
    undoes: str = ""  # the event of the answer that does not count any more
    again: str = ""  # the question that this one asks once more: it measures the annotator as well


class Known(NamedTuple):
    """What there is of a question. Made by: the queue. Eaten by: the service."""

    kind: str
    body: Mapping[str, Any] | None  # None: it was done a while ago
    again: str = ""  # as of the question


class Queue:
    """The questions under one name; any number of processes may use it at once.

    All of it lies under keys that begin with `{tutelage:NAME}`. Raises ServiceError where the store is too
    old or cannot be reached.
    """

    def __init__(self, store: redis.Redis, name: str, *, lease_s: float = LEASE_S) -> None:
        self._store = store
        self._prefix = f"{{tutelage:{name}}}"
        self.lease_s, self._lease_ms = lease_s, int(lease_s * 1000)
        self._load()

    def _load(self) -> None:
        code = resources.files("services.labeler").joinpath("queue.lua").read_text()
        try:
            self._store.function_load(code, replace=True)
        except redis.ConnectionError as error:
            raise ServiceError(f"the store cannot be reached: {error}") from None
        except redis.ResponseError as error:
            raise ServiceError(f"the store has to be Redis 7 or Valkey 8, or newer: {error}") from None

    def _call(self, function: str, *arguments: Any) -> Any:
        return self._with_functions(
            lambda: self._store.fcall(f"tutelage_{function}", 1, self._prefix, *arguments)  # type: ignore[arg-type]
        )

    def _with_functions(self, call: Callable[[], Any]) -> Any:
        """A store that came back empty is given them anew."""
        try:
            return call()
        except redis.ResponseError as error:
            if "Function not found" not in str(error):
                raise
        self._load()
        return call()

    # For those who ask

    def submit(self, questions: Sequence[Question]) -> int:
        """Ask; returns how many were new. One whose id is there or withdrawn is left as it is. Raises
        ValueError.
        """
        asked = [list(_arguments(question)) for question in questions]

        def call() -> int:
            pipe = self._store.pipeline(transaction=False)
            for arguments in asked:
                pipe.fcall("tutelage_submit", 1, self._prefix, *arguments)  # type: ignore[arg-type]
            return sum(pipe.execute())

        return self._with_functions(call)

    def withdraw(self, ids: Sequence[str]) -> int:
        """Ask nobody new; who has such a question may still answer it. Returns how many were open, or were
        still to be submitted.
        """
        return self._call("withdraw", *ids)

    def events(self, cursor: str = "0", *, limit: int = 1000, wait_s: float = 0.0) -> tuple[list[Event], str]:
        """What happened after `cursor`, in order, and the cursor after it; waits for something if asked."""
        block = int(wait_s * 1000) or None
        read: Any = self._store.xread({f"{self._prefix}:answers": cursor}, count=limit, block=block)
        events = [_event(entry) for _, entries in read or () for entry in entries]
        return events, events[-1].id if events else cursor

    # For those who answer

    def lease(self, annotator: str, *, n: int = 1, kinds: Sequence[str] = ()) -> list[Lease]:
        """At most `n` questions for this annotator: those that it has, the oldest first, then new ones, best
        first.

        Raises Banned.
        """
        check_name("annotator", annotator)
        try:
            taken = self._call("lease", annotator, self._lease_ms, n, *kinds)
        except redis.ResponseError as error:
            if "BANNED" in str(error):
                raise Banned(f"annotator {annotator} is banned") from None
            raise
        return [_lease(*entry) for entry in taken]

    def lend(self, question: str, annotator: str) -> Literal["lent", "had", "absent", "refused"]:
        """Lease a kept question to this annotator.

        had: it has or had it already. absent: there is none, for now at least. refused: in a pause, or the
        annotator is banned.
        """
        return _text(self._call("lend", question, annotator, self._lease_ms))  # type: ignore[return-value]

    def beat(self, annotator: str, ids: Sequence[str]) -> list[str]:
        """Keep these a while longer; returns those that the annotator still has."""
        return [_text(value) for value in self._call("beat", annotator, self._lease_ms, *ids)]

    def answer(self, question: str, annotator: str, body: Mapping[str, Any]) -> tuple[Outcome, str]:
        """What became of the answer, and its event's id.

        duplicate: the annotator has answered already; the event is that of the first answer. lost: somebody
        else has the question by now, it has all the answers that were wanted, or it is not for this annotator
        or no longer.
        """
        outcome, event = self._call("answer", question, annotator, _json(body))
        return _text(outcome), _text(event)  # type: ignore[return-value]

    def undo(self, question: str, annotator: str) -> Undoing:
        """Take the annotator's answer back and lease it the question again.

        late: the answer counts, and the question is forgotten or the annotator banned. unknown: no answer.
        """
        return _text(self._call("undo", question, annotator, self._lease_ms)[0])  # type: ignore[return-value]

    def give_back(self, question: str, annotator: str, *, broken: str = "") -> bool:
        """Not this one. What is `broken`, and why, for several is a dead letter; False: it was not leased."""
        return bool(self._call("give_back", question, annotator, broken, BROKEN_LIMIT))

    # For those who look after it

    def expire(self) -> int:
        """Take back leases that have ended; returns how many there may be more of than a call takes."""
        return self._call("expire")

    def requeue(self, question: str) -> bool:
        """Ask a dead or withdrawn question again."""
        return bool(self._call("requeue", question))

    def bury(self, question: str, why: str) -> bool:
        """Make a dead letter of a question that could not be asked; False where it was."""
        return bool(self._call("bury", question, why))

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        """open, kept, done, dead, withdrawn; unasked: withdrawn before it was submitted; restored: from a
        ledger, and not submitted since. Empty: not known.
        """
        pipe = self._store.pipeline(transaction=False)
        for question in ids:
            pipe.hget(f"{self._prefix}:query:{question}", "state")
        states = [_text(state or "") for state in pipe.execute()] if ids else []
        return dict(zip(ids, states, strict=True))

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of them that were not asked yet and are no dead letters."""
        unasked = [id for id, state in self.states(ids).items() if state in ("", "restored")]
        dead = self.dead() if unasked else {}
        return [id for id in unasked if id not in dead]

    def look_up(self, question: str) -> Known | None:
        """What there is of it; None where there is no such question."""
        fields: Any = self._store.hmget(f"{self._prefix}:query:{question}", ["kind", "body", "again"])
        kind, body, again = fields
        if kind is None:
            return None
        return Known(_text(kind), None if body is None else json.loads(body), _text(again or b""))

    def leased_at(self, question: str, annotator: str) -> float | None:
        """Since when the annotator has it, in seconds since the epoch; None: it has not."""
        began_us: Any = self._store.zscore(f"{self._prefix}:held:{annotator}", question)
        return None if began_us is None else began_us / 1e6

    def dead(self) -> dict[str, str]:
        """Why, by the ids of those that nobody could answer."""
        return {_text(k): _text(v) for k, v in self._store.hgetall(f"{self._prefix}:dead").items()}  # type: ignore[union-attr]

    def ban(self, annotator: str, banned: bool = True) -> None:
        """Lease nothing more to this annotator; what it has goes back to the others."""
        self._call("ban", annotator, int(banned))

    def banned(self) -> set[str]:
        """Who is."""
        return {_text(name) for name in self._store.smembers(f"{self._prefix}:banned")}  # type: ignore[union-attr]

    def pause(self, paused: bool = True, *, drain: bool = False) -> None:
        """Lease nothing to anybody; answers are still taken. drain: who has questions already keeps them."""
        if paused:
            self._store.set(f"{self._prefix}:paused", "drain" if drain else "1")
        else:
            self._store.delete(f"{self._prefix}:paused")

    def paused(self) -> bool:
        """Also while it is drained."""
        return bool(self._store.exists(f"{self._prefix}:paused"))

    def draining(self) -> bool:
        """Whether who has questions may finish them, in a pause."""
        return self._store.get(f"{self._prefix}:paused") == b"drain"

    def depth(self) -> dict[str, int]:
        """How many questions are open, by kind."""
        kinds: Any = self._store.hgetall(f"{self._prefix}:depth")
        return {_text(kind): int(n) for kind, n in sorted(kinds.items()) if int(n)}

    def oldest_wait_s(self) -> float:
        """How long the oldest open question has been so; 0 where there is none."""
        oldest: Any = self._store.zrange(f"{self._prefix}:since", 0, 0, withscores=True)
        if not oldest:
            return 0.0
        seconds, micros = self._store.time()  # type: ignore[misc]
        return max(0.0, seconds + micros / 1e6 - oldest[0][1] / 1000)

    def counts(self) -> dict[str, int]:
        """Totals, and how many questions are open, leased and dead at the moment."""
        pipe = self._store.pipeline(transaction=True)
        pipe.hgetall(f"{self._prefix}:counts")
        pipe.zcard(f"{self._prefix}:since")
        pipe.zcard(f"{self._prefix}:leases")
        pipe.hlen(f"{self._prefix}:dead")
        totals, *now = pipe.execute()
        names = ("submitted", "answered", "undone", "expired", "given_back", "duplicates", "lost")
        known = {_text(k): int(v) for k, v in totals.items()}
        return {name: known.get(name, 0) for name in names} | dict(
            zip(("open", "leased", "dead"), now, strict=True)
        )

    def submitted(self) -> int:
        """How many questions there ever were. It grows, unless the store loses some."""
        total: Any = self._store.hget(f"{self._prefix}:counts", "submitted")
        return int(total or 0)

    def last_event(self) -> str:
        """The id of the newest; "0" where there is none."""
        newest: Any = self._store.xrevrange(f"{self._prefix}:answers", count=1)
        return _text(newest[0][0]) if newest else "0"

    def has_event(self, id: str) -> bool:
        """Whether it was not lost."""
        return bool(self._store.xrange(f"{self._prefix}:answers", id, id))

    def restore(self, events: Sequence[Event], wanted: int | Mapping[str, int] = 1) -> int:
        """Put the events of a ledger back that a store has lost; returns how many there were.

        They are later than all that it has. Questions that have as many answers as are `wanted`, of each or
        by id, are done; others are asked again once they are submitted.
        """
        last = event_key(self.last_event())
        return sum(
            self._call(
                *("restore", event.id, event.question, event.kind, event.annotator, event.undoes),
                *(_json(event.body), _json(event.gold) if event.gold is not None else ""),
                wanted if isinstance(wanted, int) else wanted.get(event.question, 1),
                event.again,
            )
            for event in events
            if event_key(event.id) > last
        )


def event_key(id: str) -> tuple[int, ...]:
    """What ids of events are sorted by."""
    return tuple(int(part) for part in id.split("-"))


def _arguments(question: Question) -> Iterator[Any]:
    body = _json(question.body)
    for what, name in (("id", question.id), ("kind", question.kind)):
        check_name(what, name)
    if len(body) > MAX_BODY:
        raise ValueError(f"question {question.id}: a body of {len(body):,} bytes; at most {MAX_BODY:,}")
    if question.wanted < 1:
        raise ValueError(f"question {question.id}: wanted={question.wanted} is not 1 or more")
    yield from (question.id, question.kind, body, -question.priority, question.wanted)
    yield from (_names(question.only), _names(question.never))
    yield "" if question.gold is None else _json(question.gold)
    yield "kept" if question.kept else "open"
    yield question.again


def check_name(what: str, name: str) -> None:
    if not name or len(name) > 200 or not name.isprintable():
        raise ValueError(f"{what}: {name[:200]!r} is not a name of 1 to 200 printable characters")


def _names(names: Sequence[str]) -> str:
    return "\n" + "\n".join(names) + "\n" if names else ""


@functools.cache
def _encoder() -> json.JSONEncoder:
    return json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _json(value: Any) -> str:
    return _encoder().encode(value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _lease(question: bytes, kind: bytes, body: bytes, ends_ms: bytes, began_us: bytes, again: bytes) -> Lease:
    ends_at, began_at = float(ends_ms) / 1000, float(began_us) // 1000 / 1000
    return Lease(_text(question), _text(kind), json.loads(body), ends_at, began_at, _text(again))


def _event(entry: Any) -> Event:
    event, fields = entry
    said = {_text(name): _text(value) for name, value in fields.items()}
    return Event(
        id=_text(event),
        type=said["type"],  # type: ignore[arg-type]
        question=said["id"],
        kind=said["kind"],
        annotator=said["who"],
        body=json.loads(said.get("body") or "{}"),
        gold=json.loads(said["gold"]) if said.get("gold") else None,
        undoes=said.get("undoes", ""),
        again=said.get("again", ""),
    )
