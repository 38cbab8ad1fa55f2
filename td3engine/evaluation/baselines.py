"""How good is it: learners trained on a summary, or on the baselines, measured on test.

Every row follows one rule, so that none is tuned harder than another: fresh learners, up to
`learner.steps` steps (`scratch_steps` where they train an item table), the best state by
validation NDCG@10 (`full`), figures on test, mean and standard deviation over learner seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DistillConfig, LearnerConfig, Mode, TeacherConfig
from td3engine.data.split import Split, training_counts
from td3engine.data.windows import WindowIndex
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import Row, make_row
from td3engine.inner_loop.learner import TrainedLearner, learn, recommender
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.metrics import evaluate
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher.training import LogTraining, TrainedOnLog

TrainOne = Callable[[int], TrainedLearner]
RANDOM_USER_EPOCHS_A_LOOK = 10
REAL_USER_RATES = (1.0, 0.5, 0.25)  # of learner.lr


def rows(
    benchmark: Benchmark,
    name: str,
    mode: Mode,
    train_one: TrainOne,
    seeds: Sequence[int],
    *,
    numbers_stored: int,
    sequences: int,
) -> list[Row]:
    """One row a protocol: train a learner a seed, measure each on test.

    Args:
        benchmark: the log and its questions.
        name: of the row.
        mode: of the learners.
        train_one: gives a trained learner for a seed.
        seeds: one learner each.
        numbers_stored: what the training data consist of, in numbers (of real rows, interactions).
        sequences: how many rows of training data there are.
    """
    learned = [train_one(seed) for seed in seeds]
    measured = [benchmark.measure(one.model) for one in learned]
    seconds = float(np.mean([one.seconds for one in learned]))
    return [
        make_row(
            name,
            mode,
            protocol,
            [m[protocol] for m in measured],
            train_seconds=seconds,
            numbers_stored=numbers_stored,
            sequences=sequences,
        )
        for protocol in benchmark.protocols
    ]


@dataclass(frozen=True)
class Popularity:
    """The same ranking for everyone, by an item's training interactions.

    Attributes:
        table: the interactions of each item, (n, 1).
    """

    table: Tensor

    def states(self, items_BL: Tensor, _lengths_B: Tensor) -> Tensor:
        """Ones, (B, 1)."""
        return torch.ones(len(items_BL), 1)


def popularity_rows(benchmark: Benchmark) -> list[Row]:
    """The most popular items for everybody; trains nothing."""
    model = Popularity(torch.from_numpy(training_counts(benchmark.split)).float()[:, None])
    return [
        make_row(
            "popularity",
            "from-scratch",
            protocol,
            [metrics],
            train_seconds=0.0,
            numbers_stored=len(model.table),
            sequences=0,
        )
        for protocol, metrics in benchmark.measure(model).items()
    ]


def teacher_rows(benchmark: Benchmark, teachers: Sequence[TrainedOnLog]) -> list[Row]:
    """The full-data models alone: read `max_history` events, trained on every interaction."""
    split = benchmark.split
    holdout = benchmark.holdouts.test(benchmark.config.data.max_history)
    rows = []
    for protocol in benchmark.protocols:
        measured = [evaluate(teacher.model, holdout, protocol) for teacher in teachers]
        rows.append(
            make_row(
                "full data",
                "from-scratch",
                protocol,
                measured,
                train_seconds=float(np.mean([teacher.seconds for teacher in teachers])),
                numbers_stored=len(split.histories),
                sequences=split.n_users,
            )
        )
    return rows


def summary_rows(
    benchmark: Benchmark, name: str, summary: TuckerSummary, mode: Mode, seeds: Sequence[int]
) -> list[Row]:
    """Learners trained on a summary."""

    def train_one(seed: int) -> TrainedLearner:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        learner = benchmark.config.learner
        return learn(summary, benchmark.backbone, learner, mode, draw, benchmark.validate)

    return rows(
        benchmark,
        name,
        mode,
        train_one,
        seeds,
        numbers_stored=summary.numbers_stored,
        sequences=len(summary.U),
    )


def zero_step_rows(benchmark: Benchmark, V_ND: Tensor, seeds: Sequence[int]) -> list[Row]:
    """The trained item table under an encoder that was never trained."""

    def train_one(seed: int) -> TrainedLearner:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        model = recommender(benchmark.backbone, V_ND, "shared-items")
        return TrainedLearner(TrainedModel(model.backbone, *model.parts(model.initial(draw))), 0.0)

    return rows(
        benchmark,
        "zero steps",
        "shared-items",
        train_one,
        seeds,
        numbers_stored=V_ND.numel(),
        sequences=0,
    )


def random_user_rows(
    benchmark: Benchmark, mode: Mode, V_ND: Tensor, seeds: Sequence[int]
) -> list[Row]:
    """As many real users as the summary has sequences, a new draw of users a seed."""
    split, config = benchmark.split, benchmark.config
    return real_user_rows(
        benchmark,
        "random users",
        mode,
        V_ND,
        {seed: random_users(split, config, seed) for seed in seeds},
    )


def real_user_rows(
    benchmark: Benchmark, name: str, mode: Mode, V_ND: Tensor, chosen: dict[int, WindowIndex]
) -> list[Row]:
    """Learners trained on some real windows, those of each seed.

    They have a summary's budget: as many steps of as many sequences. Its learning rate is tuned for
    summaries, so smaller ones are tried here as well, and validation chooses. `shared-items` gives
    them the trained item table.
    """

    def train_one(seed: int) -> TrainedLearner:
        windows = chosen[seed]
        tried = [_train_on(benchmark, windows, mode, V_ND, seed, rate) for rate in REAL_USER_RATES]
        best = max(tried, key=lambda one: one.validation)
        return TrainedLearner(best.model, best.seconds)

    events = float(np.mean([(w.end - w.start).sum() for w in chosen.values()]))
    return rows(
        benchmark,
        name,
        mode,
        train_one,
        list(chosen),
        numbers_stored=round(events) + (V_ND.numel() if mode == "shared-items" else 0),
        sequences=max(len(windows) for windows in chosen.values()),
    )


def _train_on(
    benchmark: Benchmark, windows: WindowIndex, mode: Mode, V_ND: Tensor, seed: int, rate: float
) -> TrainedOnLog:
    """A model of these windows alone, at a part of the learner's rate."""
    learner = benchmark.config.learner
    training = LogTraining(
        benchmark.split,
        recommender(benchmark.backbone, V_ND, mode),
        _as_epochs(learner.model_copy(update={"lr": rate * learner.lr}), mode, len(windows)),
        lambda _: windows,
        benchmark.validation,
        seed=seed,
        device=benchmark.device,
    )
    for _ in training.epochs():
        benchmark.on_step()
    return training.result()


