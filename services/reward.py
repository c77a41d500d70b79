"""What a run has learnt as its reward: a figure, and a video of an episode with the reward under it.

The reward model and the policy are those of the newest checkpoint. The model is held against the segments
that were asked about, and against the answers, each by the members that were not fitted to them. The true
reward is what a scripted teacher judged by, else the environment's, which nobody saw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch
import tree
from scipy.stats import pearsonr, spearmanr

from actors.clips import CODECS, Played, played, render, write
from actors.environments import make_env
from expert_oracle.checkpoint import load_checkpoint
from expert_oracle.synthetic import Reward, Teacher
from learner.comparisons import Comparisons
from learner.reward_learner import load_reward
from learner.reward_model import Fitting, RewardModel
from services.labeler.agreement import wilson
from services.report import COLOURS, FAINT, INK, STYLE, check_drawable, save
from services.run_directory import RunDirectory
from services.settings import build_config
from services.trainer import REWARD, result_seeds
from services.trainer_config import TrainerConfig
from tutelage.errors import ConfigError
from tutelage.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 10  # of predicted probabilities
LEARNT, TRUE = COLOURS[0], COLOURS[1]
PIXELS = 480  # of the filmed picture's longer side
CURVE = 0.4  # height of the curve under it, as a share of its width


@dataclass(frozen=True)
class Judge:
    """Whose reward is held against the learnt one. Made by: judge_of. Eaten by: judged, rewarded."""

    name: str
    reward: Reward | None  # None: the environment's


@dataclass(frozen=True)
class Judged:
    """What the model makes of the questions. Made by: judged. Eaten by: the panels."""

    learnt: Array  # [Q, K] returns on the common scale: the mean of members that it is held out of, or NaN
    true: Array  # [Q, K] returns of the judge's reward
    judge: str  # whose reward that is
    p: Array  # [M, Q] the probability that the first option is preferred
    held_out: Array  # [M, N] bool, of the answers: the member was not fitted to it
    rows: Array  # [N] the question of each answer
    first: Array  # [N] how far the first option was preferred


@dataclass(frozen=True)
class Rewarded:
    """The rewards of an episode, less their mean over the segments and by their deviation there. Made by:
    rewarded. Eaten by: the panels, the video."""

    learnt: Array  # [M, L]
    true: Array  # [L]


def plot_reward(path: Path, output: Path, *, video: Path | None = None) -> None:
    """Draw the figure into `output`, and film the episode of its last panel.

    Raises ConfigError for a run that has learnt no reward, or files that cannot be written.
    """
    check_drawable(output)
    if video is not None and video.suffix not in CODECS:
        raise ConfigError(f"{video}: videos end in {' or '.join(CODECS)}, got {video.suffix!r}")
    run = RunDirectory.open(path)
    config = build_config(run.config())
    folder, model, comparisons = learnt_reward(run, config)
    seed = result_seeds(config.seed, 1)[0]
    episode = played(load_checkpoint(str(folder)).act, config.env_recipe(), seed)
    judge = judge_of(config)
    true = true_rewards(comparisons, judge)
    rewards = rewarded(model, episode, comparisons, judge, true)
    draw(str(config.env), judged(model, comparisons, judge, true), run.metrics(), rewards, output)
    if video is not None:
        film(config, seed, episode, rewards, video)


def learnt_reward(run: RunDirectory, config: TrainerConfig) -> tuple[Path, RewardModel, Comparisons]:
    """The newest checkpoint that has a reward model, this model, and what it was fitted to."""
    assert config.learning_method is not None
    settings = config.reward_settings()
    if settings is None or not settings.fits:
        raise ConfigError(
            f"{run.path} learns no reward, its method is {config.method_name}; give a run of `preference`"
        )
    folders = [run.latest_checkpoint(), run.best_checkpoint()]
    found = [folder for folder in folders if folder is not None and (folder / REWARD).is_file()]
    if not found:
        raise ConfigError(
            f"{run.path} has no reward model yet: the first one comes with its first checkpoint"
        )
    env = make_env(config.env_recipe())
    spaces = env.observation_space, env.action_space
    env.close()
    model = load_reward(found[0] / REWARD, settings, *spaces, seed=config.seed or 0)
    return found[0], model, Comparisons(run.path / "preferences")


def judge_of(config: TrainerConfig) -> Judge:
    """Whose reward is the true one: what a scripted teacher has in mind, else the environment's."""
    spec = config.labeler_spec
    mind = {} if spec is None or not spec.labeler.startswith("synthetic:") else spec.arguments
    mind = {name: mind[name] for name in ("reward", "expert") if mind.get(name)}
    if not mind:
        return Judge("the environment's reward", None)
    return Judge(" ".join(map(str, mind.values())), Teacher(**mind).reward)


