"""The guide to experts: its code runs, and its table is complete."""

import base64
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from expert_oracle.access import ServerAccess
from expert_oracle.loading import KINDS, NAMED, OracleSpec, checked
from expert_oracle.remote import RemoteOracle
from expert_oracle.wrappers import Ensemble
from services.overrides import key_values
from tests.oracle_services import serving
from tutelage.errors import OracleError
from tutelage.plugins import load

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROTO = DOCS.parent / "tutelage" / "proto"
GUIDE = (DOCS / "experts.md").read_text()
SERVICE = (DOCS / "oracle-service.md").read_text()
LANGUAGES = (DOCS / "experts-in-other-languages.md").read_text()
PENDULUM = spaces.Box(-8, 8, (3,)), spaces.Box(-2, 2, (1,))
INNER = {"oracle", "arguments", "connection"}


def block(page, language, first):
    """The first block of code in `language` that begins with `first`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(code for code in blocks if code.startswith(first))


def row(word):
    """The arguments in the table's row for a word that begins so."""
    whole = f"{word}`" if word in NAMED else word
    (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"| `{whole}")]
    return set(re.findall(r"[a-z_]+", "".join(re.findall("`([^`]*)`", line.rsplit("|", 2)[1]))))


def test_every_word_has_a_row_with_its_arguments():
    makers = {f"{kind}:": load(maker) for kind, maker in KINDS.items()} | {
        w: load(m) for w, m in NAMED.items()
    }
    makers["expert_oracle.wrappers:Ensemble"] = Ensemble
    for word, maker in makers.items():
        names = list(inspect.signature(maker).parameters)
        rest = names if word in (*NAMED, "expert_oracle.wrappers:Ensemble") else names[1:]
        assert row(word) == set(rest) - INNER, word


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The ten lines, in the working directory."""
    (tmp_path / "mine.py").write_text(block(GUIDE, "python", "# mine.py"))
    monkeypatch.chdir(tmp_path)


def test_the_ten_lines_are_an_expert(mine):
    code = Path("mine.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    expert = checked(OracleSpec("mine.py:Planner", {"gain": 2}).build(), *PENDULUM, "mine.py:Planner")
    np.testing.assert_array_equal(expert.act(np.array([[0.5, 0, 0], [-9, 0, 0]])), [[-1], [2]])


def commands(page, start):
    return [shlex.split(line) for line in page.splitlines() if line.startswith(start)]


@pytest.mark.slow
def test_the_commands_that_need_no_file_train(mine):
    from services.commands import train_command

    words = ("mine.py:Planner", "noisy:checkpoint", "wrappers:Ensemble", "pendulum-planner")
    ours = [line for line in commands(GUIDE, "tutelage train") if any(word in str(line) for word in words)]
    assert len(ours) == 4
    for number, (_, _, preset, *overrides) in enumerate(ours):
        train_command(preset, [*overrides, "stop.rounds=1"], Path(f"run{number}"), quiet=True)


def test_the_bytes_in_the_page_are_that_question_and_answer():
    question, answer = re.findall(r'"data": "([^"]+)"', LANGUAGES)
    obs = np.frombuffer(base64.b64decode(question), "<f4").reshape(1, 3)
    np.testing.assert_array_equal(obs, [[-1, 0, 0.5]])
    torque = OracleSpec("scripted:pendulum").build().act(obs)
    assert base64.b64encode(torque.astype("<f4").tobytes()).decode() == answer


def test_every_argument_of_the_connection_is_in_the_guide():
    names = set(inspect.signature(RemoteOracle).parameters) - {"addresses"}
    known = {
        name for line in SERVICE.splitlines() if line.startswith("|") for name in re.findall("`(\\w+)", line)
    }
    assert names <= known


def test_every_command_that_asks_an_expert_of_the_guides_names_its_environment():
    pages = [path.read_text() for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md")]
    lines = [
        line for page in pages for line in re.findall(r"^\S*tutelage oracle (?:serve|check) .*", page, re.M)
    ]
    assert len(lines) > 8
    assert all("--env" in line or "..." in line for line in lines)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_certificates_of_the_guide_let_in_who_has_one(tmp_path, monkeypatch):
    subprocess.run(["sh", "-ec", block(SERVICE, "sh", "new=")], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    access = ServerAccess("server.pem", "server-key.pem", "ca.pem", "tokens")
    (ping,) = (line for line in commands(SERVICE, "tutelage oracle ping") if "cert=client.pem" in line)
    settings: Any = key_values(ping[4:])
    with serving(OracleSpec("scripted:pendulum").build(), access=access) as address:
        port = address.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1"):
            assert RemoteOracle([f"{host}:{port}"], **settings).act(np.zeros((2, 3))).shape == (2, 1)
        with pytest.raises(OracleError, match="it asks for a client certificate"):
            RemoteOracle([address], ca="ca.pem", token_file="tokens").act(np.zeros((2, 3)))


@contextmanager
def answering(command, folder):
    """A server of the page in a process; gives its port."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().split()[-1])
        finally:
            process.terminate()


