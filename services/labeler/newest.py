"""The newest policy of the run as a video for operators, filmed when somebody looks and there is a newer one.

    newest = Newest(run)
    path = newest.video()      # what there is by now; a newer one comes a while after

Training is not held up and pays nothing: an episode of the last checkpoint is played and filmed here, one at
a time, and never when nobody looks.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from actors.clips import Filmer, episode
from expert_oracle.checkpoint import load_checkpoint
from expert_oracle.feedback import Footage
from services.run_directory import RunDirectory, is_run
from tutelage.types import EnvRecipe

LOG = logging.getLogger(__name__)
NAME = "policy-{}.mp4"  # by the round of the checkpoint
SEED = 0  # of the episode, so that what is seen to change is the policy
LONGEST = 400  # steps that are shown
KEPT = 3  # videos of policies


class Newest:
    """Thread-safe. Videos that others put into the run's folder `clips` are shown as well."""

    def __init__(self, run: Path) -> None:
        self._run = RunDirectory(run)
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: tuple[threading.Thread, Filmer] | None = None
        self._tried: Path | None = None  # the checkpoint that was last filmed, or could not be

    def video(self) -> Path | None:
        """The newest that there is. Begins to film a newer checkpoint's."""
        checkpoint = self._run.latest_checkpoint() if is_run(self._run.path) else None
        if checkpoint is not None:
            self._begin(checkpoint)
        whole = (path for path in self._run.clips.glob("*.mp4") if not path.name.startswith("."))
        return max(whole, key=_changed, default=None)

    def close(self) -> None:
        """What is being filmed is given up."""
        with self._lock:
            self._closed, under_way = True, self._under_way
        if under_way is not None:
            thread, filmer = under_way
            filmer.close()
            thread.join()

    def _begin(self, checkpoint: Path) -> None:
        """Unless it is filmed, or another is at the moment."""
        with self._lock:
            busy = self._under_way is not None and self._under_way[0].is_alive()
            if self._closed or busy or checkpoint == self._tried or self._video_of(checkpoint).exists():
                return
            self._tried = checkpoint
            filmer = Filmer()
            thread = threading.Thread(target=self._film, args=[checkpoint, filmer], name="newest policy")
            self._under_way = thread, filmer
            thread.start()

    def _film(self, checkpoint: Path, filmer: Filmer) -> None:
        try:
            recipe, policy = recipe_of(self._run), load_checkpoint(str(checkpoint))
            actions = episode(policy.act, recipe, SEED, LONGEST)
            with filmer:
                filmer.film(Footage(recipe, SEED, actions, 0), self._video_of(checkpoint))
        except Exception as error:  # also of the environment; the page shows the one before
            if not self._closed:
                LOG.warning("no video of %s: %s", checkpoint, " ".join(str(error).split()))
            return
        mine = sorted(self._run.clips.glob(NAME.format("*")), key=_changed)
        for old in mine[:-KEPT]:
            old.unlink(missing_ok=True)

    def _video_of(self, checkpoint: Path) -> Path:
        return self._run.clips / NAME.format(checkpoint.name)


def recipe_of(run: RunDirectory) -> EnvRecipe:
    """As `TrainerConfig.env_recipe` has it, without all that a trainer imports."""
    environment = run.config()["environment"]
    return EnvRecipe(str(environment["env"]), dict(environment.get("env_config") or {}))


def _changed(path: Path) -> int:
    """When, in ns; a file that has just gone is the oldest."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
