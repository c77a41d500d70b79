"""Who is let in to an expert service, and what those see who are not."""

import datetime
import ipaddress
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expert_oracle.access import ClientAccess, ServerAccess, TokenFile
from expert_oracle.certificates import expiry
from expert_oracle.remote import RemoteOracle
from tests.oracle_services import FIRST_TWO, OBS, ROOT, SERVE, request, serving, stub_of
from tutelage.errors import ConfigError, OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for 127.0.0.1, and writes them beside their keys."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = self._write(name, self._sign(self.subject, self.key.public_key(), True, 1), self.key)[0]

    def issue(self, name, *, days=1.0, host="127.0.0.1"):
        """The paths of a certificate, that is valid for so many days from now, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(
            f"{self.name}-{name}", self._sign(subject, key.public_key(), False, days, host), key
        )

    def _sign(self, subject, key, is_authority, days, host="127.0.0.1"):
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(host))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 3 * DAY)
            .not_valid_after(NOW + days * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _write(self, name, certificate, key):
        paths = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        pem = serialization.Encoding.PEM
        paths[0].write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(pem, *form))
        return tuple(map(str, paths))


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Files by the names that `ServerAccess` and `ClientAccess` give them."""
    folder = tmp_path_factory.mktemp("pki")
    ours, other = Authority(folder, "ours"), Authority(folder, "other")
    (folder / "token").write_text("# tokens\nsesame\nopen # the old one\n")
    tls = dict(zip(("tls_cert", "tls_key"), ours.issue("server"), strict=True))
    return {
        "tls": tls,
        "expired": dict(zip(("tls_cert", "tls_key"), ours.issue("expired", days=-1), strict=True)),
        "elsewhere": dict(zip(("tls_cert", "tls_key"), ours.issue("far", host="10.9.9.9"), strict=True)),
        "mutual": tls | {"client_ca": ours.ca},
        "tokens": {"token_file": str(folder / "token")},
        "plain": {},
        "ca": {"ca": ours.ca},
        "wrong ca": {"ca": other.ca},
        "client": {"ca": ours.ca, **dict(zip(("cert", "key"), ours.issue("client"), strict=True))},
        "stranger": {"ca": ours.ca, **dict(zip(("cert", "key"), other.issue("client"), strict=True))},
        "late": {"ca": ours.ca, **dict(zip(("cert", "key"), ours.issue("late", days=-1), strict=True))},
        "sesame": {"token": "sesame"},
        "wrong": {"token": "sesam"},
    }


def asked(address, **settings):
    np.testing.assert_array_equal(RemoteOracle([address], **settings).act(OBS), OBS[:, :2])


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("tls", ["ca"]),
        ("mutual", ["client"]),
        ("tokens", ["sesame"]),
        ("mutual tokens", ["client", "sesame"]),
    ],
)
def test_who_has_what_it_takes_is_let_in(pki, server, client):
    access = ServerAccess(**{key: value for name in server.split() for key, value in pki[name].items()})
    with serving(FIRST_TWO, access=access) as address:
        asked(address, **{key: value for name in client for key, value in pki[name].items()})


REFUSALS = [
    ("tokens", "plain", "UNAUTHENTICATED: this service asks for a token, and none was sent; give token_file"),
    (
        "tokens",
        "wrong",
        "UNAUTHENTICATED: the token is not known to this service; it is that of the argument `token`",
    ),
    ("expired", "ca", "its certificate is not trusted: certificate has expired"),
    (
        "tls",
        "wrong ca",
        "its certificate is not trusted: unable to get local issuer certificate; set ca=PATH",
    ),
    ("elsewhere", "ca", "its certificate is not trusted: IP address mismatch, certificate is not valid"),
    ("elsewhere", "ca", "; set server_name=NAME to one that is in it"),
    ("mutual", "ca", "a client certificate, by an authority it knows; set cert=PATH and key=PATH"),
    ("mutual", "stranger", "it asks for a client certificate, by an authority it knows; cert=/"),
    ("mutual", "stranger", "other-client.pem is by another"),
    ("mutual", "late", f"ours-late.pem expired on {NOW - DAY:%Y-%m-%d, %H:%M} UTC"),
    ("tls", "plain", "it speaks TLS: set tls=true, or ca=PATH"),
    ("plain", "ca", "it does not speak TLS: leave out tls, ca, cert and key"),
]


