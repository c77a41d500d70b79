"""What each choice in learning from preferences is worth, over seeds. The figures of docs/preferences.md.

    python -m benchmarks.preferences --question pairs            # five seeds of each answer to it
    python -m benchmarks.preferences --question labels --seeds 3 --runs runs/preferences

Every environment step counts, those for gathering the first segments too. Teachers judge by the environment's
reward, which the learner does not see; what is reported is that reward, of the policy at the run's end, never
of the best on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import typer
from scipy.stats import trim_mean

from benchmarks.common import Row, row, trained
from expert_oracle.synthetic import NAMES
from learner.methods.ppo import PPO
from learner.pairs import WAYS
from learner.reward_learner import SCHEDULES
from services.overrides import load_config, to_yaml
from services.report import iqm_ci95

Answers = Mapping[str, list[str]]
ON_TRUE_REWARD = "ppo on the true reward"
REACH = {"700 labels": 0.95, "350 labels": 0.85}  # of the return on the true reward
RESAMPLES = 2000


def labels(preset: str) -> Answers:
    """As many labels, beside the same learner on the true reward."""
    return {
        ON_TRUE_REWARD: [preset],
        "700 labels": [preset],
        "350 labels": [preset, "method.comparisons=350"],
    }


def of(command: list[str], key: str, values: Mapping[str, str] | tuple[str, ...]) -> Answers:
    """One setting, with each of some values."""
    named = values if isinstance(values, Mapping) else dict(zip(values, values, strict=True))
    return {name: [*command, f"{key}={value}"] for name, value in named.items()}


CARTPOLE = "preference-cartpole"
FEW = ["preference-pendulum", "method.comparisons=200"]  # of 350 every way makes as much; of 100, few any
CHOSEN = [*FEW, "method.first_share=0.25"]  # a reward model chooses among pairs once there is one
PER_UNIT = "feedback.arguments.rationality=0.0625"  # B-Pref's 1 is for rewards that span 1, here it is 16
BY_REGRET = ["feedback.labeler=synthetic:oracle", "feedback.arguments.expert=checkpoint:cartpole"]
QUESTIONS: Mapping[str, Mapping[str, Answers]] = {
    "labels": {
        "Pendulum": labels("preference-pendulum"),
        "Hopper": labels("preference-hopper"),
        "HalfCheetah": labels("preference-halfcheetah"),
    },
    "reward": {
        "CartPole": {
            "a reward, answers by return": [CARTPOLE],
            "a reward, answers by regret": [CARTPOLE, *BY_REGRET],
            "no reward (CPL), answers by return": [
                "cpl-cartpole",
                "feedback.labeler=synthetic:oracle",
                "feedback.arguments.reward=expert_oracle.tasks:upright",
            ],
            "no reward (CPL), answers by regret": ["cpl-cartpole"],
        }
    },
    "pairs": {
        "Pendulum": {
            **of(CHOSEN, "method.pairs", tuple(WAYS)),
            "uniform, across time": [*CHOSEN, "method.across_time=true"],
        }
    },
    "often": {
        "Pendulum": {
            **of(FEW, "method.schedule", tuple(SCHEDULES)),
            "all before training": [*FEW, "method.first_share=1.0"],
        }
    },
    "normalise": {
        "Pendulum": {
            "model and discounted return": FEW,
            "model alone": [*FEW, "method.normalise_rewards=false"],
            "discounted return alone": [*FEW, "method.normalise_model=false"],
            "neither": [*FEW, "method.normalise_model=false", "method.normalise_rewards=false"],
        }
    },
    "end": {"Hopper": of(["preference-hopper"], "method.terminal", ("judged", "ignored", "zero"))},
    "replay": {
        "Pendulum": {
            "SAC on the true reward": ["sac-pendulum"],
            "PEBBLE, 100 labels": ["pebble-pendulum"],
            "PEBBLE, 50 labels": ["pebble-pendulum", "method.comparisons=50"],
            "PEBBLE without exploring, 50 labels": [
                *("pebble-pendulum", "method.comparisons=50", "method.explore_steps=0"),
            ],
            "preference, 100 labels": ["preference-pendulum", "method.comparisons=100"],
        }
    },
    "teachers": {
        "Pendulum": {
            name: [*FEW, f"feedback.labeler=synthetic:{name}", *([PER_UNIT] * (name == "stochastic"))]
            for name in NAMES
            if name != "adversarial"
        }
    },
}


@dataclass(frozen=True)
class Line:
    """An answer to a question on an environment: the interquartile mean of the returns over the seeds."""

    bench: str
    question: str
    env: str
    answer: str
    seeds: int
    return_iqm: float
    return_ci95: tuple[float, float]
    returns: tuple[float, ...]  # of the seeds
    random_return: float
    of_true: float | None  # from random (0) to the same learner on the true reward (1), where that was run
    comparisons: float
    env_steps: float


def measure(question: str, env: str, seeds: int, runs: Path) -> list[Line]:
    """Train all seeds of all answers, if they are not there yet, and sum up."""
    lines: list[Line] = []
    true = None
    for answer, command in QUESTIONS[question][env].items():
        name = "-".join("".join(c if c.isalnum() else " " for c in f"{question} {env} {answer}").split())
        if answer == ON_TRUE_REWARD:
            command = [str(rewarded(command[0], runs))]
        summaries = trained(runs / name, [*command, "evaluation.evaluation_interval=null"], seeds)
        returns = np.array([summary["return_mean"] for summary in summaries])
        mean, low, high = (float(value) for value in iqm_ci95(returns))
        true = mean if answer == ON_TRUE_REWARD else true
        chance = summaries[0]["random_return"]
        line = Line(
            bench="preferences",
            question=question,
            env=env,
            answer=answer,
            seeds=len(summaries),
            return_iqm=round(mean, 1),
            return_ci95=(round(low, 1), round(high, 1)),
            returns=tuple(round(float(value), 1) for value in returns),
            random_return=round(chance, 1),
            of_true=None if true is None else round((mean - chance) / (true - chance), 3),
            comparisons=float(np.mean([summary["comparisons"] for summary in summaries])),
            env_steps=float(np.mean([summary["env_steps"] for summary in summaries])),
        )
        lines.append(line)
    return lines


@dataclass(frozen=True)
class Ratio(Row):
    """Returns on the learnt reward over those on the true one; with the bootstrap interval of the ratio."""

    ratio_ci95: tuple[float, float]


def ratios(lines: list[Line]) -> list[Ratio]:
    """A row for each number of labels. Where returns are negative, the ratio is of what was gained over a
    random policy: a share of a cost says little."""
    true = next((line for line in lines if line.answer == ON_TRUE_REWARD), None)
    rows = []
    for line in lines:
        if true is None or line.answer not in REACH:
            continue
        zero = line.random_return if true.return_iqm < 0 else 0.0
        one = row(
            "preferences",
            f"{line.env}, {line.answer}",
            ours=line.return_iqm - zero,
            against=ON_TRUE_REWARD,
            reference=true.return_iqm - zero,
            unit="return over random's" if zero else "return",
            reach=REACH[line.answer],
        )
        sides = (tuple(value - zero for value in side) for side in (line.returns, true.returns))
        rows.append(Ratio(**asdict(one), ratio_ci95=ratio_ci95(*sides)))
    return rows


def ratio_ci95(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the ratio of two interquartile means, of independent seeds."""
    rng = np.random.default_rng(0)
    a, b = (trim_mean(rng.choice(side, (RESAMPLES, len(side))), 0.25, axis=1) for side in (ours, theirs))
    low, high = np.percentile(a / b, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def rewarded(preset: str, runs: Path) -> Path:
    """The preset's configuration for PPO on the environment's reward, as a file."""
    sections = load_config(preset)
    ours = {field.name for field in fields(PPO)}
    method = {key: value for key, value in sections["method"].items() if key in ours}
    sections = {**sections, "method": {**method, "name": "ppo"}}
    del sections["feedback"]
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f"{preset}-rewarded.yaml"
    path.write_text(to_yaml(sections))
    return path


def draw(lines: list[Line], path: Path) -> None:
    """The seeds as dots, their interquartile mean with its interval; one answer below the other."""
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.4 * len(lines)), layout="constrained")
    for y, line in enumerate(reversed(lines)):
        axes.plot(line.returns, [y] * len(line.returns), "o", color="tab:gray", alpha=0.5, markersize=4)
        low, high = line.return_ci95
        axes.plot([low, high], [y, y], color="tab:blue", linewidth=2)
        axes.plot(line.return_iqm, y, "D", color="tab:blue")
    axes.set_yticks(range(len(lines)), [line.answer for line in reversed(lines)])
    axes.set_xlabel(f"return on {lines[0].env}, {lines[0].seeds} seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def markdown(lines: list[Line]) -> str:
    """The table of the guide."""
    rows = [
        f"| {x.answer} | {x.return_iqm:,.0f} [{x.return_ci95[0]:,.0f}, {x.return_ci95[1]:,.0f}] "
        f"| {'' if x.of_true is None else f'{x.of_true:.2f}'} | {x.comparisons:,.0f} | {x.env_steps:,.0f} |"
        for x in lines
    ]
    head = (
        f"| {lines[0].env} | return, of {lines[0].seeds} seeds | of the true reward's | labels | env steps |"
    )
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def sentence(x: Ratio) -> str:
    low, high = x.ratio_ci95
    mark = "reached" if x.reached else "not reached"
    return f"{x.case}: {x.ratio:.2f} [{low:.2f}, {high:.2f}] of {x.against}, to reach {x.reach:g}: {mark}"


def main(
    question: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(QUESTIONS)}; several times for several. Default: all."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="Only this environment.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each answer.")] = 5,
    runs: Annotated[Path, typer.Option(help="Where runs go; those that are there count.")] = Path(
        "runs/preferences"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of tables.")] = False,
) -> None:
    """Measure what choices in learning from preferences are worth."""
    for one in question or QUESTIONS:
        if one not in QUESTIONS:
            raise typer.BadParameter(f"no question {one!r}; there are: {', '.join(QUESTIONS)}")
    known = sorted({name for one in question or QUESTIONS for name in QUESTIONS[one]})
    if unknown := sorted(set(env or ()) - set(known)):
        raise typer.BadParameter(f"nothing is asked on {unknown[0]!r}; there are: {', '.join(known)}")
    for one in question or QUESTIONS:
        for name in (name for name in QUESTIONS[one] if not env or name in env):
            lines = measure(one, name, seeds, runs)
            draw(lines, runs / f"{one}-{name}.png")
            if as_json:
                print("\n".join(json.dumps(asdict(x)) for x in [*lines, *ratios(lines)]), flush=True)
            else:
                print("\n".join([f"{one}\n", markdown(lines), "", *map(sentence, ratios(lines))]), flush=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
