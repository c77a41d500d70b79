"""The newest policy as a video: filmed when somebody looks, and only then."""

import shutil
import threading
import time

import av
import pytest

from expert_oracle.checkpoint import SHIPPED
from services.labeler.newest import KEPT, Newest
from services.run_directory import RunDirectory
from tests.labelers import page, served


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with one checkpoint."""
    monkeypatch.setattr("services.labeler.newest.LONGEST", 30)
    with RunDirectory.create(tmp_path / "run", {"environment": {"env": "CartPole-v1"}}) as run:
        checkpoint(run, 1)
        yield run


def checkpoint(run, round):
    with run.new_checkpoint(round) as folder:
        shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")


def filmed(newest, name):
    """The video, once it is there."""
    deadline = time.monotonic() + 60
    while (path := newest.video()) is None or path.name != name:
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path


def test_a_newer_checkpoint_is_filmed_when_somebody_looks(run):
    newest = Newest(run.path)
    assert not run.clips.exists()
    first = filmed(newest, "policy-000001.mp4")
    with av.open(str(first)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 31
    last = first
    for round in range(2, KEPT + 3):
        checkpoint(run, round)
        last = filmed(newest, f"policy-{round:06d}.mp4")
    newest.close()
    assert len(list(run.clips.iterdir())) == KEPT
    other = run.clips / "by-hand.mp4"
    shutil.copy(last, other)
    assert newest.video() == other


def test_what_cannot_be_filmed_is_tried_once_and_the_one_before_stays(run, caplog):
    newest = Newest(run.path)
    before = filmed(newest, "policy-000001.mp4")
    with run.new_checkpoint(2) as folder:
        (folder / "policy.safetensors").write_bytes(b"no policy")
    deadline = time.monotonic() + 60
    while not caplog.messages and time.monotonic() < deadline:
        assert newest.video() == before
        time.sleep(0.01)
    for _ in range(5):
        assert newest.video() == before
    newest.close()
    (line,) = caplog.messages
    assert "no video of" in line
    assert "000002" in line


def test_what_is_being_filmed_is_given_up_at_the_end(run):
    newest = Newest(run.path)
    assert newest.video() is None
    newest.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "newest policy"]
    assert newest.video() in (None, run.clips / "policy-000001.mp4")


def test_no_run_has_no_video(tmp_path):
    assert Newest(tmp_path / "none").video() is None


def test_operators_see_it(run, tmp_path):
    with served(tmp_path / "labeler", run=run.path) as running:
        boss, deadline = page(running, "boss", "operator"), time.monotonic() + 60
        while (url := boss.get("/api/operator/run").json()["video"]) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert url == "/api/operator/policy.mp4?of=policy-000001.mp4"
        assert boss.get(url).headers["content-type"] == "video/mp4"
        assert page(running, "anna").get(url).status_code == 403