def random_users(split: Split, config: DistillConfig, seed: int) -> WindowIndex:
    """The last `summary.length` training events of `summary.users` uniform users."""
    able = _trainable(split)
    rng = numpy_generator(seed, Purpose.BASELINE_USERS)
    return _last_events(
        split, config, rng.choice(able, min(config.summary.users, len(able)), replace=False)
    )


def longest_histories(split: Split, config: DistillConfig) -> WindowIndex:
    """The same of the users with the most training events; ties go to the first."""
    able = _trainable(split)
    most = np.argsort(-(split.training_ends - split.offsets[:-1])[able], kind="stable")
    return _last_events(split, config, able[most[: config.summary.users]])


def most_recent(split: Split, config: DistillConfig) -> WindowIndex:
    """The same of the users whose last training event is latest; ties go to the first."""
    able = _trainable(split)
    latest = split.times[split.training_ends[able] - 1]
    return _last_events(
        split, config, able[np.argsort(-latest, kind="stable")[: config.summary.users]]
    )


def _trainable(split: Split) -> NDArray[np.int64]:
    """Users with a transition to train on."""
    return np.flatnonzero(split.training_ends - split.offsets[:-1] >= 2)


def _last_events(split: Split, config: DistillConfig, users: NDArray[np.int64]) -> WindowIndex:
    ends = split.training_ends[users]
    start = np.maximum(split.offsets[:-1][users], ends - config.summary.length)
    return WindowIndex(start, ends)


def _as_epochs(learner: LearnerConfig, mode: Mode, windows: int) -> TeacherConfig:
    """The inner loop's budget (steps, batch, Adam) said in epochs over so many real windows."""
    steps = learner.steps_in(mode)
    epochs = max(1, steps * min(learner.batch, windows) // windows)  # a step has whole windows
    look = max(1, min(RANDOM_USER_EPOCHS_A_LOOK, epochs))
    return TeacherConfig(
        max_epochs=epochs,
        batch=learner.batch,
        lr=learner.lr,
        weight_decay=learner.weight_decay,
        beta2=learner.beta2,
        patience=epochs,
        validate_every=look,
        softmax="full",  # as learners on a summary have it
    )
