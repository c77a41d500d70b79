"""The trainer on real Ray: collection, learning, validation, saving, losing and regaining actors."""

import time

import numpy as np
import pytest
import ray

from services.trainer import Trainer, result_seeds, validation_seeds
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError, OracleError

pytestmark = pytest.mark.usefixtures("ray_session")


def cartpole(tmp_path, method="dagger", *, runners=0, envs=4, steps=64, **settings) -> TrainerConfig:
    config = (
        TrainerConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=envs,
            rollout_fragment_length=steps,
            num_cpus_per_env_runner=0.5,  # type: ignore[arg-type]
        )
        .method(method, **settings)
        .training(minibatch_size=64)
        .evaluation(evaluation_duration=4)
        .storage(run_directory=tmp_path)
        .debugging(seed=1)
    )
    return config.expert(oracle="scripted:cartpole") if method != "ppo" else config


@pytest.fixture
def built():
    """Builds trainers and stops them at the end."""
    trainers = []

    def build(config: TrainerConfig) -> Trainer:
        trainers.append(config.build_trainer())
        return trainers[-1]

    yield build
    for trainer in trainers:
        trainer.stop()


def test_dagger_learns_cartpole(tmp_path, built):
    trainer = built(cartpole(tmp_path, envs=1, steps=500))
    for _ in range(5):
        trainer.train()
    assert trainer.figures["expert_labels"] == trainer.env_steps == 2500
    returns, _ = trainer.measure(result_seeds(1, 20))
    assert returns.mean() >= 400  # chance gets 22; the expert 500


def test_ppo_learns_cartpole(tmp_path, built):
    config = cartpole(tmp_path, "ppo", envs=16, steps=128, gamma=0.98).training(lr=1e-3, num_epochs=8)
    trainer = built(config.evaluation(evaluation_interval=None))
    for _ in range(25):
        trainer.train()
    returns, _ = trainer.measure(result_seeds(1, 20))
    assert returns.mean() >= 300  # chance gets 22


def test_beta_one_only_clones_and_beta_zero_only_practises(tmp_path, built):
    trainer = built(cartpole(tmp_path / "bc", "bc"))
    trainer.train()
    learner = trainer.learner_group._learner
    chunk = next(learner.dataset.batches(rows=10_000, seed=0, epochs=1, columns=("by_expert", "beta")))
    assert chunk["by_expert"].all()
    assert (chunk["beta"] == 1).all()
    practised = built(cartpole(tmp_path / "dagger", beta=0.0))
    practised.train()
    learner = practised.learner_group._learner
    chunk = next(learner.dataset.batches(rows=10_000, seed=0, epochs=1, columns=("by_expert",)))
    assert not chunk["by_expert"].any()


def test_a_saved_trainer_goes_on_where_it_was(tmp_path, built):
    trainer = built(cartpole(tmp_path / "run"))
    for _ in range(2):
        trainer.train()
    trainer.save_to_path(str(tmp_path / "checkpoint"))
    restored = Trainer.restored(tmp_path / "checkpoint")
    try:
        assert (restored.round, restored.env_steps, restored.version) == (2, 512, 2)
        assert restored.best_mean == trainer.best_mean
        seeds = validation_seeds(1, 5)
        np.testing.assert_array_equal(restored.measure(seeds)[0], trainer.measure(seeds)[0])
        restored.train()
        assert restored.figures["expert_labels"] == 768
    finally:
        restored.stop()


def test_labels_on_disk_count_even_if_no_checkpoint_knows_them(tmp_path, built):
    first = built(cartpole(tmp_path))
    for _ in range(3):
        first.train()
    again = built(cartpole(tmp_path))
    assert again.round == 3
    again.train()
    assert again.figures["expert_labels"] == 4 * 256


