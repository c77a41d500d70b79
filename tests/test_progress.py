import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from services.progress import Progress, duration

FIGURES = {
    **{"round": 4, "beta": 0.0625, "dataset": 5120, "expert_labels": 5120, "env_steps": 5120, "loss": 0.1234},
    **{"steps_per_s": 12_345.0, "validation_mean": 431.26, "validation_lo": 400.0, "validation_hi": 460.5},
}


def plain():
    return Console(file=io.StringIO(), width=60)


def terminal(width=130, height=24):
    file = io.StringIO()
    return Console(
        file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )


def shown(console):
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(progress, **size):
    console = Console(file=io.StringIO(), width=130, height=24, **size)
    progress.console = console
    console.print(progress)
    return shown(console)


def test_elsewhere_a_round_is_a_line():
    with Progress("runs/a", {"rounds": 10}, console=plain()) as progress:
        progress.note("measuring the expert")
        progress.update(FIGURES)
        progress.update({**FIGURES, "round": 5, "beta": None, "validation_mean": None, "loss": float("nan")})
    first, second, third = shown(progress.console).splitlines()
    assert first == "runs/a  measuring the expert"
    assert second == (
        "runs/a  round 4  β 0.062  |D| 5,120  labels 5,120  steps/s 12.3k  loss 0.123"
        "  validation 431.3 [400.0, 460.5]  best 431.3"
    )
    assert third.startswith("runs/a  round 5  |D| 5,120  labels 5,120  steps/s 12.3k  best 431.3  left ")


def test_quiet_shows_nothing():
    for console in (plain(), terminal()):
        with Progress("runs/a", {}, quiet=True, console=console) as progress:
            progress.note("x")
            progress.update(FIGURES)
        assert shown(console) == ""


def test_a_terminal_gets_a_table_of_the_columns_that_have_values():
    progress = Progress("runs/a", {"rounds": 10, "expert_fraction": 0.95})
    for i in range(3):
        progress._quiet = True
        progress.update({**FIGURES, "round": i, "goal": 475.0})
    text = drawn(progress)
    assert "until rounds 10 or validation 475.0" in text
    assert all(word in text for word in ("round", "β", "|D|", "labels", "431.3 [400.0, 460.5]", "30%"))
    assert "training" not in text  # never had a value
    assert text.count("0.123") == 3


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_narrow_terminals_lose_columns_but_no_digits(width):
    console = terminal(width)
    with Progress("runs/a-rather-long-name-of-a-run", {"env_steps": 10_000}, console=console) as progress:
        progress.update({**FIGURES, "return_window": 3.5})
    lines = shown(console).splitlines()
    assert any("5,120" in line for line in lines)
    assert not any("…" in line for line in lines if "5,120" in line) or width == 40


def test_only_what_fits_the_height_is_drawn():
    console = terminal(height=12)
    with Progress("runs/a", {"rounds": 100}, console=console) as progress:
        for i in range(30):
            progress.update({**FIGURES, "round": i})
        console.file.truncate(0)
    assert shown(console).count("\n") < 12


def test_the_cursor_comes_back_after_an_interruption():
    console = terminal()
    with pytest.raises(KeyboardInterrupt), Progress("runs/a", {}, console=console):
        raise KeyboardInterrupt
    text = shown(console)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


def test_best_is_the_largest_validation_also_of_earlier_processes():
    with Progress("runs/a", {}, console=plain()) as progress:
        progress.update({"validation_mean": 3.0, "best": 7.0})
        progress.update({"validation_mean": 5.0, "best": float("-inf")})
    assert [line.split("best ")[1] for line in shown(progress.console).splitlines()] == [
        "7.0",
        "7.0",
    ]


def test_time_left_follows_the_pace_to_the_nearest_limit():
    progress = Progress("runs/a", {"rounds": 100, "env_steps": 1000, "wall_s": 1e6}, quiet=True)
    assert progress.left_s() is None
    for i in range(3):
        time.sleep(0.05)
        progress.update({"round": i, "env_steps": 100 * (i + 1), "wall_s": 1.0})
    assert progress.left_s() == pytest.approx(0.35, rel=0.5)  # 700 more at 100 in 0.05 s
    assert progress.fraction() == pytest.approx(0.3)
    progress.update({"round": 100, "env_steps": 2000, "wall_s": 2.0})
    assert progress.left_s() == 0
    assert progress.fraction() == 1


def test_an_update_costs_less_than_a_millisecond():
    console = terminal()
    with Progress("runs/a", {"rounds": 1000}, console=console) as progress:
        started = time.thread_time()
        for i in range(200):
            progress.update({**FIGURES, "round": i})
        assert (time.thread_time() - started) / 200 < 1e-3


def test_stdout_stays_clean():
    code = "from services.progress import Progress\n"
    code += "with Progress('a', {}) as p:\n p.update({'round': 1}); print('{}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert done.stderr == "a  round 1\n"


def test_durations_are_short():
    assert [duration(s) for s in (0.5, 59, 185, 7800, 3 * 86_400 + 4 * 3600)] == [
        "0s",
        "59s",
        "3m05s",
        "2h10m",
        "3d04h",
    ]
