"""A stage's own process: a person plays an episode, or a policy does and the person takes over.

    python -m services.labeler.acting      # `stage.Stage` starts it, and speaks with it over its streams

The first line says what it is about, {"play": BODY} or {"live": {...}}; each one after it is what a page
said.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from actors.environments import concatenated
from expert_oracle.checkpoint import load_checkpoint
from expert_oracle.feedback import Body, demonstration
from expert_oracle.human import context_of
from services.labeler import corrections
from services.labeler.newest import recipe_of
from services.labeler.scene import Hand, Line, Scene, line_of_this_process
from services.run_directory import RunDirectory
from tutelage.errors import ConfigError, TutelageError
from tutelage.types import Array, EnvRecipe, Query, Tree

TOLD_EVERY_S = 0.2  # the step
LOOK_S = 1.0  # for a first checkpoint


class Playing:
    """A person plays an episode from its seed on, from the first key to the end, again if they want to."""

    def __init__(self, line: Line, body: Body) -> None:
        self._line, self._body = line, body
        self._scene = Scene(EnvRecipe(body["env"], dict(body["kwargs"])))
        self._hand = Hand(body)
        self._actions: list[Array] = []
        self._state, self._told_at = "", 0.0

    def run(self) -> None:
        self._begin()
        for _ in self._line.ticks(self._scene.period_s, self._goes_on, self._hear):
            self._step()

    def _goes_on(self) -> bool:
        return self._hand.moved and self._state != "ended"

    def _begin(self) -> None:
        self._scene.begin(self._body["seed"])
        self._hand.moved = False
        self._actions = []
        self._line.show(self._scene.picture())
        self._tell("ready")

    def _hear(self, said: Mapping[str, Any]) -> None:
        if "action" in said:
            self._hand.take(said["action"])
        elif "restart" in said and self._state != "ended":
            self._begin()
        elif "end" in said and self._actions and self._state != "ended":
            self._end()

    def _step(self) -> None:
        doing = self._hand.action()
        assert doing is not None  # something was done
        self._actions.append(doing)
        self._scene.act(doing)
        self._line.show(self._scene.picture())
        if self._scene.ended or self._scene.step >= self._body["max_steps"]:
            self._end()
        elif self._state != "playing" or time.monotonic() > self._told_at + TOLD_EVERY_S:
            self._tell("playing")

    def _end(self) -> None:
        self._state = "ended"
        played = [action.tolist() for action in self._actions]
        recipe = self._scene.recipe
        self._line.tell(played=played, ended=self._scene.ended or "left", versions=dict(recipe.versions))

    def _tell(self, state: str) -> None:
        self._state, self._told_at = state, time.monotonic()
        self._line.tell(state=state, step=self._scene.step)


class Driving:
    """The newest policy of a run drives, one episode after the other; a person takes over and hands back.

    told: `run`, its folder; `folder`, where episodes are stored; `annotator`; `held`: an episode waits for
    the person's first action, taking over, or restart
    """

    def __init__(self, line: Line, told: Mapping[str, Any]) -> None:
        self._line = line
        self._run = RunDirectory.open(Path(told["run"]))
        self._folder, self._annotator = Path(told["folder"]), str(told["annotator"])
        self._waits = bool(told.get("held"))
        self._scene = Scene(recipe_of(self._run))
        context = context_of(self._scene.env, self._scene.recipe)
        body = demonstration.body(Query("live", "demonstration", [], context), [])
        self._control = demonstration.view(body, [0])["control"]
        self._hand = Hand(body)
        self._is_yours = False
        self._state, self._told_at = "", 0.0

    def run(self) -> None:
        if not self._has_policy():
            return
        self._begin()
        try:
            for _ in self._line.ticks(self._scene.period_s, self._goes_on, self._hear):
                self._step()
        finally:  # whatever ends it: what the person did is kept
            self._store("left")

    def _goes_on(self) -> bool:
        return self._state not in ("held", "ended")

    def _has_policy(self) -> bool:
        """Once the run has a checkpoint; False: nobody waits for it any more."""
        if _newest(self._run) is None:
            self._line.tell(state="waiting", step=0)
            for _ in self._line.ticks(LOOK_S, lambda: True, lambda said: None):
                if _newest(self._run) is not None:
                    return True
            return False
        return True

    def _begin(self) -> None:
        self._actions: list[Array] = []
        self._rewards: list[float] = []
        self._by_expert: list[bool] = []
        newest = _newest(self._run)
        if newest is None:
            raise ConfigError(f"{self._run.path} has no checkpoint any more")
        self._checkpoint, self._hand.moved = newest, False
        self._policy = load_checkpoint(str(self._checkpoint))
        self._seed, self._began_at = secrets.randbelow(2**31), time.time()
        self._scene.begin(self._seed)
        self._obs: list[Tree] = [self._scene.seen()]
        self._line.show(self._scene.picture())
        self._tell("held" if self._waits else "")

    def _hear(self, said: Mapping[str, Any]) -> None:
        if "action" in said:
            self._hand.take(said["action"])
            if self._state == "held" and self._hand.moved:
                self._tell()
        elif "take_over" in said and said["take_over"] != self._is_yours:
            self._is_yours = said["take_over"]
            self._hand.forget()
            if self._state != "ended":
                self._tell()
        elif "restart" in said and self._state == "held":
            self._tell()
        elif "restart" in said:
            self._store("restarted")
            self._begin()
        elif "end" in said and self._state != "ended":
            self._end("left")

    def _step(self) -> None:
        """The person's action, from their first one since they took over on; else the policy's."""
        doing = self._hand.action() if self._is_yours else None
        is_yours = doing is not None
        if doing is None:
            doing = np.asarray(self._policy.act(self._scene.obs)[0])
        action = doing.astype(self._scene.space.dtype)
        self._rewards.append(self._scene.act(action))  # a step that fails is none
        self._actions.append(action)
        self._by_expert.append(is_yours)
        self._obs.append(self._scene.seen())
        self._line.show(self._scene.picture())
        if self._scene.ended:
            self._end(self._scene.ended)
        elif self._has_changed_hands() or time.monotonic() > self._told_at + TOLD_EVERY_S:
            self._tell()

    def _has_changed_hands(self) -> bool:
        return self._by_expert[-1:] != self._by_expert[-2:-1]

    def _end(self, how: str) -> None:
        steps = sum(self._by_expert)
        kept = f"{steps} of its steps were yours and are kept." if self._store(how) else ""
        self._tell("ended", reason=kept)

    def _store(self, how: str) -> bool:
        """What there is of the episode, if the person did any of it, and once."""
        if not any(self._by_expert) or self._state == "ended":
            return False
        by_expert = np.array(self._by_expert)
        recipe = self._scene.recipe
        corrections.store(
            self._folder,
            obs=concatenated(self._obs),
            actions=np.stack(self._actions),
            rewards=np.array(self._rewards, np.float32),
            by_expert=by_expert,
            about={
                "run": self._run.path.resolve().name,
                "checkpoint": self._checkpoint.name,
                "env": {"id": recipe.id, "kwargs": dict(recipe.kwargs), "versions": dict(recipe.versions)},
                "seed": self._seed,
                "annotator": self._annotator,
                "began_at": self._began_at,
                "ended_at": time.time(),
                "ended": how,
                "corrected": int(by_expert.sum()),
                "takeovers": int((np.diff(by_expert, prepend=False) & by_expert).sum()),
            },
        )
        return True

    def _tell(self, state: str = "", **more: Any) -> None:
        self._state = state or ("you" if self._is_yours else "policy")
        self._told_at = time.monotonic()
        self._line.tell(
            state=self._state,
            step=self._scene.step,
            corrected=sum(self._by_expert),
            control=self._control,
            checkpoint=self._checkpoint.name,
            **more,
        )


def _newest(run: RunDirectory) -> Path | None:
    return run.latest_checkpoint() or run.best_checkpoint()


def main() -> None:
    """Perform what the standard input says, until it ends."""
    line = line_of_this_process()
    try:
        told = line.first()
        (Playing(line, told["play"]) if "play" in told else Driving(line, told["live"])).run()
    except BrokenPipeError:  # the service is gone
        return
    except (TutelageError, ValueError) as error:
        line.tell(refused=" ".join(str(error).split()))
    except Exception as error:  # of the environment, or of the disk
        line.tell(refused=f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
