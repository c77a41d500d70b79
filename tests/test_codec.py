"""The codec: everything comes back as it went, and nothing malformed gets in."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tree
from google.protobuf.message import DecodeError
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tutelage import codec, wire
from tutelage.proto.__main__ import ROOT, generate
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb

dtypes = st.sampled_from(sorted(codec.DTYPES)).map(np.dtype)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
trees = st.recursive(
    arrays,
    lambda parts: (
        st.dictionaries(st.text(max_size=8), parts, max_size=3) | st.lists(parts, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(trees)
def test_a_tree_comes_back_bit_for_bit(value):
    wire = codec.encode(value).SerializeToString()
    back = codec.decode(pb.Tree.FromString(wire))
    assert same(value, back)
    assert not any(leaf.flags.writeable for leaf in tree.flatten(back))


@given(hnp.arrays(np.float32, (3, 5)))
def test_byte_order_and_memory_layout_do_not_matter(array):
    for other in (array.astype(">f4"), np.asfortranarray(array), array[::-1][::-1]):
        assert same(codec.decode(codec.encode(other)), array)


@given(dtypes.map(str) | st.text(), st.lists(st.integers(0, 2**64 - 1), max_size=40), st.binary(max_size=64))
def test_forged_tensors_are_refused_or_consistent(dtype, shape, data):
    tensor = pb.Tensor(dtype=dtype, shape=shape, data=data)
    try:
        array = codec.decode_tensor(tensor)
    except ValueError:
        return
    assert array.nbytes == len(data)
    assert list(array.shape) == shape


@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise_value_error(data):
    with contextlib.suppress(DecodeError, ValueError):
        codec.decode(pb.Tree.FromString(data))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            pb.Tensor(dtype="float32", shape=[3], data=b"\0" * 8),
            "obs: 8 bytes do not make float32 of shape [3]",
        ),
        (pb.Tensor(dtype="object", shape=[1], data=b"\0" * 8), "obs: unknown dtype 'object'"),
        (pb.Tensor(dtype="float32", shape=[1] * 33, data=b"\0" * 4), "obs: 33 axes"),
        (pb.Tensor(dtype="float32", shape=[0, 2**63], data=b""), "obs: 0 bytes do not make"),
    ],
)
def test_errors_name_the_field(message, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        codec.decode(pb.Tree(tensor=message), "obs")


def test_errors_name_the_part():
    bad = pb.Tree(map=pb.TreeMap(items={"a": pb.Tree(list=pb.TreeList(items=[pb.Tree()]))}))
    with pytest.raises(ValueError, match=r"obs\.a\.0: empty"):
        codec.decode(bad, "obs")
    with pytest.raises(ValueError, match=r"obs\.a\.1: dtype object cannot be sent"):
        codec.encode({"a": (np.zeros(1), np.array([None]))}, "obs")
    with pytest.raises(ValueError, match="obs: key 3 is not a string"):
        codec.encode({3: np.zeros(1)}, "obs")
    with pytest.raises(ValueError, match="obs: 800 bytes, more than the limit of 100"):
        codec.encode(np.zeros(100), "obs", max_bytes=100)
    with pytest.raises(ValueError, match="obs: 800 bytes, more than the limit of 100"):
        codec.decode(codec.encode(np.zeros(100)), "obs", max_bytes=100)


def test_decoding_copies_nothing():
    message = codec.encode(np.zeros(2**20, np.uint8))
    array = codec.decode(message)
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "rest": spaces.Tuple(
            [spaces.Discrete(3, start=1), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 5])]
        ),
    }
)
BOX6, BOX3 = spaces.Box(-1, 1, (6,)), spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize("space", [BOX6, BOX3, spaces.Discrete(4), NESTED])
def test_a_space_is_like_itself_and_its_samples_fit(space):
    described = codec.describe_space(space)
    assert codec.space_difference(described, codec.describe_space(space)) is None
    samples = [space.sample() for _ in range(3)]
    batch = tree.map_structure(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *samples)
    codec.check_batch(batch, described)


@pytest.mark.parametrize(
    ("expert", "environment", "line"),
    [
        (BOX3, BOX6, "expert's action space Box(3,) differs from the environment's Box(6,)"),
        (
            spaces.Discrete(2),
            spaces.Discrete(2, start=1),
            "expert's action space Discrete(2) differs from the environment's Discrete(2, start=1)",
        ),
        (
            BOX6,
            spaces.Box(-2, 2, (6,)),
            "expert's action space Box(6,) from -1.0 to 1.0 differs from the environment's Box(6,) "
            "from -2.0 to 2.0",
        ),
        (
            spaces.Dict({"a": BOX3, "b": BOX3}),
            spaces.Dict({"a": BOX3, "b": BOX6}),
            "expert's action space Box(3,) differs from the environment's Box(6,) at 'b'",
        ),
        (
            spaces.Dict({"a": BOX3}),
            spaces.Dict({"b": BOX3}),
            "expert's action space Dict(a: Box(3,)) differs from the environment's Dict(b: Box(3,))",
        ),
        (
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiDiscrete([2, 4]),
            "expert's action space MultiDiscrete([2, 3]) differs from the environment's "
            "MultiDiscrete([2, 4])",
        ),
    ],
)
def test_differences_are_one_line(expert, environment, line):
    assert codec.space_difference(codec.describe_space(expert), codec.describe_space(environment)) == line


def test_observation_bounds_do_not_matter_and_flat_experts_take_any_shape_of_their_size():
    flat, square = codec.unbounded_space([4]), codec.describe_space(spaces.Box(0, 1, (2, 2)))
    assert codec.space_difference(flat, square, "observation") is None
    assert "observation space" in (codec.space_difference(square, flat, "observation") or "")
    assert codec.space_difference(codec.unbounded_space([2]), square, "observation") is not None


def test_batches_that_do_not_fit_are_named():
    described = codec.describe_space(NESTED)
    with pytest.raises(ValueError, match=r"obs: expected a map with .*, got a tensor"):
        codec.check_batch(np.zeros(3), described)
    camera, rest = np.zeros((2, 4, 4, 3), np.uint8), (np.zeros(2, int), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"obs\.rest: expected a list of 3, got a list of 2"):
        codec.check_batch({"camera": camera, "rest": rest}, described)
    with pytest.raises(ValueError, match=r"obs\.camera: expected integers, got float64"):
        codec.check_batch({"camera": camera / 1.0, "rest": (*rest, rest[1])}, described)
    with pytest.raises(ValueError, match=r"obs: expected shape \(N, 6\), got \(2, 3\)"):
        codec.check_batch(np.zeros((2, 3)), codec.describe_space(BOX6))


def test_unsupported_spaces_are_refused():
    with pytest.raises(ValueError, match="not supported"):
        codec.describe_space(spaces.Text(3))


def test_every_registered_env_that_we_use_can_be_described():
    for env_id in ("CartPole-v1", "LunarLander-v3", "Hopper-v5", "Taxi-v3", "Blackjack-v1"):
        with gym.make(env_id) as env:
            assert codec.space_text(codec.describe_space(env.observation_space))


def test_regenerating_gives_the_committed_code(tmp_path):
    (tmp_path / "tutelage/proto/tutelage/v1").mkdir(parents=True)
    for path in generate(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f"{committed}: run `python -m tutelage.proto`"


def test_the_vocabulary_imports_no_heavy_package():
    code = "import sys, tutelage.codec; print([m for m in ('ray', 'torch', 'gymnasium') if m in sys.modules])"
    root = Path(codec.__file__).parents[1]
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


UNKNOWN = b"\x1a\x00"  # a field that no question has


def nested(tag, inner):
    """A field that holds bytes: its tag, their length, and they."""
    size, length = len(inner), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([tag]) + length + bytes([size]) + inner


@pytest.mark.parametrize(
    "data",
    [
        b"\x2a\x00" * 2**18,  # questions in one message
        nested(0x2A, b"\x2a\x00" * 2**18),
        nested(0x12, nested(0x1A, b"\x0a\x00" * 2**20)),  # parts of a list
        nested(0x12, nested(0x12, nested(0x0A, b"\x0a\x01a\x12\x00") * 2**18)),  # of a map
        nested(0x12, nested(0x0A, nested(0x12, bytes(2**20)))),  # axes of a tensor, packed
        nested(0x12, nested(0x0A, b"\x10\x00" * 2**20)),  # and not
        UNKNOWN * 2**20,
    ],
)
def test_a_message_of_many_parts_is_not_parsed(data):
    assert wire.fault(data, pb.ActRequest.DESCRIPTOR) == "more than 131,072 fields in one message"
    assert wire.fault(data[: wire.SMALL], pb.ActRequest.DESCRIPTOR) is None


@pytest.mark.parametrize(
    "obs",
    [
        np.zeros((4, 2**17), np.float32),
        {str(k): np.zeros(2**4) for k in range(4000)},
        tuple(np.zeros((1, 2, 3)) for _ in range(4000)),
    ],
)
def test_a_message_of_large_parts_is_parsed(obs):
    one = pb.ActRequest(id=2**40, obs=codec.encode(obs), timeout_s=2.0)
    assert wire.fault(one.SerializeToString(), pb.ActRequest.DESCRIPTOR) is None
    many = pb.ActRequest(more=[one] * 3)
    assert wire.fault(many.SerializeToString(), pb.ActRequest.DESCRIPTOR) is None


@pytest.mark.parametrize("end", [b"\xff" * 12, b"\x12\x05", b"\x0b\x0c", b"\x09\x00", b"\x08"])
def test_a_large_message_that_ends_wrongly_is_not_parsed(end):
    data = nested(0x3A, bytes(wire.SMALL)) + end
    assert wire.fault(data, pb.ActRequest.DESCRIPTOR) == "malformed"
