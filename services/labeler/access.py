"""Who may do what at the labeler: invites, sessions, tokens of machines, and the audit log.

    access = Access(store, "hopper", secret=secret, audit=Audit(folder / "audit.jsonl"))
    invite = access.invite("annotator", uses=30)
    session, person = access.enter(invite, "anna", address="10.0.0.7")
    access.person(session)              # Person("anna", "annotator"), or None

Invites, sessions and tokens are in the store by their SHA-256 only: who reads the store can use none of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import redis

from tutelage.errors import ConfigError, ServiceError

Role = Literal["annotator", "operator", "trainer"]
ROLES: tuple[Role, ...] = get_args(Role)
MAY: Mapping[Role, frozenset[Role]] = {
    "annotator": frozenset({"annotator", "operator"}),
    "operator": frozenset({"operator"}),
    "trainer": frozenset({"trainer"}),
}
"""Who may do what a role does."""
YOU = "you"
"""Everybody's name where access is off."""
INVITE_S, SESSION_S = 14 * 86400, 90 * 86400
LONGEST_NAME = 60
TRUSTED_S = 300.0
"""A session that was found in the store is looked up again after so long."""


class Refused(Exception):
    """Somebody may not do something; the words are for them, the status is that of HTTP."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Person:
    """Somebody who has a role, or a machine that has. Made by: Access. Eaten by: the routes, gRPC."""

    name: str
    role: Role
    machine: bool = False

    def may(self, role: Role) -> bool:
        return self.role in MAY[role]


class Access:
    """Invites, sessions and tokens under the name of a queue, in its store. Thread-safe.

    off: everybody is "you" and may do everything but what trainers do; for the loopback only
    token_file: machines, one a line: `TOKEN ROLE NAME`; `#` begins a comment
    """

    def __init__(
        self,
        store: redis.Redis,
        name: str,
        *,
        secret: bytes,
        audit: Audit,
        off: bool = False,
        token_file: str = "",
        requests_per_s: float = 50.0,
        failures_per_minute: float = 20.0,
    ) -> None:
        self.off, self.audit = off, audit
        self._store, self._prefix, self._secret = store, f"{{tutelage:{name}}}", secret
        self._file = _Tokens(token_file)
        self._requests = Limiter(requests_per_s, 10 * requests_per_s)
        self._failures = Limiter(failures_per_minute / 60, failures_per_minute)
        self._trusted: dict[str, tuple[Person, float]] = {}

    # Invites and sessions

    def invite(self, role: Role, *, uses: int = 1, name: str = "", by: str = "") -> str:
        """What opens the door `uses` times, for INVITE_S seconds; with a `name`, to that person only."""
        _check_role(role)
        if name:
            name = _checked_name(name)
        if not 1 <= uses <= 10_000:
            raise ValueError(f"uses: {uses} is not from 1 to 10,000")
        token = secrets.token_urlsafe(24)
        key = self._key("invite", token)
        pipe = self._store.pipeline(transaction=True)
        pipe.hset(key, mapping={"role": role, "uses": uses, "name": name})
        pipe.expire(key, INVITE_S)
        pipe.execute()
        self.audit.note("invited", by=by, role=role, uses=uses, name=name)
        return token

    def enter(self, invite: str, name: str, *, address: str) -> tuple[str, Person]:
        """The session that an invite opens, and whose it is. Raises Refused; ValueError for a bad name.

        A name belongs to who, or to the machine that, first came by it; only an invite made out to that name
        opens it again.
        """
        key = self._key("invite", invite)
        said = self._invited(key, address)
        name = said["name"] or _checked_name(name)
        if self._store.hincrby(key, "uses", -1) < 0:  # type: ignore[operator]
            self._store.hincrby(key, "uses", 1)
            self._refuse(address, "was used already")
        is_new = not self._is_machine(name) and self._store.hsetnx(
            f"{self._prefix}:people", name, json.dumps({"since": time.time()})
        )
        if not is_new and not said["name"]:
            self._store.hincrby(key, "uses", 1)
            raise Refused(409, f"name: {name} is taken; choose another, or ask for an invite of your own")
        person = Person(name, said["role"])  # type: ignore[arg-type]
        return self._open(person, address), person

    def look_at(self, invite: str, *, address: str) -> tuple[Role, str]:
        """What an invite makes of who comes by it, and the name, if it is for one only. Raises Refused."""
        said = self._invited(self._key("invite", invite), address)
        if int(said["uses"]) < 1:
            self._refuse(address, "was used already")
        return said["role"], said["name"]  # type: ignore[return-value]

    def _invited(self, key: str, address: str) -> dict[str, str]:
        if not self._failures.allows(address):
            raise Refused(429, "too many invites that do not work came from your address; wait a minute")
        said = {_text(k): _text(v) for k, v in self._store.hgetall(key).items()}  # type: ignore[union-attr]
        if not said:
            self._refuse(address, "is not known, or too old")
        return said

    def _refuse(self, address: str, why: str) -> NoReturn:
        self._failures.take(address)
        self.audit.note("refused", address=address, why=f"an invite that {why}")
        raise Refused(403, f"invite: it {why}; ask for a new one")

    def _open(self, person: Person, address: str) -> str:
        session = secrets.token_urlsafe(32)
        key, held = self._key("session", session), f"{self._prefix}:sessions:{person.name}"
        pipe = self._store.pipeline(transaction=True)
        pipe.set(key, json.dumps({"name": person.name, "role": person.role}), ex=SESSION_S)
        pipe.sadd(held, key)
        pipe.expire(held, SESSION_S)
        pipe.execute()
        self.audit.note("signed in", by=person.name, role=person.role, address=address)
        return session

    def enter_as_you(self) -> tuple[str, Person]:
        """A session for whoever comes, where access is off: signed, and kept nowhere."""
        assert self.off
        mark = secrets.token_urlsafe(16)
        return f"{mark}.{self._signed('you', mark)}", Person(YOU, "operator")

    def _is_you(self, session: str) -> bool:
        mark, _, signature = session.partition(".")
        return self.off and hmac.compare_digest(self._signed("you", mark).encode(), signature.encode())

    def _signed(self, what: str, words: str) -> str:
        return hmac.new(self._secret, f"{what}:{words}".encode(), hashlib.sha256).hexdigest()

    def person(self, session: str) -> Person | None:
        """Whose session it is; None for one that is not known or has ended."""
        known = self.trusted(session)
        return known if known is not None else self._find("session", session)

    def trusted(self, session: str) -> Person | None:
        """As `person`, without a look into the store: None where that is needed."""
        if self._is_you(session):
            return Person(YOU, "operator")
        found = self._trusted.get(_digest(session))
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def leave(self, session: str) -> None:
        """End a session."""
        person = self.person(session)
        self._store.delete(self._key("session", session))
        self._trusted.pop(_digest(session), None)
        if person is not None:
            self.audit.note("signed out", by=person.name)

    def revoke(self, name: str, *, by: str = "") -> int:
        """End all sessions and tokens of a person or a machine; returns how many there were."""
        held = f"{self._prefix}:sessions:{name}"
        keys = list(self._store.smembers(held))  # type: ignore[arg-type]
        ended = self._store.delete(*keys) if keys else 0
        self._store.delete(held)
        self._trusted.clear()
        self.audit.note("revoked", by=by, name=name, ended=ended)
        return ended  # type: ignore[return-value]

    def uninvite(self, invite: str, *, by: str = "") -> bool:
        """Let nobody else in by an invite; False where there was none."""
        known = bool(self._store.delete(self._key("invite", invite)))
        self.audit.note("took an invite back", by=by, known=known)
        return known

    def has_people(self) -> bool:
        """Whether anybody has ever come in."""
        return bool(self._store.exists(f"{self._prefix}:people"))

    # Machines

    def token(self, role: Role, name: str, *, by: str = "") -> str:
        """A new token for a machine, shown once: only its hash is kept."""
        _check_role(role)
        name, token = _checked_name(name), secrets.token_urlsafe(32)
        key = self._key("token", token)
        pipe = self._store.pipeline(transaction=True)
        pipe.set(key, json.dumps({"name": name, "role": role, "machine": True}))
        pipe.sadd(f"{self._prefix}:sessions:{name}", key)
        pipe.persist(f"{self._prefix}:sessions:{name}")
        pipe.execute()
        self.audit.note("token made", by=by, role=role, name=name)
        return token

    def machine(self, token: str) -> Person | None:
        """Whose token it is: of the file, or one that was made; None for others."""
        return self._file.find(token) or self.trusted(token) or self._find("token", token)

    def _is_machine(self, name: str) -> bool:
        return name in self._file.names or bool(self._store.exists(f"{self._prefix}:sessions:{name}"))

    # Checks

    def csrf(self, session: str) -> str:
        """What a page has to send along with everything that changes something."""
        return self._signed("csrf", session)

    @functools.cached_property
    def mark(self) -> str:
        """Of this labeler: pages keep what is theirs by it, since others may have had the same address."""
        return self._signed("mark", "")[:12]

    def is_csrf(self, session: str, given: str) -> bool:
        return hmac.compare_digest(self.csrf(session).encode(), given.encode())

    def check_rate(self, person: Person) -> None:
        """Raises Refused for one who asks too often."""
        if not self._requests.take(person.name):
            raise Refused(429, "too many requests; wait a moment")

    def _find(self, what: str, token: str) -> Person | None:
        said: Any = self._store.get(self._key(what, token))
        if said is None:
            self._trusted.pop(_digest(token), None)
            return None
        person = Person(**json.loads(said))
        if len(self._trusted) > 10_000:
            self._trusted.clear()
        self._trusted[_digest(token)] = person, time.monotonic() + TRUSTED_S
        return person

    def _key(self, what: str, token: str) -> str:
        return f"{self._prefix}:{what}:{_digest(token)}"


class Audit:
    """A line of JSON for everything that matters who did it. Readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._refusals = Limiter(1.0, 100.0)

    def note(self, did: str, **what: Any) -> None:
        """Never raises: where it cannot be written, the service's log says so. Floods of refusals are cut."""
        if did == "refused" and not self._refusals.take(""):
            return
        line = json.dumps(
            {"at": round(time.time(), 3), "did": did, **{k: v for k, v in what.items() if v != ""}}
        )
        try:
            with self._lock:
                self.path.touch(mode=0o600, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        except OSError as error:
            logging.getLogger(__name__).error("%s cannot be written: %s; %s", self.path, error.strerror, line)

    def last(self, n: int = 200) -> list[dict[str, Any]]:
        """The last `n` lines, the newest first."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 500 * n))
            lines = file.read().split(b"\n")
        return list(_parsed(reversed(lines)))[:n]


def _parsed(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # cut short at either end
            continue


class Limiter:
    """So many a second, and so many at once; for each key. Thread-safe."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Whether `take` would."""
        return self._now(key) >= 1

    def take(self, key: str) -> bool:
        """Use one up; False where there is none."""
        with self._lock:
            left = self._now(key)
            if left >= 1:
                self._left[key] = left - 1, self._clock()
            if len(self._left) > 10_000:
                self._forget()
            return left >= 1

    def _now(self, key: str) -> float:
        left, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._per_s)

    def _forget(self) -> None:
        self._left = {key: entry for key, entry in self._left.items() if self._now(key) < self._burst}


