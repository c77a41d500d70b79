"""The guide to kinds of questions: its example is one, and is asked and answered like the others."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.replay import replay
from expert_oracle import feedback
from tests.labelers import page, served
from tests.test_feedback import CONTROLS
from tutelage.types import EnvRecipe, Query, Segment

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "feedback-kinds.md").read_text()


def block(first):
    """The block of Python that begins with `first`."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    return next(code for code in blocks if code.startswith(first))


def column(heading):
    """What the first column of the table under this heading has in backticks."""
    rows = GUIDE.partition(heading)[2].partition("\n\n")[0].splitlines()
    return [name for row in rows for name in re.findall("`([^`]*)`", row.split("|")[1])]


@pytest.fixture
def success(tmp_path, monkeypatch):
    """The example, as if it lay beside the others."""
    (tmp_path / "success.py").write_text(block("# success.py"))
    monkeypatch.setattr(feedback, "__path__", [*feedback.__path__, str(tmp_path)])
    feedback.kinds.cache_clear()
    yield feedback.kind("success")
    del sys.modules["expert_oracle.feedback.success"], feedback.success  # type: ignore[attr-defined]
    feedback.kinds.cache_clear()


def segment():
    recipe, actions = EnvRecipe("CartPole-v1"), np.arange(8) % 2
    return Segment(replay(recipe, 3, actions).obs[2:8], actions[2:], recipe, 3, actions[:2])


def question(id):
    names: dict[str, Any] = {"Query": Query}
    exec(block("# ask.py"), names)
    return names["question"](id, segment())


def test_the_tables_are_complete():
    assert sorted(column("| kind | options |")) == sorted(feedback.kinds())
    assert [name.partition("(")[0] for name in column("| function |")] == [
        name for name in vars(feedback.Kind) if not name.startswith("_")
    ]
    said = column("| control |")
    assert {re.findall('"type": "([a-z]+)"', control)[0] for control in said} == CONTROLS


def test_the_example_is_a_kind(success):
    assert "success" in feedback.kinds()
    body = success.example()
    view = success.view(body, [0])
    assert json.loads(json.dumps(view)) == view
    for choice in view["control"]["choices"]:
        value = success.value(body, choice["value"])
        assert success.agree(value, value) == 1
    with pytest.raises(ValueError, match="value: 1 for yes or 0 for no, got 2"):
        success.value(body, [2])


def test_the_example_is_asked_with_its_clip_and_answered(success, tmp_path):
    with served(tmp_path / "labeler") as running:
        running.labeling.submit([question("s1")])
        anna, deadline = page(running), time.monotonic() + 60
        while not (leased := anna.do("lease")["questions"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        (asked,) = leased
        (panel,) = asked["view"]["panels"]
        assert (asked["kind"], asked["view"]["context"]) == ("success", "Keep the pole upright.")
        assert panel["frames"] == 7
        assert anna.get(f"/clips/{panel['clip']}").headers["content-type"] == "video/mp4"
        wrong = anna.post("/api/answer", json={"question": "s1", "value": [2]})
        assert (wrong.status_code, wrong.json()["detail"]) == (422, "value: 1 for yes or 0 for no, got 2")
        assert anna.do("answer", question="s1", value=[1])["outcome"] == "accepted"
        ((_, answer),) = running.labeling.answers()[0]
    assert (answer.query_id, answer.annotator, answer.value.tolist()) == ("s1", "anna", [1.0])
