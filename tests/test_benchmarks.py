"""What benchmarks take for a figure is what was asked for."""

import json

import numpy as np
import pytest

from benchmarks.common import trained
from benchmarks.preferences import ON_TRUE_REWARD, Line, ratios
from services.overrides import load_config, to_yaml
from services.run_directory import SEEDS
from tutelage.errors import ConfigError

COMMAND = ["preference-pendulum", "method.comparisons=200"]


@pytest.fixture
def folder(tmp_path):
    """Two seeds, trained as COMMAND says."""
    for k in range(2):
        (tmp_path / f"seed-{k}").mkdir()
        summary = {"return_mean": -k, "stopped_because": "env_steps=130000"}
        (tmp_path / f"seed-{k}" / "summary.json").write_text(json.dumps(summary))
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


def test_seeds_that_were_interrupted_are_refused(folder):
    summary = {"return_mean": 0.0, "stopped_because": "SIGTERM"}
    (folder / "seed-1" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"was interrupted; `tutelage resume .*` goes on"):
        trained(folder, COMMAND, 2)


def line(answer, *returns, random=10.0):
    mean = float(np.mean(returns))
    return Line("preferences", "labels", "Hopper", answer, 5, mean, (0, 0), returns, random, None, 0, 0)


def test_labels_are_held_against_the_true_reward_by_the_plain_ratio():
    lines = [
        line(ON_TRUE_REWARD, *(100, 100, 100, 100, 100)),
        line("700 labels", *(96, 96, 96, 96, 96)),
        line("350 labels", *(60, 70, 80, 90, 100)),
    ]
    many, few = ratios(lines)
    assert (many.case, many.ratio, many.reach, many.reached) == ("Hopper, 700 labels", 0.96, 0.95, True)
    assert many.ratio_ci95 == (0.96, 0.96)
    assert (few.ratio, few.reach, few.reached) == (0.8, 0.85, False)
    assert 0.6 <= few.ratio_ci95[0] < 0.8 < few.ratio_ci95[1] <= 1.0


def test_of_negative_returns_what_was_gained_over_a_random_policy_counts():
    true = line(ON_TRUE_REWARD, *(-100, -100, -100), random=-300.0)
    (cost,) = ratios([true, line("700 labels", -140, -140, -140, random=-300.0)])
    assert (cost.ratio, cost.reached, cost.ratio_ci95) == (0.8, False, (0.8, 0.8))
    assert ratios([line("uniform", 5, 5, 5)]) == []


def test_runs_that_do_not_say_what_they_are_of_are_refused(folder):
    (folder / SEEDS).unlink()
    with pytest.raises(ConfigError, match=r"has no seeds\.yaml"):
        trained(folder, COMMAND, 2)
