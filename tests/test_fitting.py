"""The quick check of a service says what the thorough one says."""

import numpy as np
import pytest
from gymnasium import spaces

from expert_oracle.fitting import QuicklyChecked
from expert_oracle.loading import CheckedOracle, FunctionOracle
from tutelage.errors import OracleError

BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=1)
OBS = np.zeros((2, 4), np.float32)


def both(answer, space):
    checked = CheckedOracle(FunctionOracle(answer), space, "me")
    return checked, QuicklyChecked(checked)


@pytest.mark.parametrize(
    ("answer", "space"),
    [
        (np.array([[0.5, -1], [1, 0]], np.float32), BOX),
        (np.array([[0.5, -9], [1, 0]], np.float32), BOX),  # clipped
        (np.array([[0.5, -1], [1, 0]], np.float64), BOX),  # cast
        ([[0.5, -1], [1, 0]], BOX),
        (np.array([1, 3]), DISCRETE),
        (np.array([1, 3], np.int8), DISCRETE),
        (np.array([[0, 1], [1, 0]], np.int8), spaces.MultiBinary(2)),
        ({"a": np.array([1, 3])}, spaces.Dict(a=DISCRETE)),
    ],
)
def test_what_is_good_or_can_be_mended(answer, space):
    thorough, quick = (oracle.act(OBS) for oracle in both(lambda obs: answer, space))
    assert str(thorough) == str(quick)
    if not isinstance(quick, dict):
        assert quick.dtype == space.dtype


@pytest.mark.parametrize(
    ("answer", "space"),
    [
        (np.full((2, 2), np.nan, np.float32), BOX),
        (np.zeros((2, 3), np.float32), BOX),
        (np.array([0, 3]), DISCRETE),
        (np.array([1, 4]), DISCRETE),
        (np.array([1.0, 2.0]), DISCRETE),
    ],
)
def test_what_is_no_action_is_refused_in_the_same_words(answer, space):
    words = []
    for oracle in both(lambda obs: answer, space):
        with pytest.raises(OracleError) as info:
            oracle.act(OBS)
        words.append(str(info.value))
    assert words[0] == words[1]


def test_an_expert_that_fails_is_asked_once():
    asked = []

    def fail(obs):
        asked.append(len(obs))
        raise ZeroDivisionError("no idea")

    with pytest.raises(OracleError, match="expert me failed for 2 states: ZeroDivisionError: no idea"):
        both(fail, BOX)[1].act(OBS)
    assert asked == [2]
