"""A run on disk: its configuration, metrics, checkpoints and summary, whole after a `kill -9` at any moment.

    runs/NAME/  config.yaml  summary.json  metrics.jsonl  events.*  returns.png
                dataset/  clips/  checkpoints/{000010/, best/}

`config.yaml` makes a folder a run. Files that are replaced are written beside and renamed; metrics are
appended, and a last line that a kill has torn does not count.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import yaml

from services.overrides import Config, to_yaml
from tutelage.errors import ConfigError
from tutelage.plugins import did_you_mean

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CONFIG, METRICS, SUMMARY, LOCK = "config.yaml", "metrics.jsonl", "summary.json", ".lock"
SEEDS = "seeds.yaml"  # makes a folder an experiment of several runs, `seed-0` and up

Metrics = Mapping[str, Any]  # values: int, float, str, lists of them, None


def default_path(name: str, root: Path | str = "runs") -> Path:
    """A path under `root` that nothing has yet, `name` followed by the date and time."""
    stem = Path(root) / f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path


def is_run(path: Path | str) -> bool:
    return (Path(path) / CONFIG).is_file()


def is_done(summary: Mapping[str, Any]) -> bool:
    """Whether a run ended by a criterion of its own, and not by a signal."""
    why = summary.get("stopped_because")
    return bool(why) and not str(why).startswith("SIG")


def find_runs(path: Path | str) -> list[Path]:
    """`path` if it is a run, else the runs directly in it, such as the seeds of one experiment."""
    path = Path(path)
    if is_run(path):
        return [path]
    runs = sorted((config.parent for config in path.glob(f"*/{CONFIG}")), key=_natural)
    return runs or _not_a_run(path)


def _natural(path: Path) -> tuple[int, str]:
    """Sorts seed-2 before seed-10."""
    return len(path.name), path.name


def _not_a_run(path: Path) -> NoReturn:
    siblings = [sibling.parent.name for sibling in path.parent.glob(f"*/{CONFIG}")]
    inside = [run.parent.name for run in path.glob(f"*/{CONFIG}")] if path.is_dir() else []
    if inside:
        raise ConfigError(f"{path} holds several runs; name one of {', '.join(sorted(inside))}")
    what = "is not a run (it has no config.yaml)" if path.exists() else "does not exist"
    near = did_you_mean(path.name, siblings) if siblings else f"; there are no runs in {path.parent}"
    raise ConfigError(f"{path} {what}{near}")


class RunDirectory:
    """One run's folder. A training process holds its lock; readers need none.

    with RunDirectory.create(path, config) as run:     # or RunDirectory.resume(path)
        for ...:
            run.log(metrics, step=env_steps)
            with run.new_checkpoint(round) as folder:
                algorithm.save_to_path(folder)
        run.write_summary(summary)
    """

    def __init__(self, path: Path, *, lock: TextIO | None = None, discard: bool = False) -> None:
        self.path = path
        self.dataset = path / "dataset"
        self.clips = path / "clips"
        self.checkpoints = path / "checkpoints"
        self.returns_png = path / "returns.png"
        self._lock = lock
        self._discard = discard  # the folder is ours to remove while nothing has been learnt
        self._lines: TextIO | None = None
        self._events: SummaryWriter | None = None

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Mapping[str, Any]]) -> RunDirectory:
        """Begin a run in a new or empty folder. Raises ConfigError, leaving nothing behind, for others."""
        path, text = Path(path), to_yaml(config)
        existed = path.exists()
        run = cls(path, lock=take_folder(path), discard=not existed)
        try:
            write(path / CONFIG, text)
        except BaseException as error:
            run.__exit__(type(error), error, error.__traceback__)
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """A run to read from. Raises ConfigError, naming the nearest run beside it, if it is none."""
        path = Path(path)
        return cls(path) if is_run(path) else _not_a_run(path)

    @classmethod
    def resume(cls, path: Path | str) -> RunDirectory:
        """A run to go on with, what a kill left half-written cleaned up. ConfigError if it is in use."""
        run = cls.open(path)
        run._lock = take_lock(run.path)
        run._tidy()
        return run

    # Configuration and summary

    def config(self) -> Config:
        return yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))

    def write_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        write(self.path / CONFIG, to_yaml(config))

    def write_summary(self, summary: Metrics) -> None:
        write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any]:
        """Empty while the run has not ended."""
        path = self.path / SUMMARY
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    # Metrics

    def log(self, metrics: Metrics, step: int) -> None:
        """Append a line to metrics.jsonl, and its numbers to TensorBoard at `step` environment steps."""
        line = _plain({"step": step, **metrics})
        if self._lines is None:
            self._lines = _open_whole_lines(self.path / METRICS)
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                self._writer(step).add_scalar(key, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a round, as logged; numbers that were not finite are None."""
        path = self.path / METRICS
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # after the last newline: torn
        return [json.loads(line) for line in lines]

    def truncate_after(self, round: int) -> None:
        """Forget metrics of later rounds than `round`, the one that the resumed checkpoint holds."""
        kept = [line for line in self.metrics() if line.get("round", 0) <= round]
        self._close_writers()
        write(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self._writer(first_step=kept[-1]["step"] + 1 if kept else 0)

    def _writer(self, first_step: int) -> SummaryWriter:
        """TensorBoard hides what earlier processes of this run wrote from `first_step` on."""
        if self._events is None:
            from tensorboardX import SummaryWriter

            own = f".{time.time_ns()}"  # else two writers of one second would share a file
            self._events = SummaryWriter(
                str(self.path), purge_step=first_step, flush_secs=10, filename_suffix=own
            )
        return self._events

    # Checkpoints

    @contextmanager
    def new_checkpoint(self, round: int, *, keep: int = 2) -> Iterator[Path]:
        """A folder to write into, published as `checkpoints/ROUND` at the end; the newest `keep` stay."""
        with self._publish(f"{round:06d}") as folder:
            yield folder
        for old in self._rounds()[:-keep]:
            shutil.rmtree(old)

    @contextmanager
    def new_best(self) -> Iterator[Path]:
        """A folder to write into, published as `checkpoints/best` at the end."""
        with self._publish("best") as folder:
            yield folder

    def latest_checkpoint(self) -> Path | None:
        return next(reversed(self._rounds()), None)

    def best_checkpoint(self) -> Path | None:
        """The one of the best policy on validation. Its predecessor, if a kill came between two renames."""
        folders = [self.checkpoints / "best", self.checkpoints / ".best.old"]
        return next((folder for folder in folders if folder.is_dir()), None)

    def _rounds(self) -> list[Path]:
        folders = (path for path in self.checkpoints.glob("[0-9]*") if path.name.isdigit())
        return sorted(folders, key=lambda path: int(path.name))

    @contextmanager
    def _publish(self, name: str) -> Iterator[Path]:
        final, fresh, old = (self.checkpoints / part for part in (name, f".{name}.new", f".{name}.old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
            _sync(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def _tidy(self) -> None:
        for old in self.checkpoints.glob(".*.old"):
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            shutil.rmtree(old) if final.exists() else old.rename(final)
        for fresh in self.checkpoints.glob(".*.new"):
            shutil.rmtree(fresh)

    # End

    def close(self) -> None:
        """Write out events, and let other processes train in this run."""
        self._close_writers()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _close_writers(self) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        self._lines = self._events = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error in a new run before anything was learnt, the folder goes too."""
        learnt = {path.name for path in self.path.rglob("*") if path.is_file()} - {CONFIG, LOCK}
        if error is not None and self._discard and not learnt:
            shutil.rmtree(self.path)
        self.close()


def take_folder(path: Path) -> TextIO:
    """Make a folder for something new and hold its lock. ConfigError if it is taken or cannot be written."""
    try:
        _refuse_taken(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
    except OSError as error:
        raise ConfigError(f"cannot write a run to {path}: {error.strerror}; choose another --run") from None
    try:
        _refuse_taken(path)  # another process may have begun before the lock was ours
    except ConfigError:
        lock.close()
        raise
    return lock


def _refuse_taken(path: Path) -> None:
    if is_run(path) or (path / SEEDS).is_file():
        what = "a run" if is_run(path) else "an experiment of several seeds"
        raise ConfigError(
            f"{path} is already {what}; go on with `tutelage resume {path}` or choose another --run"
        )
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another --run")
    if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        raise ConfigError(f"{path} is a folder with other things in it; choose another --run")


def take_lock(
    path: Path, *, used: str = "being trained", advice: str = "wait for it or choose another --run"
) -> TextIO:
    """Hold a folder until the file is closed, or the process ends, however. ConfigError if another does."""
    file = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ConfigError(f"{path} is {used} by {holder}; {advice}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def is_training(path: Path) -> bool:
    """Whether a process holds the folder."""
    try:
        take_lock(path).close()
    except ConfigError:
        return True
    return False


def _open_whole_lines(path: Path) -> TextIO:
    """Open for appending, without the torn line that a kill may have left at the end."""
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def write_json(path: Path, values: Metrics) -> None:
    """Replace a file by these values; those that JSON has no words for become null."""
    write(path, json.dumps(_plain(values), indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Replace a file at once: readers see the old one or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sync(folder: Path) -> None:
    """Put every file under `folder` on the disk, so that a published checkpoint survives a power cut."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy scalars and arrays as numbers and lists, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
