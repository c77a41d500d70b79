"""Who may ask an expert, and who may answer: TLS, client certificates and bearer tokens, on both ends."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from expert_oracle.certificates import expiry
from expert_oracle.metrics import Figures, fault
from tutelage.errors import ConfigError

TOKEN = "TUTELAGE_TOKEN"
"""Environment variable with the token of a client that is given none."""
EXEMPT = "/grpc.health.v1.Health/Check"
"""What asks for no token: it is for probes, and short."""
PROBE_S = 2.0
_SIGNER = "; set ca=PATH of who signed it"
_NAME = "; set server_name=NAME to one that is in it"
ADVICE = {18: _SIGNER, 19: _SIGNER, 20: _SIGNER, 21: _SIGNER, 62: _NAME, 64: _NAME}
"""By OpenSSL's code for what is wrong with a certificate: who signed it is unknown, the name is another."""
HUNG_UP = "it hangs up after the TLS handshake: it asks for a client certificate, by an authority it knows"


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from None


Names = tuple[str, str, str]
"""What the options are called for an authority, a certificate and its key."""
OPTIONS: Names = ("--client-ca", "--tls-cert", "--tls-key")
ARGUMENTS: Names = ("ca", "cert", "key")


@dataclass(frozen=True)
class ServerAccess:
    """Files that say whom a service lets in; all empty: anybody, unencrypted.

    Certificates and tokens are read again when their files change, for connections made from then on.
    """

    tls_cert: str = ""  # PEM, with the chain
    tls_key: str = ""
    client_ca: str = ""  # clients show a certificate that it signed
    token_file: str = ""  # a token a line; a client has one of them

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("a TLS certificate and its key go together: give --tls-cert and --tls-key")
        if self.client_ca and not self.tls_cert:
            raise ConfigError("--client-ca needs TLS: give --tls-cert and --tls-key too")
        if self.tls_cert:
            _context(self.client_ca, self.tls_cert, self.tls_key, OPTIONS)
        if self.token_file:
            TokenFile(self.token_file)

    def credentials(self) -> grpc.ServerCredentials | None:
        if not self.tls_cert:
            return None
        certificates = Changing([self.tls_cert, self.tls_key, self.client_ca], self._certificates)
        return grpc.dynamic_ssl_server_credentials(
            certificates.value, certificates.changed, require_client_authentication=bool(self.client_ca)
        )

    def _certificates(self) -> grpc.ServerCertificateConfiguration:
        _context(self.client_ca, self.tls_cert, self.tls_key, OPTIONS)
        pair = _read(self.tls_key, "--tls-key"), _read(self.tls_cert, "--tls-cert")
        roots = _read(self.client_ca, "--client-ca") if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def interceptors(self, figures: Figures) -> list[grpc.aio.ServerInterceptor]:
        return [TokenCheck(TokenFile(self.token_file), figures)] if self.token_file else []

    def warning(self, address: str) -> str | None:
        """What a service that others can reach lacks."""
        lacking = [] if self.tls_cert else ["TLS (--tls-cert, --tls-key)"]
        if not self.token_file and not self.client_ca:
            lacking.append("tokens (--token-file) or client certificates (--client-ca)")
        if not lacking or is_loopback(address.rpartition(":")[0]):
            return None
        return f"{address} can be reached from other machines and has no {' and no '.join(lacking)}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost" or host.startswith("unix:")


class Changing:
    """A value made from files, made again when one of them changes."""

    def __init__(self, paths: Iterable[str], make: Callable[[], Any]) -> None:
        self._paths = [Path(path).expanduser() for path in paths if path]
        self._make = make
        self._stamp = self._now()
        self.value = make()

    def changed(self) -> Any:
        """The new value; None while it is the old one, or where the new files are no good."""
        stamp = self._now()
        if stamp == self._stamp:
            return None
        try:
            self.value = self._make()
        except ConfigError as error:
            fault("new certificates or tokens not taken", error=str(error))
            return None
        self._stamp = stamp
        return self.value

    def _now(self) -> list[tuple[int, int]]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


