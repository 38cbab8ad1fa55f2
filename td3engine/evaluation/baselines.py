"""The rows of every table of results: learners on a summary, and what they are compared with.

All rows with a learner follow one rule, so that none is tuned more than another: fresh learners of
up to `learner.steps` steps (`scratch_steps` if they train an item table), the best state by
validation NDCG@10, metrics on test, mean and standard deviation over learner seeds
(method, section 8).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from td3engine.config import Mode
from td3engine.data.windows import WindowIndex
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.real_users import random_users, train_on_windows
from td3engine.evaluation.table import NUMBER, Cost, Row, make_rows
from td3engine.inner_loop.learner import TrainedLearner, learn, recommender
from td3engine.models.trained_model import TrainedModel
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.bundle import packed_bytes
from td3engine.summary.labelled import AnySummary

TrainLearner = Callable[[int], TrainedLearner]
"""seed -> a trained learner."""


def summary_rows(
    benchmark: Benchmark,
    name: str,
    summary: AnySummary,
    mode: Mode,
    seeds: Sequence[int],
    making_seconds: float = 0.0,
) -> list[Row]:
    """Learners trained on a summary, which took `making_seconds` to make."""

    def train_learner(seed: int) -> TrainedLearner:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        config = benchmark.config.learner
        return learn(summary, benchmark.backbone, config, mode, draw, benchmark.validate)

    return learner_rows(
        benchmark,
        name,
        mode,
        train_learner,
        seeds,
        Cost(
            train_seconds=0.0,
            numbers_stored=summary.numbers_stored,
            bytes=packed_bytes(summary),
            sequences=summary.users,
            making_seconds=making_seconds,
        ),
    )


def zero_step_rows(benchmark: Benchmark, V_ND: Tensor, seeds: Sequence[int]) -> list[Row]:
    """The trained item table V (n, d) under an untrained encoder."""

    def train_learner(seed: int) -> TrainedLearner:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        model = recommender(benchmark.backbone, V_ND, "shared-items")
        return TrainedLearner(TrainedModel(model.backbone, *model.parts(model.initial(draw))), 0.0)

    return learner_rows(
        benchmark,
        "zero steps",
        "shared-items",
        train_learner,
        seeds,
        Cost(train_seconds=0.0, numbers_stored=V_ND.numel(), bytes=NUMBER * V_ND.numel()),
    )


def random_user_rows(
    benchmark: Benchmark, mode: Mode, V_ND: Tensor, seeds: Sequence[int]
) -> list[Row]:
    """Learners trained on as many real users as the summary has sequences, drawn for each seed."""
    windows = {seed: random_users(benchmark.split, benchmark.config, seed) for seed in seeds}
    return real_user_rows(benchmark, "random users", mode, V_ND, windows)


def real_user_rows(
    benchmark: Benchmark,
    name: str,
    mode: Mode,
    V_ND: Tensor,
    windows: Mapping[int, WindowIndex],
) -> list[Row]:
    """Learners trained on real windows; `windows` maps each seed to its own.

    Under `shared-items` they have the trained item table V (n, d).
    """
    events = round(np.mean([(index.end - index.start).sum() for index in windows.values()]))
    stored = events + (V_ND.numel() if mode == "shared-items" else 0)
    return learner_rows(
        benchmark,
        name,
        mode,
        lambda seed: train_on_windows(benchmark, windows[seed], mode, V_ND, seed),
        list(windows),
        Cost(
            train_seconds=0.0,
            numbers_stored=stored,
            bytes=NUMBER * stored,
            sequences=max(len(index) for index in windows.values()),
        ),
    )


def learner_rows(
    benchmark: Benchmark,
    name: str,
    mode: Mode,
    train_learner: TrainLearner,
    seeds: Sequence[int],
    cost: Cost,
) -> list[Row]:
    """Train one learner a seed and measure each on test: one row a protocol.

    Args:
        benchmark: the log and its holdout sets.
        name: of the row.
        mode: of the learners.
        train_learner: trains the learner of a seed.
        seeds: one learner each.
        cost: of the training data; the seconds of training are filled in.
    """
    learners = [train_learner(seed) for seed in seeds]
    seconds = float(np.mean([learner.seconds for learner in learners]))
    results = [benchmark.measure(learner.model) for learner in learners]
    return make_rows(name, mode, results, replace(cost, train_seconds=seconds))
