"""What a run shows of itself: a live table on a terminal, a line a round elsewhere; always on stderr.

So the standard output stays free for results. An update only stores its figures; a terminal is drawn by a
thread of its own, twice a second.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Figures = Mapping[str, Any]

COUNTERS = {
    **{name: name for name in ("env_steps", "expert_labels", "comparisons", "wall_s")},
    "rounds": "round",
}
"""Stop criteria whose progress is a counter, by the figure that counts."""


def own_stderr() -> TextIO:
    """The standard error by a descriptor of its own, which stays while others silence theirs."""
    try:
        return os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    except OSError:  # closed
        return sys.stderr


class Progress:
    """A view of one run.

        with Progress("runs/hopper", {"rounds": 20}) as progress:
            progress.note("measuring the expert")
            for ...:
                progress.update(figures)     # the same figures as in metrics.jsonl

    `stop` has the limits by name (see COUNTERS; others are shown as a goal only). Quiet: nothing is shown.
    """

    def __init__(
        self, title: str, stop: Figures, *, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.title = title
        self.stop = stop
        self._own = None if console else own_stderr()
        self.console = console or Console(file=self._own, highlight=False)
        self._quiet = quiet
        self._live: Live | None = None
        self._rows: deque[Figures] = deque(maxlen=1000)
        self._shown: set[str] = set()
        self._best = -math.inf
        self._note = "starting"
        self._began = self._updated = time.monotonic()
        self._first: tuple[float, Figures] | None = None  # since when the pace is measured

    def __enter__(self) -> Progress:
        if not self._quiet and self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=2, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back, cursor and all, whatever happened."""
        self._note = "" if error is None else "interrupted"
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._own is not None and self._own is not sys.stderr:
            self._own.close()

    def note(self, words: str) -> None:
        """Say what is going on besides rounds."""
        self._note = words
        if self._live is None and not self._quiet:
            self._print(words)

    def say(self, lines: Sequence[str]) -> None:
        """What has to be read, also where all else is quiet."""
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)

    def update(self, figures: Figures) -> None:
        """Show a round that has ended."""
        now = time.monotonic()
        returns = [_number(figures, key) for key in ("best", "validation_mean")]
        self._best = max([self._best, *(value for value in returns if value is not None)])
        figures = {**figures, "best": self._best}
        self._first = self._first or (now, figures)
        self._updated = now
        self._note = ""
        self._shown |= {key for key in CELLS if CELLS[key](figures)}
        self._rows.append(figures)
        if self._live is None and not self._quiet:
            self._print(self._line(figures))

    def left_s(self) -> float | None:
        """Seconds until the first counter among the stop criteria is full, at the pace so far."""
        if self._first is None or not self._rows:
            return None
        (since, first), last = self._first, self._rows[-1]
        elapsed, times = self._updated - since, []
        for name, key in COUNTERS.items():
            limit, now, then = self.stop.get(name), _number(last, key), _number(first, key)
            if limit is None or now is None or then is None:
                continue
            if name == "wall_s":
                times.append(limit - now)
            elif elapsed > 0 and now > then:
                done = now + 1 if name == "rounds" else now  # rounds count from 0
                times.append((limit - done) * elapsed / (now - then))
        return max(0.0, min(times)) if times else None

    def fraction(self) -> float | None:
        """How far the counter is that is nearest to its limit, 0 to 1."""
        last = self._rows[-1] if self._rows else {}
        parts = []
        for name, key in COUNTERS.items():
            value = _number(last, key)
            if self.stop.get(name):
                done = 0 if value is None else value + 1 if name == "rounds" else value
                parts.append(done / self.stop[name])
        return min(1.0, max(parts)) if parts else None

    # Plain lines

    def _print(self, words: str) -> None:
        self.console.print(f"{self.title}  {words}", markup=False, soft_wrap=True)

    def _line(self, figures: Figures) -> str:
        words = [f"{key} {cell}" for key, make in CELLS.items() if (cell := make(figures))]
        left = self.left_s()
        return "  ".join(words + ([f"left {duration(left)}"] if left is not None else []))

    # The terminal

    def __rich__(self) -> RenderableType:
        """Title, the rounds that fit on the screen, where it stands."""
        words = [(self.title, "bold"), (f"  {self._until()}", "dim"), (f"  {self._note}", "yellow")]
        head = Text.assemble(*words, no_wrap=True, overflow="ellipsis")
        if not self._rows:
            return Group(head, self._status())
        return Group(head, self._table(), self._status())

    def _table(self) -> Table:
        rows = list(self._rows)[-max(1, self.console.size.height - 8) :]
        columns = self._fitting(rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        for key in columns:
            table.add_column(key, justify="right", no_wrap=True, style=STYLES.get(key, ""))
        for number, figures in enumerate(rows, 1):
            newest = number == len(rows)
            table.add_row(*(CELLS[key](figures) for key in columns), style="" if newest else "dim")
        return table

    def _fitting(self, rows: Sequence[Figures]) -> list[str]:
        """The headings that have values, without the least needed ones where the terminal is narrow."""
        columns = [key for key in CELLS if key in self._shown]
        widths = {key: max(len(key), *(len(CELLS[key](row)) for row in rows)) + 3 for key in columns}
        for key in DISPENSABLE:
            if sum(widths[column] for column in columns) > self.console.size.width and key in columns:
                columns.remove(key)
        return columns

    def _status(self) -> Table:
        """A bar, the time spent and left."""
        left, fraction = self.left_s(), self.fraction()
        cells: list[RenderableType] = []
        if fraction is not None:
            cells += [ProgressBar(total=1.0, completed=fraction, width=24), f"{fraction:.0%}"]
        cells.append(f"{duration(time.monotonic() - self._began)} passed")
        if left is not None:
            cells.append(f"{duration(max(0.0, left - (time.monotonic() - self._updated)))} left")
        status = Table.grid(padding=(0, 2))
        status.add_row(*cells)
        return status

    def _until(self) -> str:
        goal = _number(self._rows[-1], "goal") if self._rows else None
        limits = {name.replace("_", " "): _amount(limit) for name, limit in self.stop.items()}
        if goal is not None:
            limits.pop("expert fraction", None)
            limits["validation"] = _return(goal)
        return f"until {' or '.join(map(' '.join, limits.items()))}" if limits else ""


def _number(figures: Figures, key: str) -> float | None:
    value = figures.get(key)
    return value if value is not None and math.isfinite(value) else None


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _plain(key: str, form: Callable[[float], str]) -> Callable[[Figures], str]:
    return lambda figures: "" if (value := _number(figures, key)) is None else form(value)


_all_steps = _plain("env_steps", _whole)


def _beta(figures: Figures) -> str:
    """Nothing where there is no expert to act."""
    value = _number(figures, "beta") if "expert_labels" in figures else None
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _steps(figures: Figures) -> str:
    """Nothing where it says the same as the labels."""
    return "" if figures.get("env_steps") == figures.get("expert_labels") else _all_steps(figures)


def _pace(figures: Figures) -> str:
    value = _number(figures, "steps_per_s")
    return "" if value is None else f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:,.0f}"


