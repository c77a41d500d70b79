"""The guide to experts: its code runs, and its table is complete."""

import base64
import inspect
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from expert_oracle.loading import KINDS, NAMED, OracleSpec, checked
from expert_oracle.wrappers import Ensemble
from tutelage.plugins import load

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROTO = DOCS.parent / "tutelage" / "proto"
GUIDE = (DOCS / "experts.md").read_text()
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


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    """The expert in C++ of the page, made by its commands; the port on which it answers."""
    if not all(map(shutil.which, ("protoc", "g++", "grpc_cpp_plugin", "pkg-config"))):
        pytest.skip("no C++ with gRPC: install g++ pkg-config protobuf-compiler-grpc libgrpc++-dev")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "tutelage" / "v1").mkdir(parents=True)
    shutil.copy(PROTO / "tutelage" / "v1" / "oracle.proto", folder / "tutelage" / "v1")
    (folder / "expert.cpp").write_text(block(LANGUAGES, "cpp", "//"))
    *make, run = block(LANGUAGES, "sh", "protoc").strip().splitlines()
    subprocess.run("\n".join(make), shell=True, cwd=folder, check=True)
    command = [run.split()[0], "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().split()[-1])
        process.terminate()


@pytest.mark.slow
def test_the_expert_in_cpp_answers(cpp):
    expert = checked(OracleSpec(f"grpc://127.0.0.1:{cpp}").build(), *PENDULUM, "C++")
    obs = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    np.testing.assert_allclose(expert.act(obs), OracleSpec("scripted:pendulum").build().act(obs), atol=1e-5)
    with pytest.raises(Exception, match=r"expected float32 observations \[N, 3\]"):
        OracleSpec(f"grpc://127.0.0.1:{cpp}").build().act(obs[:, :2])
    time.sleep(70)  # keepalives while nothing is asked
    assert expert.act(obs[:1]).shape == (1, 1)
