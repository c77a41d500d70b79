"""What the benchmarks share: a row of the table, medians of interleaved CPU times, the command line.

Two sides are measured in turns in one process, so that a machine that is slow for a while is so for both, and
by the CPU time of the process, so that waiting for a core does not count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from services.overrides import Config, load_config, to_yaml
from services.run_directory import SEEDS, is_done
from tutelage.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One comparison. The ratio is such that larger is better."""

    bench: str
    case: str
    ours: float
    against: str  # what it is compared with
    reference: float  # its figure, in the same unit
    unit: str
    ratio: float
    reach: float | None  # the ratio to reach; None: for information
    reached: bool | None


def row(
    bench: str,
    case: str,
    *,
    ours: float,
    against: str,
    reference: float,
    unit: str,
    reach: float | None = None,
    smaller_is_better: bool = False,
) -> Row:
    """A row with its ratio: ours / reference, or the inverse where the figures are costs."""
    ratio = reference / ours if smaller_is_better else ours / reference
    reached = None if reach is None else ratio >= reach
    return Row(bench, case, _short(ours), against, _short(reference), unit, _short(ratio), reach, reached)


def _short(value: float) -> float:
    """Four significant digits; the rest is noise."""
    return float(f"{value:.4g}")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all its threads, that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(*sides: Callable[[], object], repeats: int = 5) -> tuple[float, ...]:
    """Median CPU seconds of each side, called in turns; one more turn before them warms up."""
    turns = [[cpu_seconds(side) for side in sides] for _ in range(repeats + 1)][1:]
    return tuple(statistics.median(seconds) for seconds in zip(*turns, strict=True))


def trained(folder: Path, command: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """The summaries of `tutelage train COMMAND seeds=N` in this folder; what is there already counts, if it
    was trained by the same settings. Raises ConfigError for others, and where a seed was interrupted."""
    if (folder / "summary.json").is_file():
        check_the_same(folder, load_config(command[0], [*command[1:], f"seeds={seeds}"]))
    else:
        cli = [sys.executable, "-m", "services.cli", "train", *command, f"seeds={seeds}"]
        subprocess.run([*cli, "--run", str(folder), "--json"], check=True, stdout=subprocess.DEVNULL)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*/summary.json"))]
    if len(found) != seeds:
        raise ConfigError(f"{folder} has {len(found)} of {seeds} seeds; `tutelage resume {folder}` goes on")
    if not all(map(is_done, found)):
        raise ConfigError(f"a seed in {folder} was interrupted; `tutelage resume {folder}` goes on")
    return found


def check_the_same(folder: Path, asked: Config) -> None:
    """Raise ConfigError where the runs in a folder are of other settings, or other seeds, than these."""
    if not (folder / SEEDS).is_file():
        raise ConfigError(f"{folder} has no {SEEDS} that says what was trained there; choose another --runs")
    there = yaml.safe_load((folder / SEEDS).read_text(encoding="utf-8"))
    wanted = yaml.safe_load(to_yaml(asked))
    keys = [(section, key) for one in (there, wanted) for section in one for key in one[section]]
    for section, key in keys:
        had, want = (one.get(section, {}).get(key) for one in (there, wanted))
        if had != want:
            raise ConfigError(
                f"{folder} was trained with {section}.{key}={had!r}, and {want!r} is asked for; remove it or "
                "choose another --runs"
            )


Bench = Callable[[], Iterable[Row]]


def run(cases: Mapping[str, Bench]) -> None:
    """The command line of a benchmark: `[--json] [CASE...]`. Rows are shown as they are measured."""

    def main(
        names: Annotated[
            list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases to run; default all.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    ) -> None:
        unknown = sorted(set(names or []) - set(cases))
        if unknown:
            raise typer.BadParameter(f"no case {unknown[0]!r}; known: {', '.join(cases)}")
        show(measured(cases[name] for name in names or cases), as_json=as_json)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()


def measured(benches: Iterable[Bench]) -> Iterable[Row]:
    """Rows of all benches, one after the other."""
    for bench in benches:
        yield from bench()


def show(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print rows: a JSON object a line as they come, or a table at the end."""
    if as_json:
        for one in rows:
            print(json.dumps(asdict(one)), flush=True)
        return
    table = Table("bench", "case", "ours", "against", "reference", "unit", "ratio", "reach", box=None)
    for one in rows:
        style = {True: "green", False: "red", None: ""}[one.reached]
        figures = [f"{one.ours:,.4g}", one.against, f"{one.reference:,.4g}", one.unit, f"{one.ratio:.3g}"]
        reach = "" if one.reach is None else f"≥ {one.reach:g}"
        table.add_row(one.bench, one.case, *figures, reach, style=style)
    Console().print(table)
