from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import overrides
from services.overrides import SECTIONS, apply_override, check_arguments, load_config, to_yaml
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from nowhere import Unknown  # pyright: ignore[reportMissingImports]

TEXT = """
environment: {env: Hopper-v5}
env_runners: {num_env_runners: 2}
expert:
  oracle: grpc://localhost:50051
  arguments: {timeout_s: 5}
method: {name: dagger, beta: "i == 0"}
learners:
seeds: 3
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


def test_file_and_overrides_are_merged_deeply(config_file):
    changes = [
        "expert.arguments.path=a/b.py",
        "method.beta=0.5**i",
        "training.lr=[[0, 0.1], [100, 0.01]]",
        "seed=7",
    ]
    config = load_config(config_file, changes)
    assert config["expert"] == {
        "oracle": "grpc://localhost:50051",
        "arguments": {"timeout_s": 5, "path": "a/b.py"},
    }
    assert config["method"] == {"name": "dagger", "beta": "0.5**i"}
    assert config["training"] == {"lr": [[0, 0.1], [100, 0.01]]}
    assert config["tune"] == {"seeds": 3}
    assert config["debugging"] == {"seed": 7}


def test_a_mapping_is_merged_and_a_value_replaced(config_file):
    config = load_config(config_file, ["expert.arguments={a: 1}", "expert.oracle=null"])
    assert config["expert"] == {"oracle": None, "arguments": {"a": 1}}  # whose the others were is gone


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env_runner.num_env_runners=2", "unknown section 'env_runner'; did you mean 'env_runners'?"),
        ("env_runners", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("method.=3", "expected section.key=value"),
        ("beta=0.5", "did you mean 'method.beta'?"),
        ("gamma=0.5", "shorthands without a section: seed, seeds"),
        ("method=dagger", "method is a section; write method.KEY=VALUE"),
        ("method.beta=[1,", "not YAML"),
        ("method.name.x=1", "method.name is 'dagger', which has no keys"),
    ],
)
def test_bad_overrides_are_named(config_file, override, message):
    with pytest.raises(ConfigError) as error:
        load_config(config_file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enviroment: {env: X}", "unknown section 'enviroment'; did you mean 'environment'?"),
        ("- 1", "expected sections"),
        ("", "expected sections"),
        ("method: dagger", "section method: expected 'key: value' lines, got 'dagger'"),
        ("method:\n  name: [", "line 2: not YAML"),
        ("method: \x00", "not YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_presets_are_found_by_name(tmp_path, monkeypatch, config_file):
    monkeypatch.setattr(overrides, "PRESETS", tmp_path)
    (tmp_path / "dagger-hopper.yaml").write_text(TEXT)
    assert load_config("dagger-hopper") == load_config(config_file)
    with pytest.raises(
        ConfigError, match=r"no preset named 'dager-hopper'; did you mean 'dagger-hopper'\?.*pre"
    ):
        load_config("dager-hopper")
    with pytest.raises(ConfigError, match=r"no such configuration file"):
        load_config("runs/dagger-hopper")
    with pytest.raises(ConfigError, match=r"a folder"):
        load_config(str(tmp_path))


def test_sections_are_fluent_methods():
    from services.trainer_config import TrainerConfig

    ours = {"run", "stop", "tune"}
    assert all(callable(getattr(TrainerConfig, section)) for section in set(SECTIONS) - ours)


def test_shipped_presets_can_be_read_and_say_what_they_are():
    shipped = overrides.presets()
    assert shipped
    assert all(description and load_config(name) for name, description in shipped.items())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
sections = st.dictionaries(st.text(), values, min_size=1, max_size=3)
configs = st.dictionaries(st.sampled_from(SECTIONS), sections, min_size=1, max_size=2)


@settings(deadline=None, max_examples=50)
@given(configs)
def test_yaml_reads_back_the_same(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_yaml_holds_tuples_paths_and_numpy_as_plain_values(tmp_path):
    import numpy as np

    path = tmp_path / "config.yaml"
    path.write_text(to_yaml({"method": {"hidden": (64, 64), "file": tmp_path, "lr": np.float32(0.5)}}))
    assert load_config(path)["method"] == {"hidden": [64, 64], "file": str(tmp_path), "lr": 0.5}


class Base:
    def training(self, *, lr: Optional[float] = None, clip: Optional[int] = None, num_sgd_iter=-1):  # noqa: UP045
        return self


class Derived(Base):
    def training(self, *, updates: Optional[Union[int, Literal["auto"]]] = None, **kwargs: Any):  # noqa: UP007, UP045
        return self


def test_keys_of_overridden_methods_count_where_kwargs_pass_them_on():
    assert check_arguments("training", Derived().training, {"updates": 3, "lr": 1}) == {
        "updates": 3,
        "lr": 1.0,
    }
    with pytest.raises(ConfigError, match=r"training.lrr: unknown key; did you mean 'lr'\?"):
        check_arguments("training", Derived().training, {"lrr": 3})
    words = r"training.num_sgd_iter: .*no effect here; use training.num_epochs"
    with pytest.raises(ConfigError, match=words):
        check_arguments("training", Derived().training, {"num_sgd_iter": 3})


@dataclass(frozen=True)
class Common:
    updates: int = 1
    unknown: Unknown | None = None


@dataclass(frozen=True)
class Method(Common):
    beta: str | float = 1.0
    lr: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    span: tuple[float, float] = (0.0, 1.0)
    names: Sequence[str] = ()
    weights: dict[str, float] | None = None
    kind: Literal["tanh", "relu"] = "tanh"
    normalise: bool = True
    schedule: Callable[[int], float] | None = None
    anything: Any = None


GOOD = [
    ("beta", "0.5**i", "0.5**i"),
    ("beta", "1e-3", "1e-3"),
    ("beta", 1, 1.0),
    ("lr", "1e-3", 1e-3),
    ("lr", 1, 1.0),
    ("updates", "1e6", 1_000_000),
    ("hidden", [256, 256], (256, 256)),
    ("span", [0, 2], (0.0, 2.0)),
    ("names", ["a"], ["a"]),
    ("weights", None, None),
    ("weights", {"a": 1}, {"a": 1.0}),
    ("kind", "relu", "relu"),
    ("normalise", False, False),
    ("unknown", "anything", "anything"),
    ("anything", [1, "x"], [1, "x"]),
]


@pytest.mark.parametrize(("key", "value", "expected"), GOOD)
def test_values_are_converted(key, value, expected):
    checked = check_arguments("method", Method, {key: value})[key]
    assert checked == expected
    assert type(checked) is type(expected)


def test_a_function_is_named_by_module_and_attribute():
    assert check_arguments("method", Method, {"schedule": "math:exp"})["schedule"](0) == 1.0


BAD = [
    ("updates", "four", "expected int, got 'four'"),
    ("updates", True, "expected int, got True"),
    ("updates", 1.5, "expected int, got 1.5"),
    ("lr", True, "expected float, got True"),
    ("lr", [1], "expected float, got [1]"),
    ("beta", [1], "expected str or float, got [1]"),
    ("hidden", 64, "expected list of int, got 64"),
    ("hidden", [64, "x"], "expected list of int, got [64, 'x']"),
    ("span", [1], "expected list of float and float, got [1]"),
    ("weights", [1], "expected mapping, got [1]"),
    ("kind", "gelu", "expected 'tanh' or 'relu', got 'gelu'"),
    ("normalise", "maybe", "expected bool, got 'maybe'"),
    ("schedule", 3, "expected 'module:attribute', got 3"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_wrong_types_are_named(key, value, message):
    with pytest.raises(ConfigError) as error:
        check_arguments("method", Method, {key: value})
    assert str(error.value) == f"method.{key}: {message}"


def test_rllibs_own_signatures_are_understood():
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    config = AlgorithmConfig()
    runners = {"num_env_runners": 4, "rollout_fragment_length": "auto", "num_gpus_per_env_runner": 0.5}
    assert check_arguments("env_runners", config.env_runners, runners) == runners
    assert check_arguments("training", config.training, {"lr": "3e-4"}) == {"lr": 3e-4}
    schedule = {"lr": [[0, 0.1], [1000, 0.01]]}
    assert check_arguments("training", config.training, schedule) == schedule
    with pytest.raises(ConfigError, match=r"^env_runners.num_env_runners: expected int, got 'four'$"):
        check_arguments("env_runners", AlgorithmConfig.env_runners, {"num_env_runners": "four"})
    with pytest.raises(ConfigError, match=r"did you mean 'num_env_runners'"):
        check_arguments("env_runners", config.env_runners, {"num_env_runner": 1})


def test_apply_override_changes_in_place():
    config = {}
    apply_override(config, "stop.env_steps=1_000_000")
    assert config == {"stop": {"env_steps": 1_000_000}}


def test_who_is_asked_instead_has_none_of_the_others_arguments(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("expert: {oracle: 'planner:cem', arguments: {horizon: 5}}\nmethod: {name: dagger}\n")
    assert load_config(path)["expert"]["arguments"] == {"horizon": 5}
    other = load_config(path, ["expert.arguments.deadline_s=3", "expert.oracle=grpc://host:1"])
    assert other["expert"] == {"oracle": "grpc://host:1", "arguments": {"deadline_s": 3}}
