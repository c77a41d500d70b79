"""Every kind of question keeps its promises, and each checks what it is given."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_oracle import feedback
from expert_oracle.feedback import action
from tutelage.types import EnvRecipe, Query, Segment

CLIP = {"clip": "a" * 64 + ".mp4", "frames": 12, "fps": 20.0, "width": 64, "height": 64}
CONTROLS = {"choice", "sliders", "frames", "play"}


def f32(*values):
    return np.array(values, np.float32)


def segment(L=4, start=3, seed=1, rewards=None):
    actions = np.arange(start + L) % 2
    obs = np.zeros((L, 4), np.float32)
    return Segment(obs, actions[start:], EnvRecipe("CartPole-v1"), seed, actions[:start], rewards)


def comparison(K=2, **context):
    return Query("q", "comparison", [segment(rewards=np.ones(4)) for _ in range(K)], context)


def test_the_kinds_are_the_files():
    assert set(feedback.kinds()) >= {"action", "comparison", "demonstration", "rating", "text"}
    with pytest.raises(ValueError, match=r"kind: there is no 'compare'; known: action, comparison"):
        feedback.kind("compare")


@pytest.mark.parametrize("name", feedback.kinds())
def test_every_kind_shows_its_example(name):
    kind = feedback.kind(name)
    body = kind.example()
    assert json.loads(json.dumps(body)) == body
    sides = kind.sides(body)
    for order in (range(sides), range(sides)[::-1]):
        view = kind.view(body, list(order))
        assert json.loads(json.dumps(view))
        assert view["control"]["type"] in CONTROLS
        assert len(view["guide"]) == 3
        assert all({"title", "text"} == set(screen) for screen in view["guide"])
        if sides > 1:
            assert [panel["option"] for panel in view["panels"]] == list(order)
        keys = [choice["key"] for choice in view["control"].get("choices", ())]
        keys += [view["cannot_tell"]["key"]] if view["cannot_tell"] else []
        assert len(keys) == len(set(keys))
        assert "reward" not in json.dumps(view)
        for choice in view["control"].get("choices", ()):
            value = kind.value(body, choice["value"])
            assert kind.agree(value, value) == 1.0


@pytest.mark.parametrize("name", feedback.kinds())
@pytest.mark.parametrize(
    "said", [None, "x", [], {}, [[1, 2], [3]], [float("nan")] * 2, [1e400, 0], True, ["1", "0"]]
)
def test_no_kind_takes_nonsense(name, said):
    kind = feedback.kind(name)
    with pytest.raises(ValueError, match="value"):
        kind.value(kind.example(), said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def test_no_action_has_a_key_that_the_pages_need():
    assert not set(action.KEYS) & set("nrxz")  # another episode, from the beginning, not this one, take back


SPACE = st.fixed_dictionaries({}, optional=dict.fromkeys(("n", "start", "low", "high"), JSON))
CONTEXT = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("task", "prompt", "rubric", "actions", "observation", "per_frame"), JSON)
    | dict.fromkeys(("draw", "kwargs", "seed", "max_steps"), JSON)
    | {"space": SPACE | JSON, "env": st.sampled_from(["CartPole-v1", "Other-v0"]) | JSON},
)
STATE = np.zeros(4, np.float32)
OPTIONS = st.sampled_from([[], [STATE], [segment()], [segment()] * 2, ["a", "b"]]) | st.lists(
    JSON, max_size=3
)


@pytest.mark.parametrize("name", feedback.kinds())
@settings(max_examples=100)
@given(options=OPTIONS, context=CONTEXT)
def test_what_cannot_be_asked_is_refused_and_all_else_is_json(name, options, context):
    kind, query, refusal = feedback.kind(name), Query("q", name, options, context), ""
    try:
        footage = kind.footage(query)
        body = kind.body(query, [CLIP] * len(footage))
    except ValueError as error:
        refusal = str(error)
    else:
        assert all(isinstance(part, feedback.Footage) for part in footage)
        assert json.loads(json.dumps(body, allow_nan=False)) == body
        assert json.dumps(kind.view(body, range(kind.sides(body))), allow_nan=False)
    assert "\n" not in refusal


VALUES = {
    "action": st.integers(0, 1).map(lambda n: np.array(n, np.int64)),
    "comparison": st.floats(0, 1, width=32).map(lambda w: np.array([w, 1 - w])),
    "demonstration": st.lists(st.integers(0, 1), min_size=1, max_size=5).map(np.array),
    "rating": st.floats(-1, 1, width=32).map(lambda r: np.array([r])),
    "text": st.floats(0, 1, width=32).map(lambda w: np.array([w, 1 - w])),
}


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_agreement_is_symmetric_and_whole_with_oneself(name, data):
    kind = feedback.kind(name)
    one, other = (kind.value(kind.example(), data.draw(VALUES[name]).tolist()) for _ in "ab")
    assert kind.agree(one, one) == 1
    assert kind.agree(one, other) == pytest.approx(kind.agree(other, one))
    assert -1e-6 <= kind.agree(one, other) <= 1 + 1e-6


def test_the_footage_of_a_segment_is_its_episode_from_the_first_step():
    first, second = feedback.kind("comparison").footage(comparison())
    assert (first.seed, first.start, len(first.actions)) == (1, 3, 7)
    np.testing.assert_array_equal(second.actions, np.arange(7) % 2)
    assert np.asarray(first.obs).shape == (4, 4)


def test_a_comparison_is_answered_in_the_querys_order_whatever_is_shown():
    kind = feedback.kind("comparison")
    body = kind.body(comparison(task="Run"), [CLIP, {**CLIP, "clip": "b" * 64 + ".mp4"}])
    view = kind.view(body, [1, 0])
    assert [panel["clip"][0] for panel in view["panels"]] == ["b", "a"]
    left, right, tie = view["control"]["choices"]
    assert (left["key"], left["value"]) == ("ArrowLeft", [0, 1])
    assert (right["key"], right["value"]) == ("ArrowRight", [1, 0])
    assert tie["value"] == [0.5, 0.5]
    assert view["cannot_tell"]["key"] == "ArrowDown"
    np.testing.assert_array_equal(kind.value(body, left["value"]), f32(0, 1))


@pytest.mark.parametrize(
    ("options", "match"),
    [([], "between 2 and 9 segments, got 0"), (["a", "b"], r"options\[0\]: a comparison is about segments")],
)
def test_a_comparison_is_of_segments(options, match):
    with pytest.raises(ValueError, match=match):
        feedback.kind("comparison").footage(Query("q", "comparison", options))


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_agreement_is_symmetric_and_between_0_and_1(one, other):
    kind = feedback.kind("comparison")
    a, b = (f32(*w) / max(sum(w), 1e-6) if sum(w) > 1e-6 else np.full(3, 1 / 3) for w in (one, other))
    assert kind.agree(a, b) == pytest.approx(kind.agree(b, a))
    assert -1e-6 <= kind.agree(a, b) <= 1 + 1e-6
    assert kind.agree(f32(1, 0, 0), f32(0, 1, 0)) == 0


def test_an_action_is_asked_for_by_name_and_key():
    kind = feedback.kind("action")
    query = Query("q", "action", [np.zeros(4, np.float32)], {"env": "CartPole-v1"})
    assert kind.footage(query) == []
    body = kind.body(query, [])
    view = kind.view(body, [0])
    assert [(c["key"], c["label"], c["value"]) for c in view["control"]["choices"]] == [
        ("ArrowLeft", "Push left", 0),
        ("ArrowRight", "Push right", 1),
    ]
    assert "pole angle" in view["panels"][0]["text"]
    assert kind.value(body, 1).dtype == np.int64
    for wrong in (2, 0.5, True, None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"value: expected an action from 0 to 1, got {wrong}"):
            kind.value(body, wrong)


def test_a_state_is_drawn_where_the_environment_can_be_put_into_it():
    context = {"env": "CartPole-v1", "draw": {"id": "CartPole-v1"}}
    query = Query("q", "action", [np.ones(4, np.float32)], context)
    (footage,) = feedback.kind("action").footage(query)
    assert footage.posed
    assert np.asarray(footage.obs).shape == (1, 4)
    body = feedback.kind("action").body(query, [CLIP])
    assert body["clip"] == CLIP
    with pytest.raises(ValueError, match=r"context\.draw: expected"):
        feedback.kind("action").footage(Query("q", "action", [np.ones(4)], {"draw": 3}))


def test_continuous_actions_are_sliders_within_the_space():
    kind = feedback.kind("action")
    context = {"env": "Pendulum-v1", "space": {"low": [-2.0], "high": [2.0]}}
    body = kind.body(Query("q", "action", [np.zeros(3)], context), [])
    assert body["sliders"][0] == {
        "label": "torque (Nm)",
        "low": -2.0,
        "high": 2.0,
        "start": 0.0,
        "step": 0.02,
    }
    assert kind.value(body, [0.5]).tolist() == [0.5]
    for wrong in ([3.0], [0.1, 0.2], 0.5):
        with pytest.raises(ValueError, match="value: "):
            kind.value(body, wrong)
    assert kind.agree(f32(1), f32(-1)) == 0


@pytest.mark.parametrize(
    ("context", "match"),
    [
        ({}, r"context\.space: expected"),
        ({"space": {"n": 0}}, r"context\.space\.n: expected an integer from 1 to"),
        ({"space": {"low": [1.0], "high": [0.0]}}, "is not below"),
        ({"space": {"low": ["a"], "high": [0.0]}}, r"context\.space\.low: expected numbers"),
    ],
)
def test_an_action_needs_a_space(context, match):
    with pytest.raises(ValueError, match=match):
        feedback.kind("action").body(Query("q", "action", [np.zeros(2)], context), [])


def test_praise_is_keyed_to_the_frame_shown():
    kind = feedback.kind("rating")
    body = kind.body(Query("q", "rating", [segment()], {"per_frame": True}), [CLIP])
    assert kind.view(body, [0])["control"]["type"] == "frames"
    np.testing.assert_allclose(kind.value(body, [[3, 1, 0.4], [11, -1, 0.9]])[:, 0], [3, 11])
    assert kind.value(body, []).shape == (0, 3)
    for wrong in ([[12, 1, 0]], [[0.5, 1, 0]], [[1, 2, 0]], [[1, 1]], None, {}, 0):
        with pytest.raises(ValueError, match="value: "):
            kind.value(body, wrong)


def test_a_text_is_not_too_long():
    kind = feedback.kind("text")
    with pytest.raises(ValueError, match=r"options\[1\]: 16,001 characters"):
        kind.body(Query("q", "text", ["a", "b" * 16_001]), [])
    with pytest.raises(ValueError, match=r"options\[0\]: expected a text, got int"):
        kind.body(Query("q", "text", [1, "b"]), [])


def test_a_demonstration_names_its_environment_and_seed():
    kind = feedback.kind("demonstration")
    with pytest.raises(ValueError, match=r"context\.env: expected the id"):
        kind.body(Query("q", "demonstration", []), [])
    with pytest.raises(ValueError, match=r"context\.seed: expected an integer"):
        kind.body(Query("q", "demonstration", [], {"env": "CartPole-v1", "seed": "x"}), [])
    body = kind.example()
    assert kind.value(body, [0, 1, 1]).dtype == np.int64
    with pytest.raises(ValueError, match="201 actions"):
        kind.value(body, [0] * 201)
