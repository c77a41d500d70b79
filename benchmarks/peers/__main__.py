"""The peers' figures: `python -m benchmarks.peers [--json] [--seeds N] [CASE...]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.peers.cases import CASES, NoFigures, measure


def main(
    cases: Annotated[list[str] | None, typer.Argument(metavar="[CASE]...", help=", ".join(CASES))] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    expert: Annotated[
        Path | None, typer.Option(help="An expert for all cases that need one: .safetensors or .npz.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case that learns.")] = 1,
) -> None:
    """Run the cases, all but `preferences` by default, one after the other."""
    unknown = sorted(set(cases or []) - set(CASES))
    if unknown:
        raise typer.BadParameter(f"no case {unknown[0]!r}; known: {', '.join(CASES)}")
    figures = []
    for name in cases or [name for name, case in CASES.items() if not case.minutes]:
        for seed in range(seeds if CASES[name].script in ("dagger", "preferences") else 1):
            try:
                figures.append(measure(name, seed=seed, expert=expert))
            except NoFigures as error:
                print(f"{name}, seed {seed}: left out, {error}", file=sys.stderr)
                continue
            if as_json:
                print(json.dumps(figures[-1]), flush=True)
    if not as_json:
        Console().print(_table(figures))


def _table(figures: list[dict[str, Any]]) -> Table:
    table = Table("case", "peer", "figure", "unit", "more", box=None)
    shown = ("bench", "case", "peer", "value", "unit")
    for row in figures:
        more = ", ".join(f"{key} {value}" for key, value in row.items() if key not in shown)
        table.add_row(row["case"], row["peer"], f"{row['value']:,.4g}", row["unit"], more)
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
