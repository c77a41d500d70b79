import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from services.run_directory import RunDirectory, default_path, find_runs, is_run
from tutelage.errors import ConfigError

CONFIG = {"environment": {"env": "CartPole-v1"}, "method": {"name": "dagger", "beta": "i == 0"}}


@pytest.fixture
def run(tmp_path):
    with RunDirectory.create(tmp_path / "runs" / "a", CONFIG) as run:
        yield run


def log(run, rounds):
    for i in rounds:
        run.log({"round": i, "loss": 1 / (i + 1), "beta": np.float32(0.5)}, step=100 * i)


def fill(folder, text):
    (folder / "policy").mkdir()
    (folder / "policy" / "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_run_has_its_configuration_and_can_be_opened(run):
    again = RunDirectory.open(run.path)
    assert again.config() == CONFIG
    assert again.metrics() == []
    assert again.read_summary() == {}
    assert again.latest_checkpoint() is None
    assert again.best_checkpoint() is None


def test_an_existing_run_is_refused_and_untouched(run):
    before = names(run.path)
    with pytest.raises(ConfigError, match=rf"{run.path} is already a run; .*tutelage resume {run.path}`"):
        RunDirectory.create(run.path, {})
    assert names(run.path) == before
    assert run.config() == CONFIG


def test_other_folders_and_files_are_refused(tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="other things in it"):
        RunDirectory.create(tmp_path / "papers", CONFIG)
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory.create(tmp_path / "papers" / "thesis.tex", CONFIG)
    with pytest.raises(ConfigError, match=r"cannot write a run to .*: Not a directory"):
        RunDirectory.create(tmp_path / "papers" / "thesis.tex" / "run", CONFIG)
    assert names(tmp_path / "papers") == ["thesis.tex"]


def test_an_empty_folder_is_taken(tmp_path):
    RunDirectory.create(tmp_path, CONFIG).close()
    assert is_run(tmp_path)


def test_nothing_is_left_of_a_run_that_never_began(tmp_path):
    with pytest.raises(ZeroDivisionError), RunDirectory.create(tmp_path / "run", CONFIG) as run:  # noqa: PT012
        run.dataset.mkdir()
        raise ZeroDivisionError
    with pytest.raises(Exception, match="cannot represent"):
        RunDirectory.create(tmp_path / "run", {"method": {"name": object()}})
    assert names(tmp_path) == []


def test_a_run_that_has_learnt_survives_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunDirectory.create(tmp_path / "run", CONFIG) as run:  # noqa: PT012
        log(run, [1])
        raise ZeroDivisionError
    assert len(RunDirectory.open(tmp_path / "run").metrics()) == 1


def test_opening_what_is_no_run_offers_the_nearest(run, tmp_path):
    with pytest.raises(ConfigError, match=r"runs/b does not exist; did you mean|known: a"):
        RunDirectory.open(run.path.with_name("b"))
    with pytest.raises(ConfigError, match=r"holds several runs; name one of a"):
        RunDirectory.open(run.path.parent)
    with pytest.raises(ConfigError, match="there are no runs in"):
        RunDirectory.open(tmp_path / "nowhere" / "run")


def test_seeds_are_found_in_their_order(tmp_path):
    for seed in (10, 2, 0):
        RunDirectory.create(tmp_path / "exp" / f"seed-{seed}", CONFIG).close()
    assert [path.name for path in find_runs(tmp_path / "exp")] == ["seed-0", "seed-2", "seed-10"]
    assert find_runs(tmp_path / "exp" / "seed-2") == [tmp_path / "exp" / "seed-2"]
    with pytest.raises(ConfigError):
        find_runs(tmp_path / "none")


def test_default_paths_are_new(tmp_path):
    first = default_path("dagger-ALE/Pong-v5", tmp_path)
    assert first.parent == tmp_path
    assert first.name.startswith("dagger-ALE-Pong-v5-")
    RunDirectory.create(first, CONFIG).close()
    assert not default_path("dagger-ALE/Pong-v5", tmp_path).exists()


def test_metrics_are_lines_and_events(run):
    run.log(
        {"round": 1, "loss": float("nan"), "returns": np.ones(2), "note": "text", "n": np.int64(3)}, step=64
    )
    expected = {"step": 64, "round": 1, "loss": None, "returns": [1.0, 1.0], "note": "text", "n": 3}
    assert run.metrics() == [expected]
    run.close()
    assert scalars(run.path) == {"round": [(64, 1.0)], "n": [(64, 3.0)]}


def scalars(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resume_cuts_later_rounds_and_a_torn_line(run):
    log(run, range(1, 6))
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "lo')
    with RunDirectory.resume(run.path) as again:
        assert [line["round"] for line in again.metrics()] == [1, 2, 3, 4, 5]
        again.truncate_after(3)
        log(again, [4])
        assert [line["round"] for line in again.metrics()] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(run.path)["round"]] == [100, 200, 300, 400]


def test_a_torn_line_is_dropped_before_the_next_is_written(run):
    log(run, [1])
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    log(run, [2])
    assert [line["round"] for line in run.metrics()] == [1, 2]


def test_summary_is_read_back(run):
    run.write_summary({"return_mean": np.float64(3.5), "return_ci95": (3.0, 4.0), "best": float("inf")})
    assert run.read_summary() == {"return_mean": 3.5, "return_ci95": [3.0, 4.0], "best": None}


def test_the_newest_checkpoints_are_kept(run):
    for i in (10, 20, 30):
        with run.new_checkpoint(i, keep=2) as folder:
            fill(folder, str(i))
    assert names(run.checkpoints) == ["000020", "000030"]
    assert (run.latest_checkpoint() / "policy" / "weights").read_text() == "30"


def test_a_failed_checkpoint_leaves_the_last_one(run):
    with run.new_checkpoint(1) as folder:
        fill(folder, "1")
    with pytest.raises(ZeroDivisionError), run.new_checkpoint(2) as folder:  # noqa: PT012
        fill(folder, "2")
        raise ZeroDivisionError
    assert names(run.checkpoints) == ["000001"]


def test_best_and_a_round_can_be_replaced(run):
    for text in ("old", "new"):
        with run.new_best() as folder:
            fill(folder, text)
        with run.new_checkpoint(7) as folder:
            fill(folder, text)
    assert (run.best_checkpoint() / "policy" / "weights").read_text() == "new"
    assert (run.latest_checkpoint() / "policy" / "weights").read_text() == "new"
    assert names(run.checkpoints) == ["000007", "best"]


def test_what_a_kill_leaves_is_tidied(run):
    with run.new_best() as folder:
        fill(folder, "best")
    run.close()
    (run.checkpoints / "best").rename(run.checkpoints / ".best.old")  # killed between two renames
    (run.checkpoints / ".000003.new").mkdir()
    assert run.best_checkpoint().name == ".best.old"
    with RunDirectory.resume(run.path) as again:
        assert names(again.checkpoints) == ["best"]


def test_two_processes_cannot_train_in_one_run(run):
    with pytest.raises(ConfigError, match=rf"is being trained by process {os.getpid()} on "):
        RunDirectory.resume(run.path)
    assert RunDirectory.open(run.path).config() == CONFIG
    run.close()
    RunDirectory.resume(run.path).close()


def test_the_lock_goes_with_a_killed_process_and_its_metrics_stay(tmp_path):
    path = tmp_path / "run"
    code = (
        "import itertools, sys\nfrom services.run_directory import RunDirectory\n"
        f"run = RunDirectory.create({str(path)!r}, {CONFIG!r})\n"
        "for i in itertools.count():\n    run.log({'round': i}, step=i)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (is_run(path) and len(RunDirectory.open(path).metrics()) > 5):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(ConfigError, match=f"process {process.pid}"):
            RunDirectory.resume(path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunDirectory.resume(path) as run:
        rounds = [line["round"] for line in run.metrics()]
    assert rounds == list(range(len(rounds)))
