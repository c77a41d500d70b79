"""One word finds any expert; what experts answer is checked."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from expert_oracle.loading import ENSEMBLE, CheckedOracle, FunctionOracle, OracleSpec, checked
from expert_oracle.remote import RemoteOracle
from expert_oracle.scripted import SCRIPTED
from tutelage.errors import ConfigError, OracleError
from tutelage.types import EnvRecipe

HERE = str(Path(__file__).with_name("oracles.py"))
BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=1)
OBS = np.zeros((4, 5), np.float32)


def test_the_forms_of_the_word():
    assert OracleSpec("scripted:cartpole").build() is SCRIPTED["cartpole"]
    assert isinstance(OracleSpec("grpc://localhost:1,other:2").build(), RemoteOracle)
    assert isinstance(OracleSpec(f"{HERE}:first_two").build(), FunctionOracle)
    assert OracleSpec(f"{HERE}:Planner", {"horizon": 2}).build().act(OBS)[0, 0] == 2
    assert OracleSpec(f"{HERE}:ready").build().act(OBS)[0, 0] == 3
    assert OracleSpec(f"{HERE}:offset", {"by": 7.0}).build().act(OBS)[0, 0] == 7


def test_a_spec_is_small_and_picklable():
    data = pickle.dumps(OracleSpec("grpc://localhost:1", {"deadline_s": 3.0}))
    assert len(data) < 300
    assert pickle.loads(data).build().addresses == ("localhost:1",)


@pytest.mark.parametrize(
    ("word", "arguments", "line"),
    [
        ("cartpole", {}, "'cartpole' is no expert; did you mean .*'scripted:cartpole'"),
        ("scripted:cartpol", {}, r"no scripted expert 'cartpol'; did you mean 'cartpole'\?"),
        ("script:cartpole", {}, r"no module named 'script'.*did you mean 'scripted:cartpole'\?"),
        ("scripted:cartpole", {"k": 1}, "takes no arguments, got k"),
        (f"{HERE}:planner", {}, r"no attribute 'planner'; did you mean 'Planner'\?$"),
        (
            f"{HERE}:Planner",
            {},
            "missing a required argument: 'horizon'; set expert.arguments.horizon=VALUE$",
        ),
        (
            f"{HERE}:Planner",
            {"horizon": 1, "sed": 2},
            r"unexpected keyword argument 'sed'; did you mean 'seed'\?",
        ),
        (f"{HERE}:offset", {"bye": 2}, "unexpected keyword argument 'bye'"),
        (f"{HERE}:ready", {"horizon": 2}, "takes no arguments, got horizon"),
        (f"{HERE}:Mute", {}, r"is of type Mute, without `act\(obs\)`"),
        (f"{HERE}:__doc__", {}, r"is of type str, without `act\(obs\)`"),
        ("nosuch.py:act", {}, "expert 'nosuch.py:act': no such file: /.*nosuch.py$"),
        ("sb3:nosuch.zip", {}, "expert 'sb3:nosuch.zip': no such file: /.*nosuch.zip$"),
        ("planner:foo", {}, "there is no such planner; known: planner:cem$"),
        ("localhost:50", {}, "'localhost:50' is no expert; did you mean 'grpc://localhost:50'"),
        ("grpc:localhost:50", {}, "did you mean 'grpc://localhost:50'"),
        ("http://localhost:50", {}, "did you mean 'grpc://localhost:50'"),
        ("checkpoint:/nowhere", {}, "'/nowhere' is no file, no folder and no shipped expert"),
        ("grpc://localhost", {}, "'localhost' is not of the form HOST:PORT"),
        ("grpc://http://localhost:1", {}, "'http://localhost:1' is not of the form HOST:PORT"),
        (
            "grpc://localhost:1",
            {"gain": 1},
            "arguments of the expert itself are given to `tutelage oracle serve`",
        ),
        (
            "grpc://localhost:1",
            {"deadline": 1},
            "unexpected keyword argument 'deadline'; did you mean 'deadline_s'",
        ),
        ("grpc://localhost:1", {"window": 0}, "window: expected a whole number of at least 1, got 0$"),
        ("grpc://localhost:1", {"max_rows": 1.5}, "max_rows: expected a whole number of .* got 1.5$"),
        *(
            ("grpc://localhost:1", {name: value}, f"{name}: expected more than 0 seconds, got {value!r}$")
            for name, value in (
                ("deadline_s", 0),
                ("connect_timeout_s", float("nan")),
                ("reconnect_timeout_s", "1m"),
            )
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(word, arguments, line):
    with pytest.raises(ConfigError, match=line) as info:
        OracleSpec(word, arguments).build()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("word", "line", "cause"),
    [
        (
            f"{HERE}:Unlicensed",
            r"Unlicensed cannot be made: PermissionError: no licence for",
            PermissionError,
        ),
        ("{broken}:act", r"cannot be loaded: SyntaxError: .*broken\.py, line 1", SyntaxError),
        ("{needy}:act", r"cannot be loaded: ModuleNotFoundError: No module named 'nowhere'", ImportError),
    ],
)
def test_what_the_experts_own_code_raises_is_one_line_with_its_cause(tmp_path, word, line, cause):
    for name, text in (("broken", "def act(obs:"), ("needy", "import nowhere")):
        (tmp_path / f"{name}.py").write_text(text)
    word = word.format(broken=tmp_path / "broken.py", needy=tmp_path / "needy.py")
    with pytest.raises(OracleError, match=line) as info:
        OracleSpec(word).build()
    assert "\n" not in str(info.value)
    assert isinstance(info.value.__cause__, cause)


def test_a_cause_that_has_no_line_is_shown_on_demand(monkeypatch, capsys):
    expert = CheckedOracle(FunctionOracle(np.linalg.inv), BOX, "it")
    for debug in ("", "1"):
        monkeypatch.setenv("TUTELAGE_DEBUG", debug)
        with pytest.raises(OracleError, match=r"LinAlgError: .*; TUTELAGE_DEBUG=1 shows the traceback$"):
            expert.act(OBS)
        assert ("Traceback" in capsys.readouterr().err) == bool(debug)


def test_a_planner_looks_ahead_in_the_environment_that_there_is():
    recipe = EnvRecipe("Pendulum-v1", {"g": 9.81})
    for word in ("planner:cem", "noisy:planner:cem"):
        assert OracleSpec(word).build(recipe).describe().env_id == "Pendulum-v1"  # type: ignore[attr-defined]
    other = OracleSpec("planner:cem", {"env": "CartPole-v1"}).build(recipe)
    assert other.describe().env_id == "CartPole-v1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "arguments", "people"),
    [
        ("human", {}, True),
        ("human:mypkg:Client", {}, True),
        ("slow:human", {}, True),
        ("noisy:slow:human:mypkg:Client", {}, True),
        ("watching:human", {}, True),
        ("noisy:scripted:cartpole", {}, False),
        ("humans.py:act", {}, False),
        (ENSEMBLE, {"oracles": ["scripted:cartpole", "slow:human"]}, True),
        (ENSEMBLE, {"oracles": ["scripted:cartpole", {"oracle": "human"}]}, True),
        (ENSEMBLE, {"oracles": ["scripted:cartpole"]}, False),
        (ENSEMBLE, {}, False),
    ],
)
def test_people_are_seen_behind_wrappers(word, arguments, people):
    assert OracleSpec(word, arguments).asks_people == people


def test_an_expert_that_cannot_describe_itself_is_named():
    with pytest.raises(OracleError, match="expert mypkg:Shy cannot describe itself: ZeroDivisionError: no i"):
        checked(OracleSpec(f"{HERE}:Shy").build(), BOX, BOX, "mypkg:Shy")


def answer(actions, space, N=4):
    return CheckedOracle(FunctionOracle(lambda obs: actions), space, "mypkg:f").act(np.zeros((N, 5)))


def test_good_answers_are_cast_and_clipped():
    actions = answer([[0, 2], [0, -3], [0.5, 1], [0, 0]], BOX)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, [[0, 1], [0, -1], [0.5, 1], [0, 0]])
    assert answer(np.array([1, 2, 3, 1], np.int8), DISCRETE).dtype == np.int64
    assert answer(np.zeros((0, 2)), BOX, N=0).shape == (0, 2)
    both = spaces.Dict({"arm": BOX, "grip": spaces.Tuple([DISCRETE, spaces.MultiBinary(2)])})
    parts = {"arm": np.zeros((4, 2)), "grip": [np.ones(4, int), np.ones((4, 2), bool)]}
    assert answer(parts, both)["grip"][1].dtype == np.int8


@pytest.mark.parametrize(
    ("actions", "space", "line"),
    [
        (np.array([[0, 0], [np.nan, 0], [0, np.nan], [np.nan] * 2]), BOX, "returned NaN for 3 of 4 states"),
        (np.array([[0, 0], [np.inf, 0], [0, 0], [0, 0]]), BOX, "returned infinity for 1 of 4 states"),
        (np.zeros((4, 6)), BOX, r"shape \(4, 6\), expected \(4, 2\): 4 of Box\(-1.0, 1.0"),
        (np.zeros((3, 2)), BOX, r"returned shape \(3, 2\), expected \(4, 2\)"),
        (np.array([["a", "b"]] * 4), BOX, "returned <U1, expected numbers"),
        ([[1], [2, 3]], BOX, "returned something that is no array"),
        (None, BOX, r"returned None, expected actions"),
        (np.zeros(4), DISCRETE, "returned float64, expected integers for Discrete"),
        (np.array([0, 1, 2, 3]), DISCRETE, r"returned actions outside Discrete\(3, start=1\) for 1 of 4"),
        (np.array([1, 1, 4, 4]), DISCRETE, "for 2 of 4 states"),
        (np.ones((4, 1), int), DISCRETE, r"returned shape \(4, 1\), expected \(4,\)"),
        (np.full((4, 2), 2), spaces.MultiDiscrete([3, 2]), "for 4 of 4 states"),
        (np.zeros(4), spaces.Dict({"a": BOX}), r"returned ndarray, expected parts \['a'\]"),
        ({"b": 1}, spaces.Dict({"a": BOX}), r"returned parts \['b'\], expected \['a'\]"),
        ({"a": np.zeros((4, 3))}, spaces.Dict({"a": BOX}), r"part 'a', returned shape \(4, 3\)"),
    ],
)
def test_bad_answers_are_refused_in_one_line(actions, space, line):
    with pytest.raises(OracleError, match=line) as info:
        answer(actions, space)
    assert str(info.value).startswith("expert mypkg:f")
    assert "\n" not in str(info.value)


def test_an_expert_that_fails_is_named():
    def broken(obs):
        raise ZeroDivisionError("oops")

    with pytest.raises(OracleError, match="expert mypkg:f failed for 4 states: ZeroDivisionError: oops"):
        CheckedOracle(FunctionOracle(broken), BOX, "mypkg:f").act(OBS)


def test_experts_that_know_their_spaces_are_compared_at_the_start():
    pendulum = SCRIPTED["pendulum"]
    obs_space = spaces.Box(-1, 1, (3,))
    checked(pendulum, obs_space, spaces.Box(-2, 2, (1,)), "scripted:pendulum")
    with pytest.raises(
        OracleError,
        match=r"action space Box\(1,\) differs from the environment's Box\(6,\) \(it is for Pendulum-v1\)",
    ):
        checked(pendulum, obs_space, spaces.Box(-2, 2, (6,)), "scripted:pendulum")
    with pytest.raises(OracleError, match=r"expert's observation space Box\(3,\) differs"):
        checked(pendulum, BOX, spaces.Box(-2, 2, (1,)), "scripted:pendulum")
