"""A log in, a summary out: how long until the engine, and the textbook, have one as good?

Run by `python -m benchmarks.speed --end-to-end`. Both are given the same teacher (its time counts
for both alike), so that both summaries share an item table. The engine distils with its own
settings, the textbook with the published ones, from its own start: noise. Quality is NDCG@10 on
validation (`full`) of learners trained on the summary; clocks stand still while it is measured.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.work import Work, published, sizes
from td3engine.config import DistillConfig, LearnerConfig
from td3engine.config.presets import build_config, merge
from td3engine.data.split import Split
from td3engine.data.windows import training_windows
from td3engine.inner_loop.learner import learn
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import validation_ndcg
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.labelled import AnySummary
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher.training import LogTraining, TrainedOnLog

LOOK_EVERY = 10  # outer steps
PUBLISHED_STD = 0.02
PUBLISHED_STEPS = 720  # 30 epochs of 24
Figures = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Curve:
    """Validation against seconds of distilling, look by look."""

    looks: list[tuple[float, float]]

    @property
    def best(self) -> float:
        return max(value for _, value in self.looks)

    def seconds_to(self, value: float) -> float | None:
        """Seconds of the first look at least as good; None if there is none."""
        return next((seconds for seconds, found in self.looks if found >= value), None)


def end_to_end(
    dataset: str, split: Split, device: torch.device, budget: float, say: Say
) -> Figures:
    """Figures of both; the textbook stops when it is as good as the engine became, or when
    `budget` seconds of distilling are over, and so does the engine."""
    config = build_config(
        "balanced", merge(sizes(dataset), {"outer": {"validate_every": LOOK_EVERY}})
    )
    began = time.perf_counter()
    teacher = train_teacher(split, config, device)
    teacher_seconds = time.perf_counter() - began
    say(f"teacher: validation {teacher.validation:.4f} after {teacher_seconds:.0f} s")
    work = Work(split, config, teacher, device)

    distillation = work.engine(config)

    def engine_step() -> AnySummary:
        distillation.step()
        distillation.done += 1
        factors = (factor.detach() for factor in distillation.factors)
        return distillation.summary.with_learned(*factors)

    outer = config.outer
    engine = follow("engine", engine_step, work, outer.validate_every, budget, say, outer.steps)

    own = published(dataset, {"outer": {"steps": PUBLISHED_STEPS}})
    theirs = replace(work, config=own)
    textbook = theirs.textbook(published_start(theirs))
    rng = np.random.default_rng(0)

    def textbook_step() -> AnySummary:
        textbook.step(theirs.real_rows(rng), lambda _part: None)
        U, T, G = (factor.detach() for factor in textbook.factors)
        return TuckerSummary(U, T, G, theirs.item_table)

    steps, goal = PUBLISHED_STEPS, engine.best
    slow = follow("textbook", textbook_step, theirs, 5, budget, say, steps, goal)
    return compared(teacher, teacher_seconds, engine, slow) | {
        "budget_seconds": budget,
        "settings": {"engine": _shown(config), "textbook": _shown(own)},
    }


def compared(
    teacher: TrainedOnLog, teacher_seconds: float, engine: Curve, textbook: Curve
) -> Figures:
    """Who was as good as whom, and when."""
    needed = engine.seconds_to(engine.best)
    assert needed is not None  # it reaches its own best
    reached = textbook.seconds_to(engine.best)
    ended = textbook.looks[-1][0] if reached is None else reached
    overtaken = engine.seconds_to(textbook.best)
    return {
        "teacher": {"seconds": teacher_seconds, "validation": teacher.validation},
        "engine": {"best": engine.best, "seconds_to_best": needed, "looks": engine.looks},
        "textbook": {
            "best": textbook.best,
            "seconds": ended,
            "reached_the_engines_best": reached is not None,
            "looks": textbook.looks,
        },
        "ratio_of_distilling": ended / needed,
        "ratio_with_teacher": (teacher_seconds + ended) / (teacher_seconds + needed),
        "ratio_is_a_lower_bound": reached is None,
        "engine_seconds_to_the_textbooks_best": overtaken,
    }


def follow(
    name: str,
    step: Callable[[], AnySummary],
    work: Work,
    every: int,
    budget: float,
    say: Say,
    steps: int,
    goal: float = float("inf"),
) -> Curve:
    """Take outer steps and look at validation `every` so many."""
    looks: list[tuple[float, float]] = []
    spent = 0.0
    for done in range(1, steps + 1):
        began = time.perf_counter()
        summary = step()
        spent += time.perf_counter() - began
        over = spent > budget or done == steps
        if done % every == 0 or over:
            looks.append((spent, validation(summary, work)))
            say(f"{name}: step {done}, {spent:.0f} s, validation {looks[-1][1]:.4f}")
            if over or looks[-1][1] >= goal:
                break
    return Curve(looks)


def validation(summary: AnySummary, work: Work) -> float:
    """Mean NDCG@10 of two learners trained on the summary, with the work's learner settings."""
    config = work.config
    holdout = Holdouts(work.split, config.data).validation(config.learner_history)
    trainer: LearnerConfig = config.learner
    found = []
    for nth in range(config.outer.validation_learners):
        draw = generator(0, Purpose.VALIDATION_LEARNER, nth, work.device.type)
        model = learn(summary, work.backbone, trainer, "shared-items", draw).model
        found.append(validation_ndcg(model, holdout))
    return sum(found) / len(found)


def published_start(work: Work) -> tuple[Tensor, ...]:
    """U and T from N(0, 0.02^2), G by Kaiming's rule, as in the paper."""
    noise = work.config.summary.model_copy(update={"initial_std": PUBLISHED_STD})
    draw = generator(0, Purpose.SUMMARY_INITIAL, device=work.device.type)
    return TuckerSummary.initial(noise, work.item_table, draw).learned


def train_teacher(split: Split, config: DistillConfig, device: torch.device) -> TrainedOnLog:
    """The full-data model, early-stopped on validation."""
    history = config.data.max_history
    backbone = build_backbone(config.teacher_backbone, history)
    training = LogTraining(
        split,
        Recommender(backbone, split.n_items, config.backbone.hidden),
        config.teacher,
        lambda rng: training_windows(split, history, rng),
        Holdouts(split, config.data).validation(history),
        seed=config.seed,
        device=device,
    )
    for _ in training.epochs():
        pass
    return training.result()


def _shown(config: DistillConfig) -> Figures:
    return config.model_dump(mode="json", include={"summary", "learner", "outer"})
