"""How good is it: learners trained on a summary, or on the baselines, measured on test.

Every row follows one rule, so that none is tuned harder than another: fresh learners, up to
`learner.steps` steps (`scratch_steps` where they train an item table), the best state by
validation NDCG@10 (`full`), figures on test, mean and standard deviation over learner seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from td3engine.backbones import Backbone, build_backbone
from td3engine.config import DistillConfig, LearnerConfig, Mode, TeacherConfig
from td3engine.interactions import Split
from td3engine.learner import Learned, encode_last, learn
from td3engine.ranking import Metrics, Protocol, available_protocols, evaluate
from td3engine.report import Row, make_row
from td3engine.seeding import Purpose, generator, numpy_generator
from td3engine.sequences import Questions, WindowIndex, questions
from td3engine.summary import Summary
from td3engine.teacher import LogTraining, Trained

TrainOne = Callable[[int], Learned]
RANDOM_USER_EPOCHS_A_LOOK = 10


@dataclass(frozen=True)
class Benchmark:
    """A split log, ready to ask questions of learners."""

    split: Split
    config: DistillConfig
    backbone: Backbone
    validation: Questions
    test: Questions
    protocols: Sequence[Protocol]
    device: torch.device
    between: Callable[[], None]

    @classmethod
    def prepare(
        cls,
        split: Split,
        config: DistillConfig,
        device: torch.device,
        between: Callable[[], None] = lambda: None,
    ) -> "Benchmark":
        """For learners, which read as many events as a summary's sequences train them to.

        `between` is called every few steps of a learner and may raise, to end the work early.
        """
        test = questions(split, "test", config.learner_history)
        return cls(
            split=split,
            config=config,
            backbone=build_backbone(config.backbone, config.data.max_history),
            validation=questions(split, "validation", config.learner_history),
            test=test,
            protocols=available_protocols(test),
            device=device,
            between=between,
        )

    def validate(self, parameters_P: Tensor, table_ND: Tensor) -> float:
        """Validation NDCG@10 under `full`."""
        self.between()
        scorer = encode_last(self.backbone, parameters_P, table_ND)
        return evaluate(scorer, table_ND, self.validation, "full")["ndcg@10"]

    def measure(self, parameters_P: Tensor, table_ND: Tensor) -> dict[Protocol, Metrics]:
        """Test metrics under every available protocol."""
        scorer = encode_last(self.backbone, parameters_P, table_ND)
        return {
            protocol: evaluate(scorer, table_ND, self.test, protocol) for protocol in self.protocols
        }


def rows(
    benchmark: Benchmark,
    name: str,
    mode: Mode,
    train_one: TrainOne,
    seeds: Sequence[int],
    numbers_stored: int,
) -> list[Row]:
    """One row a protocol: train a learner a seed, measure each on test."""
    learned = [train_one(seed) for seed in seeds]
    measured = [benchmark.measure(one.parameters, one.table) for one in learned]
    seconds = float(np.mean([one.seconds for one in learned]))
    return [
        make_row(name, mode, protocol, [m[protocol] for m in measured], seconds, numbers_stored)
        for protocol in benchmark.protocols
    ]


def teacher_rows(benchmark: Benchmark, teacher: Trained) -> list[Row]:
    """The full-data model alone: reads `max_history` events, trained on every interaction."""
    asked = questions(benchmark.split, "test", benchmark.config.data.max_history)
    scorer = encode_last(benchmark.backbone, teacher.parameters, teacher.table)
    return [
        make_row(
            "full data",
            "from-scratch",
            protocol,
            [evaluate(scorer, teacher.table, asked, protocol)],
            teacher.seconds,
            len(benchmark.split.histories),
        )
        for protocol in benchmark.protocols
    ]


def summary_rows(
    benchmark: Benchmark, name: str, summary: Summary, mode: Mode, seeds: Sequence[int]
) -> list[Row]:
    """Learners trained on a summary."""

    def train_one(seed: int) -> Learned:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        learner = benchmark.config.learner
        return learn(summary, benchmark.backbone, learner, mode, draw, benchmark.validate)

    return rows(benchmark, name, mode, train_one, seeds, summary.numbers_stored)


def zero_step_rows(benchmark: Benchmark, V_ND: Tensor, seeds: Sequence[int]) -> list[Row]:
    """The trained item table under an encoder that was never trained."""

    def train_one(seed: int) -> Learned:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        return Learned(benchmark.backbone.initial(draw), V_ND, 0.0)

    return rows(benchmark, "zero steps", "shared-items", train_one, seeds, V_ND.numel())


def random_user_rows(
    benchmark: Benchmark, mode: Mode, V_ND: Tensor, seeds: Sequence[int]
) -> list[Row]:
    """As many real users as the summary has sequences, each with its last zeta training events.

    A new draw of users a seed. `shared-items` gives them the trained item table as well.
    """
    learner = benchmark.config.learner
    chosen = {seed: random_users(benchmark.split, benchmark.config, seed) for seed in seeds}

    def train_one(seed: int) -> Learned:
        windows = chosen[seed]
        training = LogTraining(
            benchmark.split,
            benchmark.backbone,
            _as_epochs(learner, mode, len(windows)),
            lambda _: windows,
            benchmark.validation,
            history=benchmark.config.learner_history,
            width=benchmark.config.backbone.hidden,
            seed=seed,
            device=benchmark.device,
            frozen_table=V_ND if mode == "shared-items" else None,
        )
        for _ in training.epochs():
            pass
        found = training.result()
        return Learned(found.parameters, found.table, found.seconds)

    events = float(np.mean([(w.end - w.start).sum() for w in chosen.values()]))
    stored = round(events) + (V_ND.numel() if mode == "shared-items" else 0)
    return rows(benchmark, "random users", mode, train_one, seeds, stored)


def random_users(split: Split, config: DistillConfig, seed: int) -> WindowIndex:
    """The last `summary.length` training events of `summary.users` uniform users."""
    ends = split.training_ends
    able = np.flatnonzero(ends - split.offsets[:-1] >= 2)
    rng = numpy_generator(seed, Purpose.BASELINE_USERS)
    users = rng.choice(able, min(config.summary.users, len(able)), replace=False)
    start = np.maximum(split.offsets[:-1][users], ends[users] - config.summary.length)
    return WindowIndex(start, ends[users])


def _as_epochs(learner: LearnerConfig, mode: Mode, windows: int) -> TeacherConfig:
    """The inner loop's budget (steps, batch, Adam) said in epochs over so many real windows."""
    steps = learner.steps if mode == "shared-items" else learner.scratch_steps
    epochs = max(1, steps * learner.batch // windows)
    look = max(1, min(RANDOM_USER_EPOCHS_A_LOOK, epochs))
    return TeacherConfig(
        max_epochs=epochs,
        batch=learner.batch,
        lr=learner.lr,
        weight_decay=learner.weight_decay,
        patience=epochs,
        validate_every=look,
    )
