"""What a run has learnt as its reward can be seen, and what is seen is so."""

import re

import av
import numpy as np
import pytest

from services.cli import main
from services.commands import train_command
from services.overrides import load_config
from services.reward import calibration, judge_of, judged, learnt_reward, plot_reward, true_rewards
from services.run_directory import RunDirectory
from services.settings import build_config
from services.trainer import REWARD
from tutelage.errors import ConfigError

SMALL = [
    *("method.comparisons=80", "method.first_share=0.5", "method.passes=3", "seed=3"),
    *("env_runners.rollout_fragment_length=64", "stop.env_steps=4096"),
    *("evaluation.evaluation_duration=2", "evaluation.evaluation_interval=2"),
    *("run.episodes=2", "run.baselines=false"),
]


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "pendulum"
    train_command("preference-pendulum", SMALL, path, quiet=True)
    return path


def test_a_run_keeps_its_reward_beside_its_policy_and_it_is_right_about_most_segments(run):
    directory = RunDirectory.open(run)
    for folder in (directory.latest_checkpoint(), directory.best_checkpoint()):
        assert folder is not None
        assert (folder / REWARD).is_file()
    _, model, comparisons = learnt_reward(directory, build_config(directory.config()))
    config = build_config(directory.config())
    judge = judge_of(config)
    said = judged(model, comparisons, judge, true_rewards(comparisons, judge))
    assert said.learnt.shape == said.true.shape == (80, 2)
    unseen = np.isfinite(said.learnt)
    np.testing.assert_array_equal(unseen[said.rows, 0], said.held_out.any(0))
    assert np.corrcoef(said.learnt[unseen], said.true[unseen])[0, 1] > 0.5
    spread = [line["reward_disagreement"] for line in directory.metrics() if "reward_disagreement" in line]
    assert spread
    assert 0 < min(spread) <= max(spread) < 0.5
    assert 40 < said.held_out.any(axis=0).sum() < 80
    answers = comparisons.compared()
    decided = np.abs(said.true[:, 0] - said.true[:, 1]) > 1e-3
    np.testing.assert_array_equal(
        said.first[decided], (said.true[:, 0] > said.true[:, 1])[answers.rows][decided]
    )
    assert ((said.p.mean(0) > 0.5) == (said.first > 0.5)).mean() > 0.7


def test_the_true_reward_is_what_the_teacher_has_in_mind(run):
    directory = RunDirectory.open(run)
    _, model, comparisons = learnt_reward(directory, build_config(directory.config()))
    given = ["feedback.arguments.reward=tests.test_reward_plot:sideways"]
    judge = judge_of(build_config(load_config("preference-pendulum", given)))
    assert judge.name == "tests.test_reward_plot:sideways"
    obs, _ = comparisons.segments()
    said = judged(model, comparisons, judge, true_rewards(comparisons, judge))
    np.testing.assert_allclose(said.true, obs[..., 1].sum(-1), rtol=1e-5, atol=1e-5)
    assert judge_of(build_config(load_config("preference-pendulum", []))).reward is None


def sideways(obs, actions):
    return obs[:, 1]


def test_the_figure_is_drawn_and_the_video_has_a_picture_for_each_step(run, tmp_path, offscreen_gl):
    plot_reward(run, tmp_path / "reward.svg", video=tmp_path / "reward.mp4")
    words = (tmp_path / "reward.svg").read_text()
    for title in ("learnt and true return", "answers held out", "disagreement", "newest policy", "Spearman"):
        assert title in words
    with av.open(str(tmp_path / "reward.mp4")) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 201
    under = [picture[pictures[0].shape[1] + 40 :] for picture in pictures]
    coloured = [int((np.ptp(picture.astype(int), axis=-1) > 60).sum()) for picture in under]
    assert coloured[0] < coloured[60] < coloured[120] < coloured[-1]


def test_calibration_counts_what_was_predicted_and_preferred():
    p, first = np.array([0.05, 0.06, 0.95, 1.0, 0.91]), np.array([0, 1, 1, 1, 0.5])
    low, high = calibration(p, first)
    assert low[:2] == pytest.approx((0.055, 0.5))
    assert high[:2] == pytest.approx((0.95333, 2.5 / 3), rel=1e-4)
    assert (low[3], high[3]) == (2, 3)
    assert high[2][0] < high[1] <= high[2][1]


@pytest.mark.parametrize(
    ("preset", "output", "expected"),
    [
        ("dagger-cartpole", "reward.png", "learns no reward, its method is dagger"),
        ("preference-pendulum", "reward.png", "no reward model yet"),
        ("preference-pendulum", "reward.txt", "ends in .png"),
    ],
)
def test_what_has_no_reward_is_said_in_one_line(tmp_path, capsys, monkeypatch, preset, output, expected):
    RunDirectory.create(tmp_path / "run", load_config(preset, [])).close()
    monkeypatch.setattr("sys.argv", ["tutelage", "reward", "plot", str(tmp_path / "run"), "-o", output])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert re.search(expected, error)
    assert error.count("\n") == 1


def test_a_video_of_an_unknown_kind_is_refused_before_anything_is_drawn(run, tmp_path):
    with pytest.raises(ConfigError, match=r"videos end in \.mp4 or \.webm"):
        plot_reward(run, tmp_path / "reward.png", video=tmp_path / "reward.gif")
    assert not (tmp_path / "reward.png").exists()