class _Tokens:
    """Machines of a file."""

    def __init__(self, path: str) -> None:
        self._known: list[tuple[bytes, Person]] = []
        if path:
            self._known = list(_read_tokens(path))
        self.names = frozenset(person.name for _, person in self._known)

    def find(self, token: str) -> Person | None:
        """Takes as long for a wrong token as for a right one."""
        given = _digest(token).encode()
        found = [person for known, person in self._known if hmac.compare_digest(known, given)]
        return found[0] if found else None


def _read_tokens(path: str) -> Iterator[tuple[bytes, Person]]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--token-file: cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split(maxsplit=2)
        if not words:
            continue
        if len(words) != 3 or words[1] not in ROLES:
            raise ConfigError(
                f"--token-file: {path}, line {number} is not of the form TOKEN ROLE NAME with a role of "
                f"{', '.join(ROLES)}; this is the list of machines, a client has its token alone"
            )
        yield _digest(words[0]).encode(), Person(words[2].strip(), words[1], machine=True)


def secret_of(folder: Path) -> bytes:
    """The labeler's secret, made when it is first asked for."""
    path = folder / "secret"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        beside = path.with_name(f".secret-{secrets.token_hex(4)}")
        beside.touch(mode=0o600)
        beside.write_bytes(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):  # another process was quicker
            path.hardlink_to(beside)
        beside.unlink()
    secret = path.read_bytes()
    if len(secret) < 32:
        raise ServiceError(
            f"{path} is damaged: it is not of 32 bytes; remove it, and everybody signs in anew"
        )
    return secret


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"role: {role!r} is not one of {', '.join(ROLES)}")


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"name: {name!r} is not a name of 1 to {LONGEST_NAME} printable characters")
    return name


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
