import pytest

from services.progress import Progress, cells, duration, plain_line

FIGURES = {
    "round": 3,
    "beta": 0.5,
    "dataset": 4000,
    "expert_labels": 4000,
    "env_steps": 4000,
    "steps_per_s": 1234.5,
    "loss": -1.25,
    "validation_mean": 480.5,
    "validation_lo": 470.25,
    "validation_hi": 490.0,
}


def test_a_line_away_from_a_terminal_has_the_round(capsys):
    with Progress("runs/x", {"expert_labels": 16_000}) as progress:
        progress.note("measuring the expert")
        progress.update(FIGURES)
    out, err = capsys.readouterr()
    assert out == ""
    assert "measuring the expert" in err
    assert "round 3" in err
    assert "480.5 [470.2, 490.0]" in err


def test_quiet_says_nothing(capsys):
    with Progress("runs/x", {}, quiet=True) as progress:
        progress.update(FIGURES)
        progress.note("hello")
    assert capsys.readouterr() == ("", "")


def test_share_and_pace_follow_the_nearest_criterion():
    progress = Progress("runs/x", {"expert_labels": 16_000, "rounds": 8, "validation_return": 500}, quiet=True)
    progress.update({**FIGURES, "round": 0, "expert_labels": 0})
    progress.started -= 30
    progress.update(FIGURES)
    assert progress.done() == pytest.approx(0.5)
    assert progress.remaining_s() == pytest.approx(30 * 5 / 3, rel=0.01)


def test_rounds_without_a_figure_are_shown_without_it():
    assert cells({"round": 1})[1:] == [""] * 7
    assert plain_line({"round": 1}, None) == "round 1"


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (5.4, 187, 7500)] == ["5 s", "3:07 min", "2:05 h"]
