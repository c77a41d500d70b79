"""What the methods share that learn from comparisons of segments: whom to ask, about what, how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from learner.methods._base import Critic, Method
from learner.pairs import WAYS
from learner.reward_learner import SCHEDULES, RewardSettings
from tutelage.errors import ConfigError

Terminal = Literal["judged", "ignored", "zero"]


@dataclass(frozen=True)
class Asking(Method):
    """Questions about what was collected. `services.preferences` puts them."""

    needs_labeler: ClassVar = True
    fits_reward: ClassVar = True
    ranges: ClassVar = {
        **dict.fromkeys(("comparisons", "segment_length", "batch"), (1, math.inf)),
        "first_share": (0, 1),
        "candidates": (2, math.inf),
        "options": (2, 9),
    }

    comparisons: int = 700  # to ask for in all
    first_share: float = 0.25  # of them, asked and answered before the policy learns
    schedule: str = "constant"  # of the others; or hyperbolic, sqrt, accuracy
    ask_until: int | None = None  # env steps by which all are asked; None: those of stop.env_steps
    batch: int = 10  # comparisons asked at a time
    segment_length: int = 50  # steps
    options: int = 2  # segments to choose the best of
    pairs: str = "uniform"  # or disagreement, entropy, k_centre, same_start
    across_time: bool = False  # segments of all that was collected, not only of the newest
    candidates: int = 400  # segments among which pairs are chosen
    task: str = ""  # what people are told to judge by

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("schedule", SCHEDULES), ("pairs", WAYS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"method.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.ask_until is not None and self.ask_until < 1:
            raise ConfigError(f"method.ask_until: expected a number of at least 1, got {self.ask_until}")
        if self.options > self.candidates:
            raise ConfigError(
                f"method.options: {self.options} of {self.candidates} segments; set method.candidates to more"
            )

    @property
    def past_the_end(self) -> bool:
        """Whether segments run on after the end of the task."""
        return False

    def reward_settings(self) -> RewardSettings:
        """Raises ConfigError while nobody has said by when all questions are to be asked."""
        if self.ask_until is None:
            raise ConfigError("method.ask_until: set it, or stop.env_steps, to spread the questions over")
        return RewardSettings(
            comparisons=self.comparisons,
            first_share=self.first_share,
            schedule=self.schedule,
            ask_until=self.ask_until,
            batch=self.batch,
            segment_length=self.segment_length,
            options=self.options,
            pairs=self.pairs,
            across_time=self.across_time,
            candidates=self.candidates,
            past_the_end=self.past_the_end,
            task=self.task,
            fits=self.fits_reward,
        )


@dataclass(frozen=True)
class LearnsReward(Asking):
    """Asking, and a reward model that is fitted to the answers."""

    ranges: ClassVar = {
        **dict.fromkeys(("members", "passes"), (1, math.inf)),
        "careless": (0, 0.99),
        "reward_lr": (1e-9, math.inf),
    }

    terminal: Terminal = "judged"  # an end: judged by those who compare, ignored, or worth zero
    members: int = 3  # of the reward ensemble
    careless: float = 0.1  # probability of an answer at random
    reliability: bool = False  # estimate that probability for each annotator
    normalise_model: bool = True  # the learnt reward: mean 0, standard deviation 1, each member
    passes: int = 10  # of a refit over all comparisons
    reward_lr: float = 1e-3
    reward_hiddens: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs == "disagreement" and self.members == 1:
            raise ConfigError("method.pairs: one member never disagrees; set method.members to more")
        if (least := min(self.reward_hiddens, default=1)) < 1:
            raise ConfigError(f"method.reward_hiddens: a layer of {least} units; give each at least 1")

    @property
    def past_the_end(self) -> bool:
        return self.terminal == "judged"

    def reward_settings(self) -> RewardSettings:
        return replace(
            super().reward_settings(),
            members=self.members,
            careless=self.careless,
            reliability=self.reliability,
            normalise=self.normalise_model,
            passes=self.passes,
            lr=self.reward_lr,
            hiddens=tuple(self.reward_hiddens),
        )

    def ends(self, critic: Critic) -> tuple[bool, bool]:
        """Whether nothing comes after the end of a task, and whether rewards are told relative to it."""
        judged = self.terminal == "judged" and critic.ends_are_judged()
        return judged or self.terminal == "zero", judged
