import numpy as np
import pytest

from tutelage.errors import ConfigError
from tutelage.schedules import schedule


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (1, [1, 1, 1]),
        ("0.25", [0.25, 0.25, 0.25]),
        ({"constant": 0.5}, [0.5, 0.5, 0.5]),
        ("constant(0.5)", [0.5, 0.5, 0.5]),
        ("linear(2)", [1, 0.5, 0]),
        ({"linear": 2}, [1, 0.5, 0]),
        ("exponential(0.5)", [1, 0.5, 0.25]),
        ("0.5**i", [1, 0.5, 0.25]),
        ("i == 0", [1, 0, 0]),
        ("max(0, 1 - i / 15)", [1, 14 / 15, 13 / 15]),
        ("min(1, exp(-i))", [1, np.exp(-1), np.exp(-2)]),
        ("(i < 2) * 0.5", [0.5, 0.5, 0]),
        ("-(-1) * i % 2 // 1", [0, 1, 0]),
    ],
)
def test_schedules_say_what_they_read(spec, values):
    np.testing.assert_allclose([schedule(spec)(i) for i in range(3)], values)


def test_linear_schedules_stay_at_zero():
    assert schedule("linear(15)")(100) == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("__import__('os')", "cannot use"),
        ("i.real", r"cannot use 'i.real'"),
        ("j", "cannot use 'j'"),
        ("0.5 **", "not an expression"),
        ("exp", "cannot use 'exp'"),
        ("linear", "cannot use 'linear'"),
        ("'a'", "cannot use"),
        ("(1).__class__", "cannot use"),
        ("[i for i in (1,)]", "cannot use"),
        ("lambda: 1", "cannot use"),
        ("0 < i < 2", "cannot use"),
        ("1 / i", "no value at i = 0"),
        ("(-1) ** 0.5", "no value at i = 0"),
        ("2", r"is 2 at i = 0.*\[0, 1\]"),
        ("-0.5", r"is -0.5 at i = 0"),
        ("1e308 * 10 - 1e308 * 10", "nan"),
        ({"linear": 2, "constant": 1}, "expected a number or an expression"),
        (None, "expected a number or an expression"),
    ],
)
def test_what_is_no_schedule_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        schedule(spec)


def test_a_schedule_that_leaves_the_range_says_when():
    with pytest.raises(ConfigError, match=r"'i \* 0.5' is 1.5 at i = 3"):
        schedule("i * 0.5")(3)
