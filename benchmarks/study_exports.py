"""Rows of learners that know an export of a summary only."""

import torch

from benchmarks.hard_export import Way
from benchmarks.hard_export import train as train_on_samples
from td3engine.config import DistillConfig, Mode
from td3engine.evaluation.baselines import (
    learner_rows,
)
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import NUMBER, Cost, Row
from td3engine.export.sequences import COPIES
from td3engine.export.soft_targets import TOP_K
from td3engine.inner_loop.learner import TrainedLearner, learn_from, recommender
from td3engine.inner_loop.plan import plan_training
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.labelled import AnySummary


def soft_export_rows(
    benchmark: Benchmark, summary: AnySummary, _config: DistillConfig, mode: Mode, seed: int
) -> list[Row]:
    """A learner that knows only the most probable items of a position, as exported."""
    learner = benchmark.config.learner
    model = recommender(benchmark.backbone, summary.V, mode)
    # No queries are read: the probabilities are made here.
    plan = plan_training(benchmark.backbone, mode, len(summary.V), positions=0)
    training = InnerLoopTrainer(
        model, learner, learner.steps_in(mode), plan.embed(summary.V), summary.length, plan
    )
    scores_UTN = summary.soft_sequences().stacked @ summary.V.T
    top = scores_UTN.softmax(-1).topk(min(TOP_K, scores_UTN.shape[-1]))
    synthetic = torch.zeros_like(scores_UTN).scatter(-1, top.indices, top.values)
    synthetic = synthetic / synthetic.sum(-1, keepdim=True)
    if plan.soft_embedding == "precomputed":
        synthetic = synthetic @ summary.V

    def train_one(nth: int) -> TrainedLearner:
        return learn_from(
            training,
            synthetic,
            generator(nth, Purpose.LEARNER, device=benchmark.device.type),
            benchmark.validate,
        )

    stored = 2 * top.values.numel() + (summary.V.numel() if mode == "shared-items" else 0)
    return learner_rows(
        benchmark,
        "soft-export",
        mode,
        train_one,
        [seed],
        Cost(0.0, stored, NUMBER * stored, len(synthetic)),
    )


def hard_export_rows(
    benchmark: Benchmark, summary: AnySummary, config: DistillConfig, mode: Mode, seed: int
) -> list[Row]:
    """A full training on sampled sequences, with the exporter's defaults."""

    def train_one(nth: int) -> TrainedLearner:
        found = train_on_samples(benchmark, summary, config, Way(), mode, nth)
        return TrainedLearner(found.model, found.seconds)

    sequences = COPIES * summary.users
    stored = sequences * summary.length + (summary.V.numel() if mode == "shared-items" else 0)
    return learner_rows(
        benchmark,
        "hard-export",
        mode,
        train_one,
        [seed],
        Cost(0.0, stored, NUMBER * stored, sequences),
    )