def _return(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}"


def _validation(figures: Figures) -> str:
    mean, lo, hi = (_number(figures, f"validation_{part}") for part in ("mean", "lo", "hi"))
    if mean is None:
        return ""
    return _return(mean) if lo is None or hi is None else f"{_return(mean)} [{_return(lo)}, {_return(hi)}]"


CELLS: dict[str, Callable[[Figures], str]] = {
    "round": _plain("round", _whole),
    "β": _beta,
    "|D|": _plain("dataset", _whole),
    "labels": _plain("expert_labels", _whole),
    "comparisons": _plain("comparisons", _whole),
    "foreseen": _plain("reward_accuracy", "{:.0%}".format),
    "steps": _steps,
    "steps/s": _pace,
    "loss": _plain("loss", "{:.3g}".format),
    "training": _plain("return_window", _return),
    "validation": _validation,
    "best": _plain("best", _return),
}
"""Columns by their heading; one that has never had a value is not shown."""

DISPENSABLE = ("training", "steps/s", "foreseen", "|D|", "best", "steps", "β", "loss")
"""What a narrow terminal goes without, first to last."""

STYLES = {"round": "bold", "validation": "cyan", "best": "green"}


def duration(seconds: float) -> str:
    """59s, 3m05s, 2h10m, 3d04h."""
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86_400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86_400}d{s % 86_400 // 3600:02d}h"
