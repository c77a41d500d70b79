"""From runs to plots and tables: what the returns were, how sure that is, what it cost.

Several seeds of one setting are summed up by the interquartile mean with percentile bootstrap intervals over
runs (Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", 2021); for one environment at a
time, their stratified bootstrap is the plain one. A single seed has the interval of its validation episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table
from scipy.stats import bootstrap, trim_mean

from services.run_directory import RunDirectory, find_runs
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

RESAMPLES = 2000


# Statistics


def mean_ci95(returns: Sequence[float] | npt.ArrayLike) -> tuple[float, float, float]:
    """Mean of episode returns [N] and its 95 % bootstrap interval (BCa): (mean, lo, hi).

    The interval is the mean itself where there is nothing to resample: fewer than two returns, or all equal.
    """
    x = np.asarray(returns, np.float64).ravel()
    mean = float(x.mean()) if len(x) else float("nan")
    if len(x) < 2 or np.ptp(x) == 0:
        return mean, mean, mean
    method = "BCa" if len(x) <= 500 else "percentile"  # BCa's jackknife takes N² memory
    interval = _bootstrap(x, np.mean, method)
    if not np.all(np.isfinite(interval)):
        interval = _bootstrap(x, np.mean, "percentile")
    return mean, float(interval[0]), float(interval[1])


def iqm_ci95(values: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """Interquartile mean over runs of `values` [R, ...] with its 95 % bootstrap interval, each [...]."""
    x = np.asarray(values, np.float64)
    mid = np.asarray(_iqm(x))
    if len(x) < 2:
        return mid, mid, mid
    lo, hi = _bootstrap(x, _iqm, "percentile")
    return mid, np.asarray(lo), np.asarray(hi)


def _iqm(x: Array, axis: int = 0) -> Any:
    return trim_mean(x, 0.25, axis=axis)


def _bootstrap(x: Array, statistic: Any, method: str) -> tuple[Any, Any]:
    """Resamples along the first axis, the same for the whole of a curve; no global randomness."""
    result = bootstrap(
        (x,), statistic, n_resamples=RESAMPLES, axis=0, vectorized=True, method=method, rng=0, batch=200
    )
    return result.confidence_interval


# Runs


@dataclass(frozen=True)
class Run:
    """What a report needs of one run. Made by: read_run. Eaten by: plots, tables."""

    method: str
    env: str
    settings: Mapping[str, str]  # dotted keys of the sections that decide what is learnt
    rounds: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    summary: Mapping[str, Any]  # empty while the run goes on

    def final(self) -> tuple[float, float, float] | None:
        """Return on held-out seeds once the run has ended, else the last validation: (mean, lo, hi)."""
        if self.summary.get("return_mean") is not None:
            mean = self.summary["return_mean"]
            lo, hi = self.summary.get("return_ci95") or (mean, mean)
            return mean, lo, hi
        validated = self.curve("round")
        return (validated[1][-1], validated[2][-1], validated[3][-1]) if len(validated[0]) else None

    def curve(self, x: str) -> Array:
        """Validations over metric `x`: rows x, mean, lo, hi, [4, V]."""
        keys = (x, "validation_mean", "validation_lo", "validation_hi")
        points = [[r.get(key) for key in keys] for r in self.rounds if r.get("validation_mean") is not None]
        table = np.array(points, np.float64).reshape(-1, 4).T  # None becomes NaN
        missing = np.stack([np.zeros_like(table[1]), table[1], table[1], table[1]])
        return np.where(np.isnan(table), missing, table)

    def last(self, key: str) -> float:
        """The final value of a counter."""
        known = [r[key] for r in self.rounds if r.get(key) is not None]
        return self.summary.get(key) or (known[-1] if known else 0)


def read_run(path: Path) -> Run:
    run = RunDirectory.open(path)
    config, summary = run.config(), run.read_summary()
    return Run(
        method=summary.get("method") or config.get("method", {}).get("name", "?"),
        env=summary.get("env") or str(config.get("environment", {}).get("env", "?")),
        settings=dict(_flatten({key: config.get(key) for key in ("method", "training")})),
        rounds=run.metrics(),
        summary=summary,
    )


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if not isinstance(value, Mapping):
        yield name, str(value)
        return
    for key, item in value.items():
        yield from _flatten(item, f"{name}.{key}" if name else str(key))


Groups = dict[str, dict[str, list[Run]]]  # env -> label -> runs


def group(runs: Iterable[Run]) -> Groups:
    """Runs by environment and method; where settings of one method differ, the label says in what."""
    settings: dict[tuple[str, str], dict[frozenset[tuple[str, str]], list[Run]]] = {}
    for run in runs:
        same = settings.setdefault((run.env, run.method), {})
        same.setdefault(frozenset(run.settings.items()), []).append(run)
    groups: Groups = {}
    for (env, method), variants in settings.items():
        common = frozenset.intersection(*variants)
        for own, members in variants.items():
            groups.setdefault(env, {})[_label(method, own - common)] = members
    return groups


def _label(method: str, own: Iterable[tuple[str, str]]) -> str:
    return " ".join([method, *(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(own))])


def read_groups(paths: Iterable[Path | str]) -> Groups:
    """All runs under `paths`, a run or a folder of seeds each. Raises ConfigError if there is none."""
    found = dict.fromkeys(run for path in paths for run in find_runs(path))
    if not found:
        raise ConfigError("no runs given")
    return group(map(read_run, found))


# Tables


@dataclass(frozen=True)
class Row:
    """A line of a table. `lo` and `hi` are None where no interval is known."""

    name: str
    env: str
    mean: float
    lo: float | None = None
    hi: float | None = None
    labels: int | None = None  # asked of the expert
    env_steps: int | None = None
    seeds: int = 1
    comparisons: int = 0


def rows(groups: Groups) -> list[Row]:
    """One row a setting, then what the expert and chance get, by environment."""
    table = []
    for env, settings in groups.items():
        table += [row for label, runs in settings.items() if (row := _row(label, env, runs))]
        everything = [run for runs in settings.values() for run in runs]
        for name in ("expert", "random"):
            if (known := _reference(everything, name)) is not None:
                table.append(Row(name, env, *known))
    return table


def _row(label: str, env: str, runs: Sequence[Run]) -> Row | None:
    finals = [final for run in runs if (final := run.final())]
    if not finals:
        return None
    mean, lo, hi = finals[0] if len(finals) == 1 else (float(v) for v in iqm_ci95([f[0] for f in finals]))
    labels, steps, comparisons = (
        round(np.mean([run.last(key) for run in runs]))
        for key in ("expert_labels", "env_steps", "comparisons")
    )
    return Row(label, env, mean, lo, hi, labels, steps, len(finals), comparisons)


def _reference(runs: Iterable[Run], name: str) -> tuple[float, float | None, float | None] | None:
    """Return of the `expert` or of `random` actions, as the first run that knows it measured it."""
    for run in runs:
        if (mean := run.summary.get(f"{name}_return")) is not None:
            lo, hi = run.summary.get(f"{name}_ci95") or (None, None)
            return mean, lo, hi
    return None


def table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """A table for the terminal."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    several_envs, seeds = len({row.env for row in rows}) > 1, any(row.seeds > 1 for row in rows)
    compared = [_count(row.comparisons) if row.comparisons else "" for row in rows]
    columns = {
        "environment": [row.env for row in rows] if several_envs else None,
        "": [row.name for row in rows],
        "return": [f"{row.mean:,.1f}" for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "seeds": [str(row.seeds) if row.labels is not None else "" for row in rows] if seeds else None,
        "expert labels": [_count(row.labels) for row in rows] if any(row.labels for row in rows) else None,
        "comparisons": compared if any(compared) else None,
        "env steps": [_count(row.env_steps) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if cells is not None}
    for name in columns:
        drawn.add_column(name, justify="left" if name in ("", "environment") else "right", no_wrap=True)
    for number, row in enumerate(rows):
        style = "dim" if row.labels is None else None
        drawn.add_row(*(cells[number] for cells in columns.values()), style=style)
    return drawn


def _interval(row: Row) -> str:
    return "" if row.lo is None or row.hi is None else f"{row.lo:,.1f} – {row.hi:,.1f}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


# Plots

COLOURS = (  # Okabe & Ito (2008), its black and, for its yellow, Tol's wine
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#882255"),
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")  # a second cue beside colour
INK, FAINT = "#333333", "#8A8A8A"
AXES = {"env_steps": "environment steps", "expert_labels": "expert labels", "round": "round"}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def plot(runs: Sequence[Path | str], output: Path | str) -> int:
    """Draw learning curves of `runs` (or folders of seeds) into `output`: png, pdf or svg by its name.

    A row an environment; the validation return against environment steps and against expert labels, whichever
    tell something. Returns how many runs are left out, which were not validated yet. Raises ConfigError if
    none was, or the output cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    output = Path(output)
    check_drawable(output)
    there = read_groups(runs)
    groups = _validated(there)
    axes = _informative_axes(_all_of(groups))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3 * len(axes) + 1.0, 3.1 * len(groups) + 0.5), layout="constrained")
        _draw(figure, groups, axes)
        save(figure, output)
    return len(_all_of(there)) - len(_all_of(groups))


def _all_of(groups: Groups) -> list[Run]:
    return [run for settings in groups.values() for own in settings.values() for run in own]


def check_drawable(output: Path) -> None:
    """Raise ConfigError for a file that is no figure."""
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"cannot draw {output}: expected a file that ends in .png, .pdf or .svg")


def save(figure: Figure, output: Path) -> None:
    """Write a figure. Raises ConfigError where that is not possible."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=160)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def _validated(groups: Groups) -> Groups:
    kept: Groups = {}
    for env, settings in groups.items():
        for label, runs in settings.items():
            if validated := [run for run in runs if len(run.curve("round")[0])]:
                kept.setdefault(env, {})[label] = validated
    if not kept:
        raise ConfigError("none of these runs has been validated yet, so there is nothing to draw")
    return kept


def _informative_axes(runs: Sequence[Run]) -> list[str]:
    """The x-axes along which some run moves; one of the two where those who move do so equally on both."""
    counters = ("env_steps", "expert_labels")
    moves = {key: [list(run.curve(key)[0]) for run in runs if _moves(run, key)] for key in counters}
    if moves["env_steps"] and moves["env_steps"] == moves["expert_labels"]:
        return ["expert_labels"]
    return [key for key, found in moves.items() if found] or ["round"]


def _moves(run: Run, key: str) -> bool:
    return bool(np.ptp(run.curve(key)[0]) > 0)


def _draw(figure: Figure, groups: Groups, axes: Sequence[str]) -> None:
    labels = list(dict.fromkeys(label for settings in groups.values() for label in settings))
    looks = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    grid = figure.subplots(len(groups), len(axes), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for panels, (env, settings) in zip(grid, groups.items(), strict=True):
        panels[0].set_title(env, loc="left", fontweight="bold", fontsize=10)
        panels[0].set_ylabel("return in validation")
        for panel, key in zip(panels, axes, strict=True):
            drawn = {
                label: _draw_setting(panel, runs, key, *looks[label]) for label, runs in settings.items()
            }
            handles |= drawn
            panel.set_xlabel(AXES[key])
            panel.xaxis.set_major_formatter(_short)
            panel.yaxis.set_major_formatter("{x:,g}")
        _draw_references(panels, [run for runs in settings.values() for run in runs])
    names = [_with_seeds(label, groups) for label in labels]
    figure.legend([handles[label] for label in labels], names, loc="outside upper right", ncols=4, fontsize=9)
    figure.supxlabel(_caption(groups), fontsize=7.5, color=FAINT, x=0.99, ha="right")


def _with_seeds(label: str, groups: Groups) -> str:
    counts = sorted({len(settings[label]) for settings in groups.values() if label in settings})
    return label if counts == [1] else f"{label} ({' or '.join(map(str, counts))} seeds)"


def _caption(groups: Groups) -> str:
    several = {len(runs) > 1 for settings in groups.values() for runs in settings.values()}
    seeds, episodes = "interquartile mean over seeds", "mean over validation episodes"
    words = " or, for one seed, ".join([seeds] * (True in several) + [episodes] * (False in several))
    return f"{words}, with 95 % bootstrap intervals"


def _draw_setting(panel: Axes, runs: Sequence[Run], key: str, colour: str, marker: str) -> Any:
    """A line with its band; one point with its interval where the setting does not move along x."""
    if not any(_moves(run, key) for run in runs):
        mid, lo, hi = _final(runs)
        x = float(np.median([run.curve(key)[0][-1] for run in runs]))
        return panel.errorbar(
            x, mid, [[mid - lo], [hi - mid]], fmt=marker, color=colour, ms=6, lw=1.6, zorder=3
        )
    x, mid, lo, hi = _curve(runs, key)
    panel.fill_between(x, lo, hi, color=colour, alpha=0.18, lw=0)
    dots = {"marker": marker, "ms": 3.5} if len(x) <= 40 else {}
    return panel.plot(x, mid, color=colour, lw=1.8, **dots)[0]


def _final(runs: Sequence[Run]) -> tuple[float, float, float]:
    finals = [final for run in runs if (final := run.final())]
    if len(finals) == 1:
        return finals[0]
    mid, lo, hi = iqm_ci95([final[0] for final in finals])
    return float(mid), float(lo), float(hi)


def _curve(runs: Sequence[Run], key: str) -> tuple[Array, Array, Array, Array]:
    """x, middle, lo, hi. Seeds are interpolated to common points; one that stopped early keeps its value."""
    curves = [run.curve(key) for run in runs]
    if len(curves) == 1:
        x, mean, lo, hi = curves[0]
        return x, mean, lo, hi
    start = max(curve[0][0] for curve in curves)
    x = np.unique(np.concatenate([curve[0] for curve in curves]))
    x = _thin(x[x >= start], 200)
    return x, *iqm_ci95([np.interp(x, curve[0], curve[1]) for curve in curves])


def _thin(x: Array, points: int) -> Array:
    return x if len(x) <= points else np.linspace(x[0], x[-1], points)


def _draw_references(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    """Dashed lines at what the expert and random actions get, named on the right."""
    for name in ("expert", "random"):
        if (known := _reference(runs, name)) is None:
            continue
        for panel in panels:
            panel.axhline(known[0], color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        place = {"xy": (1.01, known[0]), "xycoords": ("axes fraction", "data"), "va": "center"}
        panels[-1].annotate(f"{name}\n{known[0]:,.0f}", fontsize=8, color=FAINT, **place)


def _short(value: float, _: Any = None) -> str:
    """1500 -> 1.5k, 2000000 -> 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
