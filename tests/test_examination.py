"""`tutelage oracle check`: what can be learned from passes, what cannot is named with what to do."""

import re

import numpy as np
import pytest

from expert_oracle.loading import OracleSpec
from services import cli
from services.examination import examine
from tutelage.errors import ConfigError
from tutelage.types import EnvRecipe

PENDULUM = EnvRecipe("Pendulum-v1")
HERE = __file__


class Restless:
    """Answers otherwise each time."""

    calls = 0

    def act(self, obs):
        self.calls += 1
        return np.full((len(obs), 1), 1 / self.calls)


def centred(obs):
    return (obs - obs.mean(0))[:, :1]


def one_only(obs):
    return obs[:, :1].reshape(1, 1)


def wide(obs):
    return np.float32(9) * obs[:, :1]


def as_it_is(obs):
    return obs


def found(word):
    return {check.name: check for check in examine(OracleSpec(word), PENDULUM, states=20)}


@pytest.mark.parametrize(
    "word", ["scripted:pendulum", "planner:cem", "noisy:scripted:pendulum", f"{HERE}:wide"]
)
def test_what_can_be_learned_from_passes(word):
    checks = found(word)
    assert list(checks) == ["spaces", "answers", "asked again", "batches", "time"]
    assert {check.level for check in checks.values()} == {"ok"}
    assert "ms in a batch of 20" in checks["time"].found


def test_casts_and_clips_are_said():
    assert (
        "float64 (1,) in Box(-2.0, 2.0, (1,), float32), cast to float32"
        in found("scripted:pendulum")["answers"].found
    )
    assert "of 20 were outside and are clipped" in found(f"{HERE}:wide")["answers"].found


@pytest.mark.parametrize(
    ("word", "name", "words", "advice"),
    [
        ("scripted:cartpole", "spaces", "action space", "Pendulum-v1 has observations Box"),
        (f"{HERE}:as_it_is", "answers", r"shape \(1, 3\), expected \(1, 1\)", "takes actions Box"),
        (f"{HERE}:one_only", "answers", "failed for 20 states: ValueError", "N at once"),
        (f"{HERE}:Restless", "asked again", "20 of 20 answers were others", "give a seed"),
        (f"{HERE}:centred", "batches", "of 20 answers differ alone and in a batch", "each row by itself"),
    ],
)
def test_what_cannot_is_a_failure_that_says_what_to_do(word, name, words, advice):
    (failure,) = (check for check in found(word).values() if check.level == "failure")
    assert failure.name == name
    assert re.search(words, failure.found)
    assert advice in failure.advice


def test_people_are_not_examined():
    with pytest.raises(ConfigError, match="people are not examined"):
        found("human")


@pytest.mark.parametrize(("word", "status"), [("scripted:pendulum", 0), (f"{HERE}:centred", 1)])
def test_the_command_has_a_status(word, status, monkeypatch, capsys):
    arguments = ["tutelage", "oracle", "check", word, "--env", "Pendulum-v1", "--states", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert "batches" in capsys.readouterr().out
