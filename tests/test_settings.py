"""What is refused before anything starts, each in one line that names the key and what to do."""

from pathlib import Path

import numpy as np
import pytest

from services.overrides import load_config
from services.sections import INSTEAD, RLLIB, SECTIONS
from services.settings import FLUENT, Stop, build_config, preflight
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError


def refused(*overrides, preset="dagger-cartpole"):
    with pytest.raises(ConfigError) as info:
        preflight(load_config(preset, overrides))
    assert "\n" not in str(info.value)
    return str(info.value)


# RLlib's settings


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("training.gamma=0.9", "method.gamma"),
        ("training.lambda_=0.9", "method.lambda_"),
        ("training.train_batch_size=4000", "rollout_fragment_length x num_envs_per_env_runner"),
        ("training.train_batch_size_per_learner=4000", "rollout_fragment_length x num_envs_per_env_runner"),
        ("training.grad_clip_by=value", "largest norm of all gradients"),
        ("training.shuffle_batch_per_epoch=false", "every epoch is shuffled"),
        ("training.num_sgd_iter=3", "training.num_epochs"),
        ("training.model={fcnet_hiddens: [3]}", "rl_module.model_config"),
        ("evaluation.evaluation_duration_unit=timesteps", "counts episodes"),
        ("evaluation.evaluation_num_env_runners=2", "env_runners"),
        ("evaluation.evaluation_parallel_to_training=true", "after the round's update"),
        ("evaluation.evaluation_config={explore: true}", "most likely actions"),
        ("env_runners.sample_timeout_s=3", "deadline_s"),
        ("env_runners.batch_mode=complete_episodes", "rollout_fragment_length"),
        ("env_runners.explore=false", "the method decides"),
        ("env_runners.observation_filter=MeanStdFilter", "normalise_observations"),
        ("env_runners.episodes_to_numpy=false", "num_env_runners, num_envs_per_env_runner"),
        ("environment.render_env=true", "--video"),
        ("fault_tolerance.restart_failed_sub_environments=true", "restart_failed_env_runners"),
        ("reporting.min_time_s_per_iteration=3", "metrics.jsonl"),
        ("checkpointing.export_native_model_files=true", "run.checkpoint_every_s"),
        ("framework.framework=tf2", "PyTorch"),
    ],
)
def test_what_rllib_knows_and_nothing_here_uses_is_refused(setting, instead):
    message = refused(setting)
    name = setting.partition("=")[0]
    assert name in message
    assert "no effect here" in message
    assert instead in message


def test_the_table_of_settings_is_of_settings_that_rllib_has():
    """An upgrade of RLlib that renames one is noticed here."""
    from services.overrides import _parameters

    for section, keys in RLLIB.items():
        taken = _parameters(getattr(TrainerConfig(), section))
        assert set(keys) <= set(taken), section
        assert not set(keys) & {name.partition(".")[2] for name in INSTEAD if name.startswith(f"{section}.")}
    assert set(FLUENT) < set(SECTIONS)


def test_the_guide_names_every_section_and_setting():
    guide = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in guide.splitlines() if line.startswith("| `")}
    assert {f"`{section}`" for section in SECTIONS} <= set(lines)
    assert [
        key for section in RLLIB for key in RLLIB[section] if f"`{key}`" not in lines[f"`{section}`"]
    ] == []


@pytest.mark.parametrize(
    "config",
    [
        TrainerConfig().training(gamma=0.5),
        TrainerConfig().training(train_batch_size_per_learner=64),
        TrainerConfig().evaluation(evaluation_num_env_runners=2),
        TrainerConfig().env_runners(batch_mode="complete_episodes"),
    ],
)
def test_they_are_refused_in_python_too(config):
    config.environment("CartPole-v1").expert(oracle="scripted:cartpole").method("dagger")
    with pytest.raises(ConfigError, match="no effect here"):
        config.validate()


def test_a_configuration_with_remote_runners_and_learners_is_not():
    settings = [
        "env_runners.num_env_runners=2",
        "learners.num_learners=2",
        "callbacks.on_train_result=math:exp",
    ]
    config = preflight(load_config("dagger-cartpole", settings))
    assert config.num_learners == 2
    assert config.get_evaluation_config_object().in_evaluation  # pyright: ignore[reportOptionalMemberAccess]
    config.get_evaluation_config_object().validate()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_environments_are_stepped_as_asked(mode):
    config = preflight(load_config("dagger-cartpole", [f"env_runners.gym_env_vectorize_mode={mode}"]))
    assert config.env_recipe().backend == mode


