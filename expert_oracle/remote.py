"""An expert in another process: an `Oracle` over gRPC that survives a restart of the service.

    oracle = RemoteOracle(["host:50051"])       # connects at the first question
    actions = oracle.act(obs)                   # obs [N, ...], in pieces of `max_rows`, several in flight

Every piece has an id. When the connection breaks, what is unanswered is asked again over the next one, of the
same service or of another address; an answer that comes twice counts once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tree

from expert_oracle.access import ClientAccess
from expert_oracle.links import Board
from expert_oracle.shared_loop import shared_loop
from tutelage import codec
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.types import Tree, check_leading


class RemoteOracle:
    """The expert at `addresses`, each host:port; of several, all that answer share the questions.

    `deadline_s` without any answer, `connect_timeout_s` without anybody there at the first question, and
    `reconnect_timeout_s` without anybody there since the last answer end in OracleError. `tls`, `ca`, `cert`,
    `key`, `token`, `token_file` and `server_name` are those of `ClientAccess`. Several threads may ask at
    once. It is picklable; the copy connects anew.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        deadline_s: float = 60.0,
        connect_timeout_s: float = 10.0,
        reconnect_timeout_s: float = 60.0,
        max_rows: int = 1024,
        window: int = 16,
        tls: bool = False,
        ca: str = "",
        cert: str = "",
        key: str = "",
        token: str = "",
        token_file: str = "",
        server_name: str = "",
    ) -> None:
        self.addresses = tuple(map(_check_address, addresses))
        self.access = ClientAccess(tls, ca, cert, key, token, token_file, server_name)
        self._max_rows = max_rows
        self._settings: dict[str, Any] = {
            "deadline_s": deadline_s,
            "connect_timeout_s": connect_timeout_s,
            "reconnect_timeout_s": reconnect_timeout_s,
            "window": window,
        }
        _check_settings(max_rows=max_rows, **self._settings)
        self._boards: dict[int, Board] = {}  # by process: a fork connects anew

    def with_settings(self, **changes: Any) -> RemoteOracle:
        """Another client of the same service."""
        known = {**self._settings, **vars(self.access), "max_rows": self._max_rows}
        settings: dict[str, Any] = {**known, **changes}
        return RemoteOracle(self.addresses, **settings)

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._settings | vars(self.access) | {"max_rows": self._max_rows}
        return functools.partial(RemoteOracle, self.addresses, **settings), ()

    def _board(self) -> Board:
        board = self._boards.get(os.getpid())
        if board is None:
            loop = shared_loop().loop
            board = Board(self.addresses, self.access, loop=loop, **self._settings)
            self._boards = {os.getpid(): board}
        return board

    def act(self, obs: Tree) -> Tree:
        """Actions [N, ...] for observations [N, ...]."""
        pieces = self._pieces(obs)
        try:
            requests = [_request(piece) for piece in pieces]
        except ValueError as error:
            raise OracleError(f"observations cannot be sent: {error}") from None
        replies = shared_loop().wait_for(lambda: self._board().ask(requests))
        actions = [self._actions(reply, piece) for reply, piece in zip(replies, pieces, strict=True)]
        if len(actions) == 1:
            return actions[0]
        if isinstance(actions[0], np.ndarray):
            return np.concatenate(actions)
        return tree.map_structure(lambda *leaves: np.concatenate(leaves), *actions)

    def describe(self) -> pb.DescribeReply:
        """What the service says of itself."""
        return shared_loop().wait_for(lambda: self._board().describe())

    def close(self) -> None:
        """Hang up; who waits for an answer gets OracleError, and the next question would connect anew."""
        shared_loop().wait_for(lambda: self._board().close())

    def _pieces(self, obs: Tree) -> list[Tree]:
        N = _length(obs)
        row_bytes = _nbytes(obs) // max(N, 1)
        rows = max(1, min(self._max_rows, codec.MAX_BYTES // 2 // max(row_bytes, 1)))
        if rows >= N:
            return [obs]
        return [_rows(obs, start, start + rows) for start in range(0, N, rows)]

    def _actions(self, reply: pb.ActReply, obs: Tree) -> Tree:
        try:
            actions, N = codec.decode(reply.actions, "actions"), _length(obs)
            if not isinstance(actions, np.ndarray) or actions.shape[:1] != (N,):
                check_leading("actions", actions, N)
        except ValueError as error:
            raise OracleError(f"the expert at {', '.join(self.addresses)} sent garbage: {error}") from None
        return actions


def _request(obs: Tree) -> pb.ActRequest:
    request = pb.ActRequest()
    codec.encode_into(request.obs, obs, "obs")
    return request


def _rows(obs: Tree, start: int, stop: int) -> Tree:
    if isinstance(obs, np.ndarray):
        return obs[start:stop]
    return tree.map_structure(lambda leaf: leaf[start:stop], obs)


def _nbytes(obs: Tree) -> int:
    if isinstance(obs, np.ndarray):
        return obs.nbytes
    return sum(np.asarray(leaf).nbytes for leaf in tree.flatten(obs))


def _length(obs: Tree) -> int:
    return len(obs if isinstance(obs, np.ndarray) else tree.flatten(obs)[0])


def _check_settings(*, max_rows: int, window: int, **times: float) -> None:
    for name, count in (("max_rows", max_rows), ("window", window)):
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{name}: expected a whole number of at least 1, got {count!r}")
    for name, seconds in times.items():
        if not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigError(f"{name}: expected more than 0 seconds, got {seconds!r}")


def _check_address(address: str) -> str:
    host, separator, port = address.strip().rpartition(":")
    if not separator or not host or "/" in host or not port.isdigit():
        raise ConfigError(f"expert address {address!r} is not of the form HOST:PORT")
    return address.strip()
