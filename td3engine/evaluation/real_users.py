"""Baselines on real users: which users a learner trains on, and with what budget."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DistillConfig, LearnerConfig, Mode, TeacherConfig
from td3engine.data.split import Split
from td3engine.data.windows import WindowIndex
from td3engine.evaluation.benchmark import Benchmark
from td3engine.inner_loop.learner import TrainedLearner, recommender
from td3engine.models.registry import build_backbone
from td3engine.runtime.seeding import Purpose, numpy_generator
from td3engine.teacher.training import LogTraining, TrainedOnLog

EPOCHS_BETWEEN_VALIDATIONS = 10
RATES = (1.0, 0.5, 0.25)  # of learner.lr


def random_users(split: Split, config: DistillConfig, seed: int) -> WindowIndex:
    """The last `summary.length` training events of `summary.users` uniform users."""
    trainable = _trainable(split)
    count = min(config.summary.users, len(trainable))
    rng = numpy_generator(seed, Purpose.BASELINE_USERS)
    return _last_events(split, config, rng.choice(trainable, count, replace=False))


def longest_histories(split: Split, config: DistillConfig) -> WindowIndex:
    """The same of the users with the most training events; ties go to the first."""
    trainable = _trainable(split)
    counts = (split.training_ends - split.offsets[:-1])[trainable]
    return _last_events(split, config, trainable[np.argsort(-counts, kind="stable")])


def most_recent(split: Split, config: DistillConfig) -> WindowIndex:
    """The same of the users whose last training event is latest; ties go to the first."""
    trainable = _trainable(split)
    times = split.times[split.training_ends[trainable] - 1]
    return _last_events(split, config, trainable[np.argsort(-times, kind="stable")])


def _trainable(split: Split) -> NDArray[np.int64]:
    """Users with at least two training events."""
    return np.flatnonzero(split.training_ends - split.offsets[:-1] >= 2)


def _last_events(split: Split, config: DistillConfig, users: NDArray[np.int64]) -> WindowIndex:
    """One window a user, of the first `summary.users` of these users."""
    users = users[: config.summary.users]
    ends = split.training_ends[users]
    start = np.maximum(split.offsets[:-1][users], ends - config.summary.length)
    return WindowIndex(start, ends)


def train_on_windows(
    benchmark: Benchmark, windows: WindowIndex, mode: Mode, V_ND: Tensor, seed: int
) -> TrainedLearner:
    """A learner trained on real windows, with the budget of a learner on a summary.

    It takes as many steps of as many sequences. `learner.lr` is tuned for summaries, so training is
    repeated with each of `RATES`, and the best by validation is returned.

    Args:
        benchmark: the log, and the settings of learners.
        windows: the training data.
        mode: of the learner; `shared-items` reads and scores with V.
        V_ND: the trained item table, (n, d).
        seed: of weights, order and dropout.
    """
    results = [_train_at(benchmark, windows, mode, V_ND, seed, rate) for rate in RATES]
    best = max(results, key=lambda result: result.validation)
    return TrainedLearner(best.model, best.seconds)


def _train_at(
    benchmark: Benchmark, windows: WindowIndex, mode: Mode, V_ND: Tensor, seed: int, rate: float
) -> TrainedOnLog:
    config = benchmark.config
    learner = config.learner
    # Real events say one item each: these learners keep the dropout of models of the log.
    backbone = build_backbone(config.backbone, config.data.max_history)
    training = LogTraining(
        benchmark.split,
        recommender(backbone, V_ND, mode),
        budget_in_epochs(learner.model_copy(update={"lr": rate * learner.lr}), mode, len(windows)),
        lambda _: windows,
        benchmark.validation,
        seed=seed,
        device=benchmark.device,
    )
    for _ in training.epochs():
        benchmark.on_step()
    return training.result()


def budget_in_epochs(learner: LearnerConfig, mode: Mode, windows: int) -> TeacherConfig:
    """The budget of an inner loop (steps, batch, Adam) in epochs over this many windows."""
    steps = learner.steps_in(mode)
    epochs = max(1, steps * min(learner.batch, windows) // windows)  # a step has whole windows
    return TeacherConfig(
        max_epochs=epochs,
        batch=learner.batch,
        lr=learner.lr,
        weight_decay=learner.weight_decay,
        beta2=learner.beta2,
        patience=epochs,
        validate_every=min(EPOCHS_BETWEEN_VALIDATIONS, epochs),
        softmax="full",  # as learners on a summary have it
    )