def test_environments_that_cannot_be_stepped_so_are_refused():
    message = refused("env_runners.gym_env_vectorize_mode=threads")
    assert message.startswith("env_runners.gym_env_vectorize_mode: 'threads' is unknown; known: sync, async")
    assert "HalfCheetah-v5" in refused(
        "env_runners.gym_env_vectorize_mode=vector_entry_point", preset="dagger-halfcheetah"
    )


# Ranges


@pytest.mark.parametrize(
    "setting",
    [
        *(
            "learners.num_learners=-1",
            "env_runners.num_env_runners=-1",
            "env_runners.num_envs_per_env_runner=0",
        ),
        *("env_runners.rollout_fragment_length=0", "env_runners.rollout_fragment_length=auto"),
        *("training.minibatch_size=0", "training.num_epochs=0", "training.grad_clip=0", "training.lr=0"),
        *("training.lr=-0.001", "training.lr=.nan", "training.lr=[[0, 0.1], [100, -0.1]]"),
        *("evaluation.evaluation_interval=0", "evaluation.evaluation_duration=0"),
        *("evaluation.evaluation_duration=auto", "expert.label_batch=0", "expert.max_unlabelled=-1"),
        *("collection.max_version_lag=0", "debugging.seed=-1", "stop.rounds=0", "stop.env_steps=-5"),
        *("stop.expert_labels=0", "stop.wall_s=0", "stop.expert_fraction=0", "stop.wall_s=.nan"),
        *("run.episodes=0", "run.keep_checkpoints=0", "run.checkpoint_every_s=-1", "tune.seeds=0"),
    ],
)
def test_numbers_out_of_their_range_are_named(setting):
    name = setting.partition("=")[0]
    message = refused(setting)
    assert message.startswith(f"{name}: expected ")
    assert ", got " in message


@pytest.mark.parametrize(
    "setting",
    [
        *("training.minibatch_size=null", "evaluation.evaluation_interval=null", "training.grad_clip=null"),
        *(
            "training.lr=[[0, 0], [100, 0.1], [200, 0]]",
            "run.checkpoint_every_s=0",
            "stop.validation_return=-3",
        ),
    ],
)
def test_numbers_within_their_range_are_taken(setting):
    build_config(load_config("dagger-cartpole", [setting])).validate()


# Stops


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["stop.expert_fraction=0.9", "run.baselines=false"],
            "stop.expert_fraction .*set run.baselines=true",
        ),
        (
            ["stop.expert_fraction=0.9", "evaluation.evaluation_interval=null"],
            "set evaluation.evaluation_int",
        ),
        (
            ["stop.validation_return=9", "evaluation.evaluation_interval=null"],
            "set evaluation.evaluation_int",
        ),
    ],
)
def test_a_stop_that_can_never_be_reached_is_refused(settings, message):
    with pytest.raises(
        ConfigError, match=rf"never be reached: .*{message.removeprefix('stop.expert_fraction .*')}"
    ):
        preflight(load_config("dagger-cartpole", settings))


def test_nobody_to_ask_is_no_way_to_stop():
    assert "stop.expert_fraction can never" in refused("stop.expert_fraction=0.9", preset="ppo-cartpole")
    assert "stop.expert_labels can never" in refused("stop.expert_labels=9", preset="ppo-cartpole")


def test_a_run_without_a_stop_is_allowed():
    preflight(load_config("dagger-cartpole", ["stop.expert_labels=null"]))
    assert Stop().reached({"round": 10**9, "env_steps": 10**12}, 500.0) is None


# Demonstrations


ALONE = ["expert.oracle=null", "stop.expert_labels=null"]


def demonstrations(path, obs=(10, 4), actions=2, **arrays):
    rng = np.random.default_rng(0)
    columns = {"obs": rng.normal(size=obs).astype(np.float32), "acts": rng.integers(actions, size=10)}
    np.savez(path, **columns | arrays)
    return f"method.demonstrations={path}"


