"""What comes over the line to an expert service and is no question: it is refused, and disturbs nobody."""

import socket

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_oracle import conversation
from expert_oracle.remote import RemoteOracle
from expert_oracle.scripted import SCRIPTED
from tests.oracle_services import FIRST_TWO, OBS, Stream, request, running, serving, stub_of
from tutelage import codec, wire
from tutelage.errors import OracleError
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb

SERVICE = "/tutelage.v1.ExpertOracle/"


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.full((3, 4), np.nan, np.float32), "obs: NaN in 3 of 3 states"),
        (np.array([[0, 1, 2, 3], [0, np.nan, 2, 3]], np.float16), "obs: NaN in 1 of 2 states"),
        (np.zeros((3, 4), np.int64), "obs: expected floating-point numbers, got int64"),
        (np.zeros((3, 5), np.float32), "obs: expected shape (N, 4), got (3, 5)"),
        ((np.zeros((3, 4)), np.zeros((2, 4))), "obs.1: expected leading axes (3,)"),
    ],
)
def test_what_is_no_observation_is_refused(obs, words):
    with running(SCRIPTED["cartpole"], env_id="CartPole-v1") as service:
        with pytest.raises(OracleError) as info:
            RemoteOracle([service.address]).act(obs)
        assert words in str(info.value)
        assert service.batcher.figures.refusals == {"malformed": 1}


def test_infinities_are_observations():
    obs = np.array([[np.inf, -np.inf, 3e38, 3e38]], np.float32)
    with serving(FIRST_TWO) as address:
        np.testing.assert_array_equal(RemoteOracle([address]).act(obs), obs[:, :2])


def test_100_mb_are_refused_on_both_ends():
    obs = np.zeros((1, 25 * 2**20), np.float32)
    options = [("grpc.max_send_message_length", -1)]
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address, options=options) as channel:
        with pytest.raises(OracleError, match="cannot be sent: obs: 104,857,600 bytes, more than the limit"):
            RemoteOracle([address]).act(obs)
        message = pb.ActRequest(id=1)
        codec.encode_into(message.obs, obs, "obs", max_bytes=2**30)
        with pytest.raises(grpc.RpcError) as info:
            stub_of(channel).Act(message, timeout=20)
        assert info.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
NOISE = np.random.default_rng(1).bytes(4096)
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": NOISE,
    "frame of 16 MB that does not come": PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100,
    "noise after the preface": PREFACE + NOISE,
    "tls": b"\x16\x03\x01\xff\xff" + NOISE[:64],
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_the_socket_disturbs_nobody_else(data):
    with serving(FIRST_TWO) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data)
            np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


def test_too_many_questions_in_one_message_end_the_stream():
    with serving(FIRST_TWO) as address:
        stream = Stream(address)
        stream.ask(pb.ActRequest(more=[pb.ActRequest()] * (conversation.MAX_PACKED + 1)))
        with pytest.raises(grpc.RpcError, match="more than 256 questions in one message"):
            stream.hear(1)


def test_a_message_that_would_grow_in_memory_is_refused_before_it_is_parsed():
    bushy = b"\x2a\x00" * (wire.SMALL)  # so many empty questions
    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        calls = (
            lambda: channel.unary_unary(f"{SERVICE}Act")(bushy, timeout=20),
            lambda: next(channel.stream_stream(f"{SERVICE}ActStream")(iter([bushy]), timeout=20)),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError, match="no ActRequest: more than 131,072 fields") as info:
                call()
            assert info.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert channel.unary_unary(f"{SERVICE}Describe")(bushy, timeout=20)


def test_a_tree_of_too_many_parts_is_refused():
    bushy = pb.Tree(list=pb.TreeList(items=[pb.Tree(list=pb.TreeList())] * 5000))
    with serving(FIRST_TWO) as address:
        stream = Stream(address)
        stream.ask(pb.ActRequest(id=1, obs=bushy))
        assert "more than 4096 parts" in stream.hear(1)[1].error


numbers = st.integers(0, 2**64 - 1)
tensors = st.builds(
    pb.Tensor,
    dtype=st.sampled_from(["float32", "uint8", "int64", "bool", "object", ""]) | st.text(max_size=5),
    shape=st.lists(numbers | st.integers(0, 4), max_size=5),
    data=st.binary(max_size=64),
)
trees = st.recursive(
    st.builds(pb.Tree, tensor=tensors) | st.builds(pb.Tree),
    lambda parts: (
        st.builds(lambda items: pb.Tree(list=pb.TreeList(items=items)), st.lists(parts, max_size=3))
        | st.builds(
            lambda items: pb.Tree(map=pb.TreeMap(items=items)),
            st.dictionaries(st.text(max_size=3), parts, max_size=3),
        )
    ),
    max_leaves=5,
)
questions = st.builds(
    lambda obs, timeout_s, oldest: pb.ActRequest(obs=obs, timeout_s=timeout_s, oldest=oldest),
    trees,
    st.floats(),
    numbers,
)


def fuzzed(examples):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, database=None)


def _fuzz_messages(examples):
    """Whatever is asked, each id gets one reply, and the stream goes on."""
    with serving(SCRIPTED["cartpole"], env_id="CartPole-v1") as address:
        stream = Stream(address)
        good = request(np.zeros((1, 4), np.float32))
        ids = iter(range(1, 10**9))

        @fuzzed(examples)
        @given(st.lists(questions, min_size=1, max_size=4), st.booleans())
        def ask(messages, packed):
            for message in [*messages, good]:
                message.id = next(ids)
            last, wanted = good.id, {message.id for message in messages} | {good.id}
            stream.ask(*([pb.ActRequest(more=messages)] if packed else messages), good)
            heard = {}
            while len(heard) < len(wanted):
                reply = next(stream.call)
                for one in reply.more or [reply]:
                    assert one.id not in heard
                    heard[one.id] = one
            assert set(heard) == wanted
            assert heard[last].WhichOneof("result") == "actions"
            assert all(one.WhichOneof("result") in ("actions", "error") for one in heard.values())

        ask()


def _fuzz_bytes(examples):
    """Bytes that are no message, or nearly one, end their own call at most."""
    valid = request(OBS[:2]).SerializeToString()
    flips = st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), max_size=6)
    cuts = st.integers(0, len(valid)).map(lambda end: valid[:end])

    def flipped(changes):
        data = bytearray(valid)
        for place, byte in changes:
            data[place] = byte
        return bytes(data)

    with serving(FIRST_TWO) as address, grpc.insecure_channel(address) as channel:
        raw = channel.unary_unary(f"{SERVICE}Act")

        @fuzzed(examples)
        @given(st.binary(max_size=300) | flips.map(flipped) | cuts)
        def send(data):
            done = raw.future(data, timeout=10)
            assert done.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
            if done.code() == grpc.StatusCode.OK:
                assert pb.ActReply.FromString(done.result()).WhichOneof("result") in ("actions", "error")

        send()
        np.testing.assert_array_equal(RemoteOracle([address]).act(OBS), OBS[:, :2])


def test_fuzzed_messages_are_answered_each():
    _fuzz_messages(60)


def test_fuzzed_bytes_do_no_harm():
    _fuzz_bytes(150)


@pytest.mark.slow
def test_fuzzed_messages_are_answered_each_for_minutes():
    _fuzz_messages(6_000)


@pytest.mark.slow
def test_fuzzed_bytes_do_no_harm_for_minutes():
    _fuzz_bytes(30_000)
