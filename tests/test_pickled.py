"""Pickles are read without running what they name."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from expert_oracle.pickled import Opaque, fields, read_pickle
from tutelage.errors import ConfigError, OracleError


class Record:
    """Some class of somebody's."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_arrays_and_plain_values_come_back(tmp_path):
    value = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.float64(0.5),
        "l": [1, (2, "x")],
        None: 3,
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(value, protocol))
        read = read_pickle(tmp_path / "file.pkl")
        np.testing.assert_array_equal(read["a"], value["a"])
        assert (read["n"], read["l"], read[None]) == (0.5, [1, (2, "x")], 3)


def test_other_objects_are_records_of_what_they_hold(tmp_path):
    value = OrderedDict(record=Record(mean=np.ones(3), inner=Record(clip=10.0)), kind=Record)
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(value))
    read = read_pickle(tmp_path / "file.pkl")
    assert isinstance(read, Opaque)
    assert read.name == "collections.OrderedDict"
    assert fields(fields(read["record"])["inner"]) == {"clip": 10.0}
    assert read["kind"].name.endswith(".Record")
    assert fields(3) == {}


def test_nothing_is_run(tmp_path):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"trap": Trap(tmp_path / "sprung"), "numpy": np.save}))
    read = read_pickle(tmp_path / "file.pkl")
    assert not (tmp_path / "sprung").exists()
    assert read["trap"].args == (str(tmp_path / "sprung"),)
    pickle.loads((tmp_path / "file.pkl").read_bytes())
    assert (tmp_path / "sprung").exists()


def test_functions_are_not_changed(tmp_path):
    """A pickle may set attributes of what it has found: here the defaults of a function of numpy's."""
    state = b"N}\x8c\x0c__defaults__(K\x05ts\x86b."  # (None, {"__defaults__": (5,)})
    (tmp_path / "file.pkl").write_bytes(b"\x80\x04cnumpy._core.numeric\n_frombuffer\n" + state)
    assert read_pickle(tmp_path / "file.pkl").__defaults__ == (5,)
    assert _frombuffer.__defaults__ != (5,)


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps(np.ones(9))[:-20], b"\x80\x04\x8c\x05numpy\x93."]
)
def test_what_is_no_pickle_is_one_line(tmp_path, data):
    (tmp_path / "file.pkl").write_bytes(data)
    with pytest.raises(OracleError, match=r"file\.pkl is no readable pickle") as info:
        read_pickle(tmp_path / "file.pkl")
    assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match=r"no such file: nowhere\.pkl"):
        read_pickle(Path("nowhere.pkl"))