def test_the_expert_in_python_answers(tmp_path):
    shutil.copy(PROTO / "tutelage" / "v1" / "oracle.proto", tmp_path)
    (tmp_path / "expert.py").write_text(block(LANGUAGES, "python", "# expert.py"))
    _, make, run = block(LANGUAGES, "sh", "pip").strip().splitlines()
    subprocess.run([sys.executable, *make.split()[1:]], cwd=tmp_path, check=True)
    with answering([sys.executable, run.split()[1], "127.0.0.1:0"], tmp_path) as port:
        expert = checked(OracleSpec(f"grpc://127.0.0.1:{port}").build(), *PENDULUM, "Python")
        obs = np.array([[1, 0, 0.5], [1, 0, -9]], np.float32)
        np.testing.assert_array_equal(expert.act(obs), [[-0.5], [2]])


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    """The expert in C++ of the page, made by its commands; the file."""
    if not all(map(shutil.which, ("protoc", "g++", "grpc_cpp_plugin", "pkg-config"))):
        pytest.skip("no C++ with gRPC: install g++ pkg-config protobuf-compiler-grpc libgrpc++-dev")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "tutelage" / "v1").mkdir(parents=True)
    shutil.copy(PROTO / "tutelage" / "v1" / "oracle.proto", folder / "tutelage" / "v1")
    (folder / "expert.cpp").write_text(block(LANGUAGES, "cpp", "//"))
    *make, run = block(LANGUAGES, "sh", "protoc").strip().splitlines()
    subprocess.run("\n".join(make), shell=True, cwd=folder, check=True)
    return folder / run.split()[0]


@pytest.mark.slow
def test_the_expert_in_cpp_answers(cpp):
    with answering([cpp, "127.0.0.1:0"], cpp.parent) as port:
        expert = checked(OracleSpec(f"grpc://127.0.0.1:{port}").build(), *PENDULUM, "C++")
        obs = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
        theirs = OracleSpec("scripted:pendulum").build().act(obs)
        np.testing.assert_allclose(expert.act(obs), theirs, atol=1e-5)
        with pytest.raises(Exception, match=r"expected float32 observations \[N, 3\]"):
            OracleSpec(f"grpc://127.0.0.1:{port}").build().act(obs[:, :2])
        time.sleep(70)  # keepalives while nothing is asked
        assert expert.act(obs[:1]).shape == (1, 1)


@pytest.mark.slow
def test_the_expert_in_cpp_says_how_it_is_used_and_does_not_share_its_port(cpp):
    for command, status, words in (
        ([cpp], 2, "usage: "),
        ([cpp, "203.0.113.1:50051"], 1, "cannot listen on 203.0.113.1:50051"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == status
        assert words in done.stderr.splitlines()[-1]
    with answering([cpp, "127.0.0.1:0"], cpp.parent) as port:
        second = subprocess.run([cpp, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=30)
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