def true_rewards(comparisons: Comparisons, judge: Judge) -> Array:
    """Rewards [Q, K, L] in the segments of all questions; 0 after an end."""
    if judge.reward is None:
        return comparisons.rewards()
    obs, actions = comparisons.segments()
    ended = comparisons.compared().ended
    rewards = np.zeros(actions.shape[:3])
    for q, k in np.ndindex(*actions.shape[:2]):
        rewards[q, k] = judge.reward(tree.map_structure(lambda x, q=q, k=k: x[q, k], obs), actions[q, k])
    return rewards if ended is None else np.where(ended, 0.0, rewards)


@torch.no_grad()
def judged(model: RewardModel, comparisons: Comparisons, judge: Judge, true: Array) -> Judged:
    """What the model expects of all questions, whoever answered them; `true`, the judge's rewards of them."""
    answers = comparisons.compared()
    Q, K, L = answers.actions.shape[:3]
    questions = replace(answers, rows=np.arange(Q), weights=np.zeros((Q, K), np.float32), careless=None)
    data = Fitting(questions, model.members, model.seed)
    fitted = torch.cat([model.returns(*data.rows(rows)[:3]) for rows in data.all()], dim=1)  # [M, Q, K]
    learnt = (fitted - L * model.offset[..., None]) / model.scale[..., None]
    p = (1 - model.careless) * torch.softmax(fitted, -1)[..., 0] + model.careless / K
    unseen = data.held_out[..., None]  # [M, Q, 1]
    return Judged(
        learnt=((learnt * unseen).sum(0) / unseen.sum(0)).numpy(),
        true=true.sum(-1),
        judge=judge.name,
        p=p.numpy(),
        held_out=Fitting(answers, model.members, model.seed).held_out.numpy(),
        rows=answers.rows,
        first=answers.weights[:, 0],
    )


def rewarded(
    model: RewardModel, episode: Played, comparisons: Comparisons, judge: Judge, true: Array
) -> Rewarded:
    """The rewards of an episode; `true`, the judge's of the segments."""
    obs = tree.map_structure(torch.from_numpy, episode.obs)
    ended = comparisons.compared().ended
    seen = true if ended is None else true[~ended]
    deviation = float(seen.std())
    own = episode.rewards if judge.reward is None else judge.reward(episode.obs, episode.actions)
    scaled = (own - seen.mean()) / (deviation if deviation > 1e-6 else 1.0)
    return Rewarded(model.rewards(obs, torch.from_numpy(episode.actions)).numpy(), scaled)


# The figure


