"""Who acts in DAgger: the β-mixture and the takeover rules, over seeds, as returns against what they ask of
the expert. The figures of docs/dagger-variants.md.

    python -m benchmarks.variants                 # both environments, five seeds; about half an hour
    python -m benchmarks.variants lunarlander --seeds 3 --runs runs/variants
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.common import trained
from services.report import iqm_ci95, plot

RULES: Mapping[str, list[str]] = {
    "bc": ["method.name=bc"],
    "dagger": [],
    "dagger, β = 0.5^i": ["method.beta=0.5**i"],
    "safe_dagger": ["method.name=safe_dagger"],
    "ensemble_dagger": ["method.name=ensemble_dagger"],
    "thrifty_dagger": ["method.name=thrifty_dagger"],
    "thrifty_dagger, α = 0.1": ["method.name=thrifty_dagger", "method.budget=0.1"],
    "hg_dagger": ["method.name=hg_dagger", "expert.arguments.tolerance=0.1", "expert.arguments.patience=5"],
}


@dataclass(frozen=True)
class Task:
    preset: str
    expert: str
    env_steps: int
    seconds_a_step: float  # of the environment's own time
    overrides: tuple[str, ...] = ()
    failure: str = "terminated"  # what ThriftyDAgger takes for one


RUNS = Path("runs/variants")
TASKS: Mapping[str, Task] = {
    "hopper": Task("dagger-hopper", "checkpoint:hopper", 15_000, 0.008),
    "lunarlander": Task(
        "dagger-lunarlander",
        "checkpoint:lunarlander",
        4_000,
        0.02,
        ("env_runners.num_envs_per_env_runner=1",),
        failure="punished",  # it ends where it has landed, too
    ),
}


@dataclass(frozen=True)
class Line:
    """A rule on an environment; returns over the seeds, costs as means of a seed."""

    bench: str
    env: str
    rule: str
    seeds: int
    return_iqm: float
    return_ci95: tuple[float, float]
    of_expert: float  # share of the expert's return, from random (0) to expert (1)
    expert_labels: float
    expert_minutes: float  # in the environment's time: asked about, or watched
    takeovers: float


def measure(name: str, rule: str, seeds: int, runs: Path) -> Line:
    """Train all seeds by the command line, if they are not there yet, and sum up."""
    task = TASKS[name]
    folder = runs / f"{name}-{'-'.join(''.join(c if c.isalnum() else ' ' for c in rule).split())}"
    expert = f"watching:{task.expert}" if rule == "hg_dagger" else task.expert
    settings = ["stop.expert_labels=null", f"stop.env_steps={task.env_steps}", f"expert.oracle={expert}"]
    if rule.startswith("thrifty_dagger"):
        settings.append(f"method.failure={task.failure}")
    return line(name, rule, trained(folder, [task.preset, *RULES[rule], *task.overrides, *settings], seeds))


def line(name: str, rule: str, summaries: list[dict[str, Any]]) -> Line:
    returns = np.array([summary["return_mean"] for summary in summaries])
    mean, low, high = (float(value) for value in iqm_ci95(returns))
    expert, chance = summaries[0]["expert_return"], summaries[0]["random_return"]
    costs = {
        key: float(np.mean([summary[key] for summary in summaries]))
        for key in ("expert_labels", "attended_steps", "takeovers")
    }
    return Line(
        bench="variants",
        env=name,
        rule=rule,
        seeds=len(summaries),
        return_iqm=round(mean, 1),
        return_ci95=(round(low, 1), round(high, 1)),
        of_expert=round((mean - chance) / (expert - chance), 3),
        expert_labels=round(costs["expert_labels"]),
        expert_minutes=round(costs["attended_steps"] * TASKS[name].seconds_a_step / 60, 2),
        takeovers=round(costs["takeovers"]),
    )


def markdown(lines: list[Line]) -> str:
    """The table of the guide."""
    head = "| rule | return, of five seeds | of the expert | labels | expert minutes | takeovers |"
    rows = [
        f"| {x.rule} | {x.return_iqm:,.0f} [{x.return_ci95[0]:,.0f}, {x.return_ci95[1]:,.0f}] "
        f"| {x.of_expert:.2f} | {x.expert_labels:,.0f} | {x.expert_minutes:.1f} | {x.takeovers:,.0f} |"
        for x in lines
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ENV]...", help="Default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each rule.")] = 5,
    runs: Annotated[Path, typer.Option(help="Where runs go; those that are there count.")] = Path(
        "runs/variants"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of tables.")] = False,
) -> None:
    """Compare who acts in DAgger."""
    for name in names or TASKS:
        lines = []
        for rule in RULES:
            lines.append(measure(name, rule, seeds, runs))
            if as_json:
                print(json.dumps(asdict(lines[-1])), flush=True)
        if not as_json:
            print(f"{name}\n\n{markdown(lines)}\n", flush=True)
        plot(sorted(runs.glob(f"{name}-*/seed-*")), runs / f"{name}.png")


if __name__ == "__main__":
    typer.run(main)
