import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services import doctor
from services.doctor import Check


def level_and_words(check):
    return check.level, check.found


def test_everything_on_this_machine_is_looked_at(tmp_path):
    checks = list(doctor.examine(runs=tmp_path / "runs"))
    assert [check for check in checks if check.level == "failure"] == []
    assert {"Python", "torch", "Ray", "Hopper-v5", "video", "disk", "memory", "gRPC"} <= {
        c.name for c in checks
    }
    assert not (tmp_path / "runs").exists()


def test_a_failure_says_what_to_do_and_ends_with_one(tmp_path):
    console = Console(file=io.StringIO(), width=300)
    assert doctor.doctor(dataset=tmp_path / "none", runs=tmp_path, console=console) == 1
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "✗  dataset" in lines[-2]
    assert "→ name a folder such as runs/NAME/dataset" in lines[-1]


def test_an_environment_that_is_missing_is_a_failure():
    check = doctor._checked("Nope-v0", lambda: doctor.environment("Nope-v0"), "install it")
    assert check.level == "failure"
    assert "Nope" in check.found
    assert check.advice == "install it"


def test_a_folder_that_cannot_be_written_is_a_failure():
    check = doctor._checked(
        "runs folder", lambda: doctor.writable(Path("/proc/runs")), "choose another --run"
    )
    assert (check.level, check.advice) == ("failure", "choose another --run")


def test_little_space_is_a_warning_and_none_a_failure():
    levels = [doctor._enough("disk", size * 1e9, "", (0.5, 5), "").level for size in (0.1, 1, 10)]
    assert levels == ["failure", "warning", "ok"]


def test_a_proxy_that_swallows_local_calls_is_found(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    check = doctor.loopback()
    assert check.level == "warning"
    assert "http_proxy" in check.found
    assert "no_grpc_proxy" in check.advice
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert doctor.loopback().level == "ok"


def test_an_expert_nobody_serves_is_named():
    check = doctor._checked("expert", lambda: doctor.expert("grpc://127.0.0.1:1"), "start it")
    assert check.level == "failure"
    assert "127.0.0.1:1" in check.found


def test_an_expert_service_says_what_it_is():
    command = [sys.executable, "-m", "services.cli", "oracle", "serve", "scripted:cartpole"]
    options = ["--address", "127.0.0.1:0", "--env", "CartPole-v1"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            address = service.stdout.readline().split()[-1]
            check = doctor.expert(address)
        finally:
            service.terminate()
    assert level_and_words(check) == ("ok", f"{address} is scripted:cartpole, for CartPole-v1")


def test_an_expert_in_process_is_made():
    assert doctor.expert("scripted:cartpole").level == "ok"


def test_a_damaged_dataset_is_told_from_a_whole_one(tmp_path):
    import numpy as np

    from learner.dataset import Dataset
    from tutelage.types import Demonstrations

    dataset = Dataset(tmp_path / "dataset")
    for key in ("a", "b"):
        obs, actions = np.zeros((8, 4), np.float32), np.zeros((8, 2), np.float32)
        dataset.append_demonstrations(Demonstrations(obs, actions, source="a file"), key=key)
    assert level_and_words(doctor.dataset_folder(dataset.path)) == ("ok", "16 rows")
    last = max(dataset.path.glob("block-*"))
    last.write_bytes(last.read_bytes()[:100])
    check = doctor.dataset_folder(dataset.path)
    assert check.level == "failure"
    assert check.found.startswith("8 rows; ")
    assert last.exists()


@pytest.mark.slow
def test_ray_starts():
    assert doctor.ray_starts() == Check("Ray starts", "ok", "a worker answered")