def draw(
    env: str, said: Judged, rounds: Sequence[Mapping[str, Any]], rewards: Rewarded, output: Path
) -> None:
    """Four panels. `rounds`: the run's metrics."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.0), layout="constrained")
        panels = figure.subplots(2, 2)
        _returns(panels[0, 0], said)
        _calibration(panels[0, 1], said)
        _disagreement(panels[1, 0], rounds)
        _episode(panels[1, 1], rewards)
        figure.suptitle(f"{env}: the reward learnt from {len(said.rows):,} answers", x=0.01, ha="left")
        save(figure, output)


def _titled(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, loc="left", fontweight="bold", fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)


def _returns(panel: Axes, said: Judged) -> None:
    _titled(panel, "segments held out: learnt and true return", f"return by {said.judge}", "learnt return")
    unseen = np.isfinite(said.learnt)
    learnt, true = said.learnt[unseen], said.true[unseen]
    panel.scatter(true, learnt, s=9, color=LEARNT, alpha=0.35, lw=0)
    words = "the true return is always the same"
    if np.ptp(true) > 0 and np.ptp(learnt) > 0:
        (r, _), (rank, _) = pearsonr(true, learnt), spearmanr(true, learnt)
        words = f"Pearson {r:.2f}\nSpearman {rank:.2f}"
    panel.text(0.03, 0.96, words, transform=panel.transAxes, va="top")


def _calibration(panel: Axes, said: Judged) -> None:
    _titled(panel, "answers held out", "predicted probability", "share that was preferred")
    some = said.held_out.any(axis=0)
    p = said.p[:, said.rows[some]].mean(axis=0, where=said.held_out[:, some])
    first = said.first[some]
    panel.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    for x, share, (low, high), n in calibration(p, first):
        panel.vlines(x, low, high, color=LEARNT, lw=1.4)
        panel.plot(x, share, "o", color=LEARNT, ms=4.5)
        panel.annotate(
            f"{n}", (x, high), (0, 2), textcoords="offset points", ha="center", fontsize=7, color=FAINT
        )
    panel.set(xlim=(0, 1), ylim=(-0.03, 1.08))
    panel.text(
        0.98, 0.03, f"{len(p)} answers, 95 % intervals", transform=panel.transAxes, ha="right", color=FAINT
    )


def calibration(p: Array, first: Array) -> Iterator[tuple[float, float, tuple[float, float], int]]:
    """For each bin of predicted probabilities that has any: their mean, the share that was preferred, its
    interval, how many."""
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    for one in np.unique(bins):
        inside = bins == one
        n, preferred = int(inside.sum()), float(first[inside].sum())
        yield float(p[inside].mean()), preferred / n, wilson(preferred, n), n


def _disagreement(panel: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    _titled(panel, "while it was learnt", "environment steps", "")
    lines = (
        ("reward_disagreement", "disagreement of the members about what they asked", LEARNT, "o"),
        ("reward_accuracy", "accuracy on answers when they came", TRUE, "s"),
    )
    for name, label, colour, marker in lines:
        points = [(line["step"], line[name]) for line in rounds if line.get(name) is not None]
        panel.plot(*np.reshape(points, (-1, 2)).T, color=colour, marker=marker, lw=1.4, ms=3, label=label)
    panel.set_ylim(0, 1.35)  # room for the legend
    panel.set_yticks(np.linspace(0, 1, 6))
    panel.legend(loc="upper left", fontsize=8)


def _episode(panel: Axes, rewards: Rewarded) -> None:
    _titled(panel, "an episode of the newest policy", "step", "reward, in deviations")
    _curves(panel, rewards)
    panel.legend(loc="best", fontsize=8)


def _curves(panel: Axes, rewards: Rewarded) -> None:
    steps = np.arange(len(rewards.true)) + 1
    panel.plot(steps, rewards.true, color=TRUE, lw=1.3, label="true")
    panel.fill_between(steps, rewards.learnt.min(0), rewards.learnt.max(0), color=LEARNT, alpha=0.25, lw=0)
    panel.plot(steps, rewards.learnt.mean(0), color=LEARNT, lw=1.3, label="learnt, and its members' range")


# The video


def film(config: TrainerConfig, seed: int, episode: Played, rewards: Rewarded, path: Path) -> None:
    """The episode, and under it the rewards up to each step."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "episode.mp4"
        render(config.env_recipe(), seed, episode.actions, bare, size=PIXELS)
        with av.open(str(bare)) as container:
            stream = container.streams.video[0]
            fps, height, width = Fraction(stream.average_rate or 30), stream.height, stream.width
            pictures = (frame.to_ndarray(format="rgb24") for frame in container.decode(stream))
            size = max(height + round(CURVE * width), width)
            write(_with_curve(pictures, width, rewards), path, fps=fps, size=size)


def _with_curve(pictures: Iterator[Array], width: int, rewards: Rewarded) -> Iterator[Array]:
    """Each picture above the curve up to it: before the first step there is none."""
    drawn, empty, columns = _curve(width, rewards)
    for picture, column in zip(pictures, columns, strict=False):
        yield np.concatenate([picture, np.concatenate([drawn[:, :column], empty[:, column:]], axis=1)])


def _curve(width: int, rewards: Rewarded) -> tuple[Array, Array, Array]:
    """Pictures [H, width, 3] of the whole curve and of its axes alone, and each step's column [L + 1]."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(width / 100, round(CURVE * width) / 100), dpi=100, layout="constrained")
        canvas, panel = FigureCanvasAgg(figure), figure.subplots()
        _curves(panel, rewards)
        panel.set_ylabel("reward", color=INK)
        figure.legend(loc="outside upper left", ncols=2)
        pictures: list[Any] = []
        for visible in (True, False):
            for artist in (*panel.lines, *panel.collections):
                artist.set_visible(visible)
            canvas.draw()
            pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        steps = np.arange(len(rewards.true) + 1)
        places = panel.transData.transform(np.stack([steps, np.zeros_like(steps)], 1))[:, 0]
    return pictures[0], pictures[1], np.ceil(places).astype(int).clip(0, width)