@pytest.mark.parametrize(("server", "client", "words"), REFUSALS)
def test_who_is_refused_is_told_why_in_one_line_and_at_once(pki, server, client, words):
    with serving(FIRST_TWO, access=ServerAccess(**pki[server])) as address:
        start = time.monotonic()
        with pytest.raises(OracleError) as info:
            RemoteOracle([address], connect_timeout_s=10.0, **pki[client]).act(OBS)
        assert time.monotonic() - start < 6
        assert str(info.value).startswith(f"{address} does not serve us as an expert: ")
        assert words in str(info.value)
        assert "\n" not in str(info.value)
        assert len(str(info.value)) < 350


def test_every_rpc_but_a_look_at_the_health_asks_for_the_token(pki):
    with (
        serving(FIRST_TWO, access=ServerAccess(**pki["tokens"])) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub, look = stub_of(channel), health_pb2.HealthCheckRequest()
        health: Any = health_pb2_grpc.HealthStub(channel)
        for names in ((), (("authorization", "Bearer nonsense"),), (("authorization", "sesame"),)):
            for call in (
                lambda names=names: stub.Act(request(OBS), metadata=names, timeout=5),
                lambda names=names: next(stub.ActStream(iter([request(OBS)]), metadata=names, timeout=5)),
                lambda names=names: stub.Describe(pb.DescribeRequest(), metadata=names, timeout=5),
                lambda names=names: next(health.Watch(look, metadata=names, timeout=5)),
            ):
                with pytest.raises(grpc.RpcError) as info:
                    call()
                assert info.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        for token in ("sesame", "open"):
            reply = stub.Act(request(OBS), metadata=(("authorization", f"Bearer {token}"),), timeout=5)
            assert reply.WhichOneof("result") == "actions"
        assert health.Check(look).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("client", ["ca", "stranger", "late"])
def test_a_client_without_a_certificate_that_is_good_sees_unavailable(pki, client):
    files = [pki[client].get(name) for name in ("ca", "key", "cert")]
    credentials = grpc.ssl_channel_credentials(*(path and Path(path).read_bytes() for path in files))
    with (
        serving(FIRST_TWO, access=ServerAccess(**pki["mutual"])) as address,
        grpc.secure_channel(address, credentials) as channel,
        pytest.raises(grpc.RpcError) as info,
    ):
        stub_of(channel).Act(request(OBS), timeout=5)
    assert info.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def test_the_token_comes_from_the_environment_or_a_file(pki, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("sesame\n")
    with serving(FIRST_TWO, access=ServerAccess(**pki["tokens"])) as address:
        asked(address, token_file=str(tmp_path / "mine"))
        monkeypatch.setenv("TUTELAGE_TOKEN", "sesame")
        asked(address)


def test_a_wrong_token_names_its_source(monkeypatch):
    assert ClientAccess(token_file="mine").token_source() == "token_file=mine"
    assert ClientAccess(token="word").token_source() == "the argument `token`"
    assert ClientAccess().token_source() == ""
    monkeypatch.setenv("TUTELAGE_TOKEN", "word")
    assert ClientAccess().token_source() == "the environment variable TUTELAGE_TOKEN"


def test_a_client_reads_a_token_file_as_the_service_does(pki):
    with serving(FIRST_TWO, access=ServerAccess(**pki["tokens"])) as address:
        asked(address, **pki["tokens"])  # a comment, and two tokens


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("sésame".encode(), "one word of visible ASCII"),
        ("sésame".encode("latin-1"), "one word of visible ASCII"),
        (b"open sesame", "more than a token in a line"),
        (b"# nothing yet\n", "has no token"),
    ],
)
def test_a_token_that_cannot_be_sent_is_told_at_once_and_not_shown(tmp_path, monkeypatch, token, words):
    (tmp_path / "mine").write_bytes(token)
    with serving(FIRST_TWO) as address, pytest.raises(OracleError, match=f"^token_file.*: .*{words}") as info:
        asked(address, token_file=str(tmp_path / "mine"), connect_timeout_s=600.0)
    assert "same" not in str(info.value).replace(str(tmp_path), "")
    with pytest.raises(ConfigError, match=r"^the argument `token`: a token is"):
        ClientAccess(token="a\nb").metadata()
    monkeypatch.setenv("TUTELAGE_TOKEN", "é")
    with pytest.raises(ConfigError, match=r"^the environment variable TUTELAGE_TOKEN: a token is"):
        ClientAccess().metadata()


