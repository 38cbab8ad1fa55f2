"""Labelled users: real histories with a teacher's labels, never distilled.

What a summary is worth is what it has over these: a teacher's labels on random real histories give
learners most of what distilling gives them (arXiv 2604.18811 finds the same of images). A position
stores its item and its label, which is the teacher's state, d numbers.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from td3engine.config import Mode, SummaryConfig
from td3engine.data.split import Split
from td3engine.evaluation.baselines import learner_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import NUMBER, Cost, Row
from td3engine.inner_loop.learner import TrainedLearner, learn
from td3engine.outer_loop.initial_summary import expected_queries, pointing_queries, real_histories
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher.training import TrainedOnLog


def labelled_rows(
    benchmark: Benchmark,
    name: str,
    teacher: TrainedOnLog,
    users: int,
    mode: Mode,
    seeds: Sequence[int],
) -> list[Row]:
    """Learners trained on labelled users, others for each seed."""
    split, config = benchmark.split, benchmark.config
    length, width = config.summary.length, config.backbone.hidden
    began = time.perf_counter()
    summaries = {
        seed: labelled_users(split, config.summary, teacher, users, seed) for seed in seeds
    }
    making_seconds = (time.perf_counter() - began) / len(seeds)

    def train_learner(seed: int) -> TrainedLearner:
        draw = generator(seed, Purpose.LEARNER, device=benchmark.device.type)
        return learn(
            summaries[seed], benchmark.backbone, config.learner, mode, draw, benchmark.validate
        )

    stored = users * length * (1 + width) + split.n_items * width
    cost = Cost(0.0, stored, NUMBER * stored, users, making_seconds)
    return learner_rows(benchmark, name, mode, train_learner, seeds, cost)


def labelled_users(
    split: Split, config: SummaryConfig, teacher: TrainedOnLog, users: int, seed: int
) -> TuckerSummary:
    """Random users' last events, labelled, in the form of a summary of full ranks.

    Nothing is lost but the last input, which no causal learner reads: as in every summary, the
    target of its position stands there.

    Args:
        split: the log.
        config: length and sharpness of the sequences.
        teacher: labels each position with its state.
        users: how many.
        seed: of the choice of users.
    """
    sized = config.model_copy(update={"users": users})
    rng = numpy_generator(seed, Purpose.BASELINE_USERS)
    table_NF = teacher.model.table
    V_ND = table_NF[:, : table_NF.shape[1] - int(teacher.model.backbone.biased)]
    items_UT = torch.from_numpy(real_histories(split, sized, rng)).to(V_ND.device)
    C_UTD = pointing_queries(items_UT, V_ND, sized)
    queries = torch.cat([C_UTD, expected_queries(items_UT, C_UTD, teacher)], 1)
    return unfactored(queries, V_ND)


def unfactored(queries: Tensor, V_ND: Tensor) -> TuckerSummary:
    """Queries of inputs and targets (mu, 2 zeta, d) as the core of a summary with unit factors.

    Its positions have these queries again, but for the first target and the last input (`query`).
    """
    users, positions, _ = queries.shape
    T, Y = torch.eye(positions, device=queries.device).split(positions // 2)
    return TuckerSummary(torch.eye(users, device=queries.device), T, queries, V_ND, Y)


def users_of_bytes(numbers: int, length: int, width: int) -> int:
    """How many labelled users are stored in as many numbers, at least one."""
    return max(1, numbers // (length * (1 + width)))
