"""The labeler service as its callers see it: ask, wait, collect; or lease and answer.

    labeler = LabelerClient("host:50061", token_file="token")
    ids = labeler.submit(queries)
    answers = labeler.wait(ids, timeout_s=60.0)      # as people come and go
    answers = labeler.label(queries)                 # or: hand over, and take what has arrived since

What is under way when the connection breaks is asked again: nothing that is repeated counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from expert_oracle.access import ClientAccess
from expert_oracle.links import CLIENT_OPTIONS, HOPELESS
from expert_oracle.shared_loop import shared_loop
from services.labeler.messages import answer_of, query_message, query_of
from tutelage import codec
from tutelage.errors import ConfigError, ServiceError, Unreachable
from tutelage.proto.tutelage.v1 import labeler_pb2 as pb
from tutelage.proto.tutelage.v1 import labeler_pb2_grpc
from tutelage.types import Answer, Query

LOG = logging.getLogger(__name__)
SENT_BYTES = 16 * 2**20  # of queries in one message, about
SENT = 500  # queries in one message
BACKOFF_S = (0.1, 2.0)  # first, longest
SILENT_S = 1.0  # of trying again
LOOK_S = 2.0  # at what answers instead
NO_TOKEN = (
    "; give token_file=FILE, a file with the token that `tutelage labeler invite --role trainer --name NAME` "
    "prints"
)


@dataclass(frozen=True)
class Leased:
    """A question as a machine gets it. Made by: the client. Eaten by: scripted labelers."""

    id: str
    kind: str
    query: Query
    view: Mapping[str, Any]  # what people are shown
    ends_at: float  # seconds since the epoch, by the store's clock
    began_at: float


class LabelerClient:
    """A labeler service at host:port. A `Labeler`, and the way to people of `expert_oracle.human`.

    deadline_s: for one call
    patience_s: without anybody there, before it is `Unreachable`; `wait` is patient until its own time is up

    `tls`, `ca`, `cert`, `key`, `token`, `token_file` and `server_name` are those of `ClientAccess`. What the
    service refuses is a ServiceError. Several threads may call at once.
    """

    def __init__(
        self,
        address: str,
        *,
        deadline_s: float = 30.0,
        patience_s: float = 60.0,
        tls: bool = False,
        ca: str = "",
        cert: str = "",
        key: str = "",
        token: str = "",
        token_file: str = "",
        server_name: str = "",
    ) -> None:
        self.address = address.removeprefix("grpc://")
        host, _, port = self.address.rpartition(":")
        if not (host and "/" not in host and port.isdigit() and int(port) < 2**16):
            page = "; that of its gRPC, not of the page" * address.startswith("http")
            raise ConfigError(f"labeler: {address!r} is not of the form HOST:PORT{page}")
        self.deadline_s, self.patience_s = deadline_s, patience_s
        self.access = ClientAccess(tls, ca, cert, key, token, token_file, server_name)
        self._stubs: dict[int, tuple[grpc.aio.Channel, Any]] = {}  # by process: a fork connects anew
        self._wanted: dict[str, int] = {}  # by query
        self._heard: dict[str, dict[str, Answer]] = {}  # by query and annotator
        self._cursor = "0"  # how far `_heard` is
        self._labelled = "0"  # how far `label` is

    # Asking

    def submit(
        self,
        queries: Sequence[Query],
        gold: Mapping[str, Any] = {},
        *,
        only: Mapping[str, Sequence[str]] = {},
        never: Mapping[str, Sequence[str]] = {},
    ) -> list[str]:
        """Ask; the ids in order. They are on the service's disk when it returns.

        gold: by id, the known answer, JSON. only, never: by id, the annotators who alone are asked, and those
        who are not. Raises ServiceError for what the service cannot ask.
        """
        for field, by_id in {"gold": gold, "only": only, "never": never}.items():
            if unknown := sorted(set(by_id) - {query.id for query in queries}):
                raise ServiceError(f"{field}: {unknown[0]!r} is none of the queries")
        if a_text := [id for by_id in (only, never) for id, names in by_id.items() if isinstance(names, str)]:
            raise ServiceError(f"only, never: {a_text[0]!r} has a text, expected a list of names")
        self._wanted |= {query.id: query.answers_wanted for query in queries}
        requests = _packed(queries, gold, only, never)
        return [id for request in requests for id in self._call("Submit", request).ids]

    def wait(self, ids: Sequence[str], timeout_s: float) -> list[Answer]:
        """All answers to these queries that there are: as soon as each has as many as it wants, at the latest
        after `timeout_s`. Raises Unreachable where the service was not there at the end of that time.
        """
        shared_loop().run(self._wait(ids, timeout_s))
        return [answer for id in ids for answer in self._heard.get(id, {}).values()]

    def answers(self, cursor: str = "0", wait_s: float = 0.0) -> tuple[list[tuple[str, Answer]], str]:
        """What was answered after `cursor`, each with its event's id, and the cursor after it.

        An answer that was taken back comes once more as one that cannot tell, in place of the first.
        """
        found = list[tuple[str, Answer]]()

        def take(reply: pb.AnswersReply) -> bool:
            nonlocal cursor
            found.extend((one.event, answer_of(one)) for one in reply.answers)
            cursor = reply.cursor
            return bool(found) and wait_s > 0

        shared_loop().run(self._read(lambda: cursor, take, wait_s))
        return found, cursor

    def label(self, queries: Sequence[Query]) -> list[Answer]:
        """Hand queries over; the answers to any that have arrived since the last call."""
        if queries:
            self.submit(queries)
        found, self._labelled = self.answers(self._labelled)
        return [answer for _, answer in found]

    def withdraw(self, ids: Sequence[str] = (), kind: str = "") -> int:
        """Ask nobody new these, or all of a kind; returns how many were open."""
        return self._call("Withdraw", pb.WithdrawRequest(ids=ids, kind=kind)).withdrawn

    # Answering

    def lease(self, annotator: str = "", n: int = 1, kinds: Sequence[str] = ()) -> list[Leased]:
        """At most `n` questions: those that the annotator has, the oldest first, then new ones."""
        reply = self._call("Lease", pb.LeaseRequest(annotator=annotator, n=n, kinds=kinds))
        return [
            Leased(one.id, one.kind, query_of(one.query), json.loads(one.view), one.ends_at, one.began_at)
            for one in reply.assignments
        ]

    def answer(
        self,
        question: str,
        value: Any,
        *,
        annotator: str = "",
        cannot_tell: bool = False,
        started_at: float | None = None,
        reason: str = "",
    ) -> tuple[str, str]:
        """What became of it (accepted, duplicate, lost or unknown), and its event's id.

        value: an array, or JSON. reason: kept with the answer, for people to read.
        """
        request = pb.AnswerRequest(
            annotator=annotator,
            question=question,
            cannot_tell=cannot_tell,
            started_at=time.time() if started_at is None else started_at,
            reason=reason,
        )
        if isinstance(value, np.ndarray | np.generic):
            request.value.CopyFrom(codec.encode_tensor(value, "value"))
        elif not cannot_tell:
            request.json = json.dumps(value)
        reply = self._call("Answer", request)
        return reply.outcome, reply.event

    def beat(self, questions: Sequence[str], annotator: str = "") -> list[str]:
        """Keep these a while longer; those that the annotator still has."""
        return list(self._call("Beat", pb.BeatRequest(annotator=annotator, questions=questions)).kept)

    def undo(self, question: str, annotator: str = "") -> bool:
        """Take the answer back; the question is leased again. False where it is too late."""
        return self._call("Undo", pb.UndoRequest(annotator=annotator, question=question)).undone

    def give_back(self, question: str, annotator: str = "", broken: str = "") -> bool:
        """Not this one; `broken` says why nobody could answer it."""
        request = pb.GiveBackRequest(annotator=annotator, question=question, broken=broken)
        return self._call("GiveBack", request).given_back

    def stats(self) -> pb.StatsReply:
        """How much is waiting, and what has become of it."""
        return self._call("Stats", pb.StatsRequest())

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        for channel, _ in self._stubs.values():
            shared_loop().run(channel.close(None))
        self._stubs.clear()

    # On the shared loop

    def _call(self, name: str, request: Any) -> Any:
        return shared_loop().run(self._persist(name, request))

    async def _persist(self, name: str, request: Any) -> Any:
        async for faults in self._tries(time.monotonic() + self.patience_s):
            try:
                return await self._rpc(name)(
                    request, timeout=self.deadline_s, metadata=self.access.metadata(), wait_for_ready=False
                )
            except grpc.aio.AioRpcError as error:
                faults.append(self._fault(error))

    async def _wait(self, ids: Sequence[str], timeout_s: float) -> None:
        def take(reply: pb.AnswersReply) -> bool:
            self._hear(reply)
            return self._complete(ids)

        if not self._complete(ids):
            await self._read(lambda: self._cursor, take, timeout_s)

    def _complete(self, ids: Iterable[str]) -> bool:
        return all(len(self._heard.get(id, ())) >= self._wanted.get(id, 1) for id in ids)

    def _hear(self, reply: pb.AnswersReply) -> None:
        for one in reply.answers:
            of_query = self._heard.setdefault(one.query_id, {})
            if one.undone:
                of_query.pop(one.annotator, None)
            else:
                of_query[one.annotator] = answer_of(one)
        self._cursor = reply.cursor

    async def _read(
        self, cursor: Callable[[], str], take: Callable[[pb.AnswersReply], bool], wait_s: float
    ) -> None:
        """Read on from the cursor until `take` has enough, or until `wait_s` are over and all is read."""
        ends = time.monotonic() + wait_s
        async for faults in self._tries(max(ends, time.monotonic() + self.patience_s * (wait_s == 0))):
            try:
                if await self._read_on(cursor(), take, None):
                    return
                if await self._read_on(cursor(), take, ends) or time.monotonic() >= ends:
                    return
            except grpc.aio.AioRpcError as error:
                faults.append(self._fault(error))

    async def _read_on(
        self, cursor: str, take: Callable[[pb.AnswersReply], bool], ends: float | None
    ) -> bool:
        """True once `take` has enough; False at the end of what there is, or when `ends` has come."""
        if ends is not None and ends <= time.monotonic():
            return False
        stream = self._rpc("Answers")(
            pb.AnswersRequest(cursor=cursor, follow=ends is not None),
            metadata=self.access.metadata(),
            timeout=None if ends is not None else self.deadline_s,
        )
        try:
            async with asyncio.timeout(None if ends is None else ends - time.monotonic()):
                async for reply in stream:
                    if take(reply):
                        return True
        except TimeoutError:
            pass
        finally:
            stream.cancel()
        return False

    async def _tries(self, until: float) -> AsyncIterator[list[str]]:
        """One try after the other, each with a list for what was wrong. Unreachable at the end of time."""
        pause, longest = BACKOFF_S
        began, said = time.monotonic(), False
        while True:
            faults = list[str]()
            yield faults
            if faults and time.monotonic() + pause > until:
                why = await self.access.explain(self.address) or faults[0]
                raise Unreachable(f"labeler {self.address} cannot be reached: {why}")
            if faults and not said and time.monotonic() > began + SILENT_S:
                said = True
                if await _is_page(self.address):
                    raise ServiceError(
                        f"labeler {self.address}: that is its page; give the address of its gRPC, which "
                        "`tutelage labeler serve --grpc-address HOST:PORT` sets"
                    )
                LOG.warning("labeler %s cannot be reached: %s; trying again", self.address, faults[0])
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    def _fault(self, error: grpc.aio.AioRpcError) -> str:
        """Of what is tried again; raises ServiceError for what would fail again."""
        details = " ".join((error.details() or error.code().name).split())
        if error.code() in HOPELESS:
            lacks = error.code() is grpc.StatusCode.UNAUTHENTICATED and not self.access.metadata()
            raise ServiceError(f"labeler {self.address}: {details}{NO_TOKEN * lacks}") from None
        return details

    def _rpc(self, name: str) -> Any:
        found = self._stubs.get(os.getpid())
        if found is None:
            channel = self.access.channel(self.address, CLIENT_OPTIONS)
            found = channel, labeler_pb2_grpc.LabelerStub(channel)
            self._stubs = {os.getpid(): found}
        return getattr(found[1], name)


async def _is_page(address: str) -> bool:
    """Whether a labeler's page answers there."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            said = await reader.read()
            writer.close()
            return said.startswith(b"HTTP/1.1 200") and b'"status"' in said
    return False


def _packed(
    queries: Sequence[Query],
    gold: Mapping[str, Any],
    only: Mapping[str, Sequence[str]],
    never: Mapping[str, Sequence[str]],
) -> Iterator[pb.SubmitRequest]:
    request, size = pb.SubmitRequest(), 0
    for query in queries:
        message = query_message(query)
        if request.queries and (size + message.ByteSize() > SENT_BYTES or len(request.queries) >= SENT):
            yield request
            request, size = pb.SubmitRequest(), 0
        request.queries.append(message)
        size += message.ByteSize()
        if query.id in gold:
            request.gold[query.id] = json.dumps(gold[query.id])
        if query.id in only:
            request.only[query.id].names.extend(only[query.id])
        if query.id in never:
            request.never[query.id].names.extend(never[query.id])
    if request.queries:
        yield request