def test_new_tokens_and_certificates_are_taken_without_a_restart(pki, tmp_path):
    tokens, later = tmp_path / "tokens", Authority(tmp_path, "later")
    tokens.write_text("first\n")
    files = {name: tmp_path / name for name in ("tls_cert", "tls_key")}
    for name, path in files.items():
        path.write_bytes(Path(pki["tls"][name]).read_bytes())
    access = ServerAccess(**{name: str(path) for name, path in files.items()}, token_file=str(tokens))
    with serving(FIRST_TWO, access=access) as address:
        asked(address, token="first", **pki["ca"])
        tokens.write_text("")  # no good: the old ones stay
        asked(address, token="first", **pki["ca"])
        tokens.write_text("second\n")
        for path, new in zip(files.values(), later.issue("server"), strict=True):
            path.write_bytes(Path(new).read_bytes())
        asked(address, token="second", ca=later.ca)
        with pytest.raises(OracleError, match="not known"):
            asked(address, token="first", ca=later.ca)


@pytest.mark.parametrize("year", [2049, 2050, 2999])
def test_when_a_certificate_ends(tmp_path, year):
    ends = datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    path, _ = Authority(tmp_path, "ours").issue("client", days=(ends - NOW) / DAY)
    pem = b"for humans\n" + Path(path).read_bytes()
    assert expiry(pem) in (ends, ends - datetime.timedelta(seconds=1))
    assert expiry(b"nothing") is None


def test_a_token_file_knows_its_tokens_only(pki):
    tokens = TokenFile(pki["tokens"]["token_file"])
    assert [tokens.knows(word) for word in (b"sesame", b"open", b"", b"sesam", b"sesame ", b"# tokens")] == [
        *[True] * 2,
        *[False] * 4,
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pki: ServerAccess(tls_cert="x.pem"), "give --tls-cert and --tls-key"),
        (lambda pki: ServerAccess(client_ca="x.pem"), "--client-ca needs TLS"),
        (
            lambda pki: ServerAccess(tls_cert="nowhere.pem", tls_key="k.pem"),
            "--tls-cert: cannot read nowhere.pem: No such file",
        ),
        (
            lambda pki: ServerAccess(pki["tls"]["tls_cert"], pki["expired"]["tls_key"]),
            "not a certificate and its key",
        ),
        (lambda pki: ServerAccess(token_file="nowhere"), "--token-file: cannot read nowhere: No such file"),
        (lambda pki: ServerAccess(token_file=os.devnull), "--token-file: /dev/null has no token"),
        (lambda pki: ClientAccess(cert="x.pem"), "give `cert` and `key`"),
        (lambda pki: ClientAccess(token="a", token_file="b"), "not both"),
    ],
)
def test_settings_that_cannot_be_are_refused(pki, make, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        make(pki)


def test_a_client_whose_files_are_missing_says_so():
    with (
        serving(FIRST_TWO) as address,
        pytest.raises(OracleError, match=r"ca: cannot read nowhere\.pem: No "),
    ):
        asked(address, ca="nowhere.pem")


def test_a_process_whose_file_is_missing_leaves_nothing_but_one_line():
    command = [sys.executable, "-m", "services.cli", "oracle", "ping", "127.0.0.1:1", "ca=nowhere.pem"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: ca: cannot read nowhere.pem: No such file or directory\n"


def test_a_service_that_others_can_reach_warns(pki):
    assert ServerAccess().warning("127.0.0.1:5") is ServerAccess().warning("[::1]:5") is None
    assert ServerAccess(**pki["mutual"]).warning("0.0.0.0:5") is None
    assert ServerAccess(**pki["tls"], **pki["tokens"]).warning("0.0.0.0:5") is None
    assert ServerAccess(**pki["tls"]).warning("0.0.0.0:5") == (
        "0.0.0.0:5 can be reached from other machines and has no tokens (--token-file) or client "
        "certificates (--client-ca)"
    )
    assert "no TLS (--tls-cert, --tls-key) and no tokens" in str(ServerAccess().warning("[::]:5"))


def test_the_command_takes_certificates_and_tokens(pki):
    options = [f"--{key.replace('_', '-')}={value}" for key, value in (pki["mutual"] | pki["tokens"]).items()]
    command = [*SERVE, "scripted:cartpole", "--address", "127.0.0.1:0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        address = child.stdout.readline().partition("grpc://")[2].strip()
        oracle = RemoteOracle([address], **pki["client"], **pki["sesame"])
        assert oracle.describe().name == "scripted:cartpole"
        child.terminate()
        assert child.wait(10) == 0


def test_a_web_proxy_in_the_environment_does_not_matter():
    code = (
        "import sys, numpy as np; from expert_oracle.remote import RemoteOracle;"
        "print(RemoteOracle([sys.argv[1]]).act(np.ones((2, 5))).shape)"
    )
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    with serving(FIRST_TWO) as address:
        command = [sys.executable, "-c", code, address]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ | proxies
        )
    assert (done.stdout, done.stderr) == ("(2, 2)\n", "")
