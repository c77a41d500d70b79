"""Pickles are read without running what they name."""

import contextlib
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


def written(path, *parts):
    """A program in the language of pickles: opcodes, and values for which a pickle is written."""
    plain = (pickle.dumps(part, 2)[2:-1] if not isinstance(part, Code) else part for part in parts)
    path.write_bytes(b"\x80\x02" + b"".join(plain) + b".")
    return path


class Code(bytes):
    """Opcodes as they are."""


CALL, BUILD = Code(b"R"), Code(b"b")


def named(module, name):
    return Code(f"c{module}\n{name}\n".encode())


def dtype(name, order="<"):
    return named("numpy", "dtype"), (name, False, True), CALL, (3, order, *[None] * 3, -1, -1, 0), BUILD


def array(shape, kind, is_fortrans, data):
    """An array as protocol 2 has it."""
    start = named("numpy.core.multiarray", "_reconstruct"), Code(b"("), named("numpy", "ndarray")
    state = Code(b"("), 1, shape, *kind, is_fortrans, data, Code(b"t"), BUILD
    return *start, (0,), b"b", Code(b"t"), CALL, *state


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_either_byte_order_and_numpy(tmp_path, order, module):
    number = np.array(-1.5, f"{order}f8")
    value = named(module, "scalar"), Code(b"("), *dtype("f8", order), number.tobytes(), Code(b"t"), CALL
    read = read_pickle(written(tmp_path / "file.pkl", *value))
    assert type(read) is np.float64
    assert read == -1.5
    rows = np.arange(6, dtype=f"{order}i4").reshape(2, 3)
    for fortrans in (True, False):
        data = rows.tobytes("F" if fortrans else "C")
        read = read_pickle(written(tmp_path / "file.pkl", *array((2, 3), dtype("i4", order), fortrans, data)))
        np.testing.assert_array_equal(read, rows)


def test_every_kind_of_number_comes_back(tmp_path):
    for kind in ("?", "i1", "u2", "i8", "f2", ">f4", "c16"):
        for value in (np.ones((2, 0, 3), kind), np.asfortranarray(np.arange(6).reshape(2, 3).astype(kind))):
            for protocol in (2, 4, 5):
                (tmp_path / "file.pkl").write_bytes(pickle.dumps(value, protocol))
                read = np.asarray(read_pickle(tmp_path / "file.pkl"))
                np.testing.assert_array_equal(read, value)
                assert read.dtype == value.dtype


def test_arrays_of_something_else_disturb_nobody(tmp_path):
    for other in (np.array([None, {}]), np.array(["text"]), np.zeros(2, [("a", "f4")])):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps({"other": other, "a": np.ones(2)}))
        read = read_pickle(tmp_path / "file.pkl")
        np.testing.assert_array_equal(read["a"], [1, 1])
        with pytest.raises(ValueError, match="does not hold numbers"):
            np.asarray(read["other"])


NDARRAY = named("numpy", "ndarray")
FORGED = {
    "objects by address": (NDARRAY, ((1,), "O", b"A" * 8), CALL),
    "before the buffer": (NDARRAY, ((64,), "u1", b"x" * 8, -64), CALL),
    "objects as the state of a type": (
        *dtype("V8"),
        (3, "|", None, ("a",), {"a": ("O", 0)}, 8, 1, 27),
        BUILD,
    ),
}
MISFITS = {
    "more than there is": array((64,), dtype("u1"), False, b"x" * 8),
    "a negative axis": array((-1, -8), dtype("u1"), False, b"x" * 8),
    "endless nothing": array((2**62, 0), dtype("f4"), False, b""),
    "no bytes": array((1,), dtype("f4"), False, [1]),
    "a number of nothing": (
        named("numpy._core.multiarray", "scalar"),
        Code(b"("),
        *dtype("f8"),
        b"x",
        Code(b"t"),
        CALL,
    ),
}


@pytest.mark.parametrize("program", FORGED.values(), ids=FORGED)
def test_what_would_forge_memory_is_a_record(tmp_path, program):
    read = read_pickle(written(tmp_path / "file.pkl", *program))
    assert isinstance(read, Opaque)
    with pytest.raises((ValueError, TypeError)):
        np.asarray(read).astype(np.float32)


@pytest.mark.parametrize("program", MISFITS.values(), ids=MISFITS)
def test_arrays_that_their_bytes_do_not_make_are_refused(tmp_path, program):
    with pytest.raises(OracleError, match="is no readable pickle"):
        read_pickle(written(tmp_path / "file.pkl", *program))


def test_what_is_found_is_not_changed(tmp_path):
    """A pickle may set attributes of what it has found: here the defaults of functions."""
    state = (None, {"__defaults__": (5,)})
    for module, name in (("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")):
        path = written(tmp_path / "file.pkl", named(module, name), state, BUILD)
        with contextlib.suppress(OracleError):
            read_pickle(path)
        assert _frombuffer.__defaults__ != (5,)
    test_arrays_and_plain_values_come_back(tmp_path)


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