class TokenFile:
    """Tokens, one a line; `#` begins a comment."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = Changing([path], self._tokens)

    def _tokens(self) -> list[bytes]:
        lines = (line.partition(b"#")[0].strip() for line in _read(self._path, "--token-file").splitlines())
        tokens = [line for line in lines if line]
        if not tokens:
            raise ConfigError(f"--token-file: {self._path} has no token")
        return tokens

    def knows(self, token: bytes) -> bool:
        """Takes as long for a wrong token as for a right one."""
        self._file.changed()
        return sum(hmac.compare_digest(token, known) for known in self._file.value) > 0


class TokenCheck(grpc.aio.ServerInterceptor):
    """Lets in who has a token; once for a stream. A look at the health is open to all."""

    def __init__(self, tokens: TokenFile, figures: Figures) -> None:
        self._tokens = tokens
        self._figures = figures

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        refusal = self._refusal(handler_call_details)
        if refusal is None:
            return await continuation(handler_call_details)
        self._figures.refusals["unauthenticated"] += 1
        fault("refused", reason=refusal, rpc=handler_call_details.method)
        return _refusing(refusal)

    def _refusal(self, details: Any) -> str | None:
        if details.method == EXEMPT:
            return None
        given = dict(details.invocation_metadata).get("authorization", "")
        kind, _, token = given.partition(" ")
        if kind.lower() != "bearer" or not token:
            return "this service asks for a token, and none was sent"
        return (
            None if self._tokens.knows(token.strip().encode()) else "the token is not known to this service"
        )


def _refusing(refusal: str) -> grpc.RpcMethodHandler:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal)

    return grpc.stream_stream_rpc_method_handler(refuse)  # also for others: it reads nothing


@dataclass(frozen=True)
class ClientAccess:
    """How a client shows who it is, and knows the service. Picklable: files are read where it connects.

    A certificate, a key or an authority of its own means TLS. Without `ca` the authorities that gRPC ships
    are trusted. Without a token the environment's TUTELAGE_TOKEN is sent, if there is one.
    """

    tls: bool = False
    ca: str = ""  # PEM files
    cert: str = ""
    key: str = ""
    token: str = ""
    token_file: str = ""
    server_name: str = ""  # expected in the certificate, where it is not the address

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ConfigError("a client's certificate and its key go together: give `cert` and `key`")
        if self.token and self.token_file:
            raise ConfigError("give `token` or `token_file`, not both")

    @property
    def encrypted(self) -> bool:
        return self.tls or bool(self.ca or self.cert)

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        if not self.encrypted:
            return grpc.aio.insecure_channel(address, options=options)
        _context(self.ca, self.cert, self.key)
        names = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        credentials = grpc.ssl_channel_credentials(
            _read(self.ca, "ca") if self.ca else None,
            _read(self.key, "key") if self.key else None,
            _read(self.cert, "cert") if self.cert else None,
        )
        return grpc.aio.secure_channel(address, credentials, options=[*options, *names])

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Raises ConfigError for a token that cannot be sent; it is not shown."""
        token = self.token.strip() or os.environ.get(TOKEN, "").strip()
        if self.token_file:
            token = _first_token(self.token_file)
        if not all("!" <= character <= "~" for character in token):
            raise ConfigError(
                f"{self.token_source()}: a token is one word of visible ASCII (openssl rand -hex 32)"
            )
        return (("authorization", f"Bearer {token}"),) if token else ()

    def token_source(self) -> str:
        """Where the token comes from; empty: there is none."""
        if self.token_file:
            return f"token_file={self.token_file}"
        if self.token:
            return "the argument `token`"
        return f"the environment variable {TOKEN}" if os.environ.get(TOKEN) else ""

    async def explain(self, address: str) -> str | None:
        """Why no connection will come about, found out by a handshake; None if it may yet."""
        why = await self._probe(address)
        if why == HUNG_UP:  # as a service does that is just being stopped: look again
            await asyncio.sleep(0.5)
            why = await self._probe(address)
        return f"{why}; {self._what_of_mine()}" if why == HUNG_UP else why

    def _what_of_mine(self) -> str:
        """What may be wrong with the client's certificate."""
        if not self.cert:
            return "set cert=PATH and key=PATH"
        ends = expiry(_read(self.cert, "cert"))
        if ends is not None and ends < datetime.now(UTC):
            return f"cert={self.cert} expired on {ends:%Y-%m-%d, %H:%M} UTC"
        return f"cert={self.cert} is by another" + " or has expired" * (ends is None)

    async def _probe(self, address: str) -> str | None:
        host, _, port = address.rpartition(":")
        context = _context(self.ca, self.cert, self.key) if self.encrypted else _trusting()
        try:
            async with asyncio.timeout(PROBE_S):
                return await self._handshake(host.strip("[]"), int(port), context)
        except (OSError, TimeoutError):
            return None

    async def _handshake(self, host: str, port: int, context: ssl.SSLContext) -> str | None:
        try:
            name = self.server_name or host
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        except ssl.SSLError as error:
            return self._fault(error)
        try:
            if not self.encrypted:
                return "it speaks TLS: set tls=true, or ca=PATH of who signed it"
            return None if await reader.read(1) else HUNG_UP  # gRPC says hello first
        finally:
            writer.transport.abort()

    def _fault(self, error: ssl.SSLError) -> str | None:
        if isinstance(error, ssl.SSLCertVerificationError):
            advice = ADVICE.get(error.verify_code, "")
            return f"its certificate is not trusted: {error.verify_message.rstrip('.')}{advice}"
        reason = error.reason or ""
        if self.encrypted and ("WRONG_VERSION" in reason or "RECORD_LAYER" in reason):
            return "it does not speak TLS: leave out tls, ca, cert and key"
        return None


def _first_token(path: str) -> str:
    """Of a file as expert services have it: a token a line, `#` begins a comment."""
    lines = _read(path, "token_file").decode("ascii", "replace").splitlines()
    tokens = filter(None, (line.partition("#")[0].strip() for line in lines))
    token = next(tokens, None)
    if token is None:
        raise ConfigError(f"token_file: {path} has no token")
    if len(token.split()) > 1:
        raise ConfigError(
            f"token_file: {path} has more than a token in a line; a labeler's list of machines (TOKEN ROLE "
            "NAME a line) is for the service, and a client's file has its token alone"
        )
    return token


def _context(ca: str, cert: str, key: str, names: Names = ARGUMENTS) -> ssl.SSLContext:
    """Raises ConfigError for files that are no certificates or keys, or do not belong together."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    given = {name: path for name, path in zip(names, (ca, cert, key), strict=True) if path}
    for name, path in given.items():
        _read(path, name)
    if ca:
        _load({names[0]: ca}, lambda: context.load_verify_locations(cafile=Path(ca).expanduser()))
    if cert:
        pair = Path(cert).expanduser(), Path(key).expanduser()
        never_ask = ""  # the terminal for the key's password
        files = {name: path for name, path in given.items() if name != names[0]}
        _load(files, lambda: context.load_cert_chain(*pair, password=never_ask))
    return context


def _load(files: Mapping[str, str], load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        what = "not a certificate and its key" if len(files) > 1 else "no certificate"
        named = " and ".join(f"{name}: {path}" for name, path in files.items())
        raise ConfigError(f"{named}: {what}, in PEM ({error.reason or 'unreadable'})") from None


def _trusting() -> ssl.SSLContext:
    """For a look at who is there; nothing is sent over it."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
