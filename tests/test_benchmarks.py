"""What benchmarks take for a figure is what was asked for."""

import json

import pytest

from benchmarks.common import trained
from services.overrides import load_config, to_yaml
from services.run_directory import SEEDS
from tutelage.errors import ConfigError

COMMAND = ["preference-pendulum", "method.comparisons=200"]


@pytest.fixture
def folder(tmp_path):
    """Two seeds, trained as COMMAND says."""
    for k in range(2):
        (tmp_path / f"seed-{k}").mkdir()
        (tmp_path / f"seed-{k}" / "summary.json").write_text(json.dumps({"return_mean": -k}))
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / SEEDS).write_text(to_yaml(load_config(COMMAND[0], [*COMMAND[1:], "seeds=2"])))
    return tmp_path


def test_runs_of_the_same_settings_count(folder):
    assert [one["return_mean"] for one in trained(folder, COMMAND, 2)] == [0, -1]


@pytest.mark.parametrize(
    ("command", "seeds", "words"),
    [
        (COMMAND, 5, r"tune\.seeds=2, and 5 is asked for"),
        ([*COMMAND, "method.pairs=entropy"], 2, r"method\.pairs=None, and 'entropy' is asked for"),
        (COMMAND[:1], 2, r"method\.comparisons=200, and 700 is asked for"),
    ],
)
def test_runs_of_other_settings_are_refused(folder, command, seeds, words):
    with pytest.raises(ConfigError, match=words):
        trained(folder, command, seeds)


def test_runs_that_do_not_say_what_they_are_of_are_refused(folder):
    (folder / SEEDS).unlink()
    with pytest.raises(ConfigError, match=r"has no seeds\.yaml"):
        trained(folder, COMMAND, 2)