def test_demonstrations_of_the_environment_are_taken(tmp_path):
    given = demonstrations(tmp_path / "demos.npz")
    preflight(load_config("bc-cartpole", [given, *ALONE, "stop.rounds=3"]))
    assert "stop.expert_labels can never be reached" in refused(given, ALONE[0], preset="bc-cartpole")
    assert "stop.env_steps can never" in refused(given, *ALONE, "stop.env_steps=9", preset="bc-cartpole")


def test_the_dataset_of_a_run_is_taken(tmp_path):
    from learner.dataset import Dataset
    from tutelage.types import Demonstrations

    for name, width in (("right", 4), ("wrong", 3)):
        rows = Demonstrations(np.zeros((8, width), np.float32), np.zeros(8, np.int64), source="a test")
        Dataset(tmp_path / name / "dataset").append_demonstrations(rows, key="a")
    preflight(load_config("bc-cartpole", [f"method.demonstrations={tmp_path / 'right'}"]))
    message = refused(f"method.demonstrations={tmp_path / 'wrong'}", preset="bc-cartpole")
    assert "observations float(3,), the environment's are float(4,)" in message


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"obs": (10, 11)}, r"observations float\(11,\), the environment's are float\(4,\)"),
        ({"acts": np.zeros((10, 1), np.float32)}, r"actions float\(1,\), the environment's are int\(\)"),
        ({"actions": 5}, r"actions outside Discrete\(2\)"),
        ({"obs": (7, 4)}, r"7 rows of obs do not go with 10 rows of acts"),
    ],
)
def test_demonstrations_of_another_environment_are_refused(tmp_path, arrays, message):
    import re

    line = refused(demonstrations(tmp_path / "demos.npz", **arrays), preset="bc-cartpole")
    assert re.search(rf"^method\.demonstrations: .*demos\.npz.*{message}", line), line


def test_demonstrations_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "bad.npz").write_text("no zip")
    (tmp_path / "empty").mkdir()
    expected = {"none.npz": "no such file", "bad.npz": "not a readable .npz", "empty": "no demonstrations in"}
    for name, words in expected.items():
        line = refused(f"method.demonstrations={tmp_path / name}", preset="bc-cartpole")
        assert line.startswith("method.demonstrations: ")
        assert words in line


def test_a_learner_of_ones_own_is_taken():
    preflight(load_config("dagger-cartpole", ["learners.learner_class=learner.learner:MethodLearner"]))


RESTLESS = "environment.env=tests.environments_for_tests:Restless-v0"


def asks_people(*overrides):
    return load_config("preference-cartpole", ["feedback.labeler=grpc://127.0.0.1:1", *overrides])


def test_people_are_asked_about_episodes_that_cannot_be_replayed_but_drawn():
    config = preflight(asks_people(RESTLESS, "feedback.drawn_envs=3"))
    assert config.drawn_if_not_replayed() == 3
    walker = ["environment.env=BipedalWalker-v3", "env_runners.num_envs_per_env_runner=1"]
    assert preflight(asks_people(*walker)).drawn_if_not_replayed() == 1
    assert preflight(load_config("preference-cartpole", [])).drawn_if_not_replayed() == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [RESTLESS, "environment.env_config.broken=true"],
            "feedback.labeler: episodes of tests.environments_for_tests:Restless-v0 are not replayed exactly"
            ", and cannot be drawn as they are played: no colours left",
        ),
        (
            ["env_runners.gym_env_vectorize_mode=vector_entry_point"],
            "env_runners.gym_env_vectorize_mode: with vector_entry_point episodes are neither replayed nor "
            "drawn, so there are no pictures that people could judge; set sync or async",
        ),
        (
            ["environment.env=tests.environments_for_tests:Counting-v0"],
            "feedback.labeler: tests.environments_for_tests:Counting-v0 draws no pictures",
        ),
        (
            [
                *(RESTLESS, "method.segment_length=40000", "env_runners.rollout_fragment_length=40000"),
                "stop.env_steps=9000000",
            ],
            "method.segment_length: the pictures of 2 segments of 40000 steps may have",
        ),
    ],
)
def test_people_who_would_have_nothing_to_look_at_are_refused(overrides, message):
    with pytest.raises(ConfigError) as info:
        preflight(asks_people(*overrides))
    assert message in str(info.value)