def test_runners_and_learners_in_other_processes_do_the_same(tmp_path, built):
    config = cartpole(tmp_path, runners=2).learners(num_learners=2, num_cpus_per_learner=0.4)
    trainer = built(config)
    for _ in range(2):
        trainer.train()
    assert trainer.figures["expert_labels"] == 2 * 2 * 256
    states = trainer._all_learners(lambda learner: learner.policy.get_state())
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-6, err_msg=name)


def test_a_killed_runner_comes_back_and_nothing_counts_twice(tmp_path, built):
    trainer = built(cartpole(tmp_path, runners=2))
    trainer.train()
    victim = trainer.env_runner_group._worker_manager.actors()[1]
    ray.kill(victim, no_restart=False)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        trainer.train()
        group = trainer.env_runner_group
        if group.num_remote_worker_restarts() >= 1 and group.num_healthy_remote_workers() == 2:
            break
    trainer.train()
    assert trainer.env_runner_group.num_remote_worker_restarts() >= 1
    assert trainer.env_runner_group.num_healthy_remote_workers() == 2
    assert trainer.figures["expert_labels"] == trainer.figures["dataset"] == trainer.env_steps


def test_the_number_of_runners_changes_while_it_runs(tmp_path, built):
    trainer = built(cartpole(tmp_path, runners=1))
    trainer.train()
    trainer.scale(2)
    trainer.train()
    assert trainer.figures["expert_labels"] == 256 + 2 * 256
    trainer.scale(1)
    trainer.train()
    assert trainer.figures["expert_labels"] == 256 + 2 * 256 + 256


def test_asynchronous_collection_bounds_the_lag(tmp_path, built):
    config = cartpole(tmp_path, "ppo", runners=2).collection(asynchronous=True, max_version_lag=2)
    trainer = built(config)
    for _ in range(6):
        trainer.train()
        assert all(trainer.version - version <= 2 for version in trainer.fleet.in_flight.values())
    assert trainer.env_steps >= 6 * 512


def test_asynchronous_dagger_counts_every_label_once(tmp_path, built):
    trainer = built(cartpole(tmp_path, runners=1).collection(asynchronous=True))
    for _ in range(4):
        trainer.train()
    assert trainer.figures["expert_labels"] == trainer.figures["dataset"] == trainer.env_steps >= 4 * 256


def test_an_expert_that_fails_ends_the_step_with_its_own_words(tmp_path, built):
    config = cartpole(tmp_path).expert(oracle="tests/experts_for_runs.py:sometimes_nan")
    trainer = built(config)
    with pytest.raises(OracleError, match="expected integers"):
        trainer.train()
    assert not list((tmp_path / "dataset").glob("block-*"))


@pytest.mark.parametrize(("method", "labels"), [("bc", 40), ("dagger", 32)])
def test_what_an_expert_answered_before_it_failed_is_stored(tmp_path, built, method, labels):
    """bc: 10 steps of 4 environments; dagger without mixture: 2 batches of 16."""
    calls = {"bc": 10, "dagger": 2}[method]
    config = cartpole(tmp_path).method(method, **{"dagger": {"beta": 0.0}, "bc": {}}[method])
    word = "tests/experts_for_runs.py:FailsAfter"
    trainer = built(config.expert(oracle=word, arguments={"calls": calls}, label_batch=16))
    with pytest.raises(OracleError, match="gone"):
        trainer.train()
    assert (trainer.figures["expert_labels"], trainer.figures["dataset"]) == (labels, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.expert(oracle=None), "needs an expert"),
        (lambda c: c.collection(asynchronous=True), "num_env_runners > 0"),
        (lambda c: c.method("dagger", beta="2 * i + 3"), "probabilities lie in"),
        (lambda c: c.rl_module(model_config={"fcnet_hidens": [3]}), "did you mean 'fcnet_hiddens'"),
        (lambda c: c.expert(label_batch=0), "whole number of at least 1"),
    ],
)
def test_settings_at_odds_are_refused_before_anything_starts(tmp_path, change, message):
    config = change(cartpole(tmp_path))
    with pytest.raises((ConfigError, ValueError), match=message):
        config.validate()
