"""Progress of a run: a live table on a terminal, a line a round anywhere else. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

COUNTERS = {"rounds": "round", "env_steps": "env_steps", "expert_labels": "expert_labels", "wall_s": "wall_s"}
"""Stop criteria that grow steadily, and the figure that each is compared with."""

ROWS_SHOWN = 8  # validations in the live table


class Progress:
    """Shows figures as they come.

    with Progress("runs/hopper", {"expert_labels": 14_000}) as progress:
        progress.note("measuring the expert")
        progress.update(figures)
    """

    def __init__(self, title: str, stop: Mapping[str, float], *, quiet: bool = False) -> None:
        self.title = title
        self.stop = stop
        self.console = Console(stderr=True, quiet=quiet)
        self.started = time.monotonic()
        self.begun_at: dict[
            str, float
        ] = {}  # counters at the first update, so that a resumed run is paced well
        self.figures: dict[str, Any] = {}
        self.validations: list[dict[str, Any]] = []
        self.live: Live | None = None
        if self.console.is_terminal and not quiet:
            self.live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(f"{self.title}: {text}"), style="dim", highlight=False)

    def update(self, figures: Mapping[str, Any]) -> None:
        """The figures of one more round."""
        if not self.figures:
            self.begun_at = {key: float(figures.get(key, 0)) for key in COUNTERS.values()}
            self.started = time.monotonic()
        self.figures = dict(figures)
        if "validation_mean" in figures:
            self.validations = [*self.validations[1 - ROWS_SHOWN :], self.figures]
        if self.live is None:
            self.console.print(
                Text(plain_line(self.figures, self.remaining_s())), highlight=False, soft_wrap=True
            )

    def done(self) -> float:
        """The share of the run that is done, by the stop criterion that is nearest; 0 if none can say."""
        shares = [
            float(self.figures.get(COUNTERS[name], 0) + (name == "rounds")) / float(limit)
            for name, limit in self.stop.items()
            if name in COUNTERS and limit
        ]
        return min(1.0, max(shares, default=0.0))

    def remaining_s(self) -> float | None:
        """Seconds left at the pace so far; None while that is unknown."""
        paces = []
        elapsed = time.monotonic() - self.started
        for name, limit in self.stop.items():
            if name in COUNTERS:
                key = COUNTERS[name]
                value = float(self.figures.get(key, 0))
                grown = value - self.begun_at.get(key, 0)
                if grown > 0:
                    paces.append(max(0.0, float(limit) - value) * elapsed / grown)
        return min(paces, default=None)

    def _render(self) -> Group:
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("round", "β", "|D|", "labels", "env steps", "steps/s", "loss", "validation return"):
            table.add_column(name, justify="right", no_wrap=True)
        newest = [] if "validation_mean" in self.figures or not self.figures else [self.figures]
        for figures in [*self.validations, *newest][-ROWS_SHOWN:]:
            best = figures.get("validation_mean") is not None and figures["validation_mean"] >= self._best()
            table.add_row(*cells(figures), style="green" if best else None)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=self.done(), width=40), Text(self._pace(), style="dim"))
        return Group(table, bar)

    def _best(self) -> float:
        return max((figures["validation_mean"] for figures in self.validations), default=float("inf"))

    def _pace(self) -> str:
        remaining = self.remaining_s()
        left = "" if remaining is None else f", {duration(remaining)} left"
        goal = self.figures.get("goal")
        aim = "" if goal is None else f", goal {goal:,.1f}"
        return f"{self.done():.0%}, {duration(time.monotonic() - self.started)}{left}{aim}"


def cells(figures: Mapping[str, Any]) -> list[str]:
    """One row of the live table."""
    return [
        f"{figures.get('round', 0):,.0f}",
        number(figures.get("beta"), "{:.2f}"),
        number(figures.get("dataset"), "{:,.0f}"),
        number(figures.get("expert_labels"), "{:,.0f}"),
        number(figures.get("env_steps"), "{:,.0f}"),
        number(figures.get("steps_per_s"), "{:,.0f}"),
        number(figures.get("loss"), "{:.3f}"),
        validation(figures),
    ]


def plain_line(figures: Mapping[str, Any], remaining_s: float | None) -> str:
    """One round on one line."""
    words = {
        "round": figures.get("round"),
        "beta": number(figures.get("beta"), "{:.2f}"),
        "dataset": number(figures.get("dataset"), "{:.0f}"),
        "labels": number(figures.get("expert_labels"), "{:.0f}"),
        "env_steps": number(figures.get("env_steps"), "{:.0f}"),
        "steps/s": number(figures.get("steps_per_s"), "{:.0f}"),
        "loss": number(figures.get("loss"), "{:.3f}"),
        "validation": validation(figures),
        "left": "" if remaining_s is None else duration(remaining_s),
    }
    return "  ".join(f"{name} {value}" for name, value in words.items() if value not in ("", None))


def validation(figures: Mapping[str, Any]) -> str:
    """The validation return with its interval, if this round had one."""
    if figures.get("validation_mean") is None:
        return ""
    return "{validation_mean:,.1f} [{validation_lo:,.1f}, {validation_hi:,.1f}]".format(**figures)


def number(value: Any, layout: str) -> str:
    return "" if value is None else layout.format(value)


def duration(seconds: float) -> str:
    """47 s, 3:07 min or 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
