"""Labelled users: real histories with a teacher's labels, never distilled.

What a summary is worth is what it has over these: a teacher's labels on random real histories give
learners most of what distilling gives them (arXiv 2604.18811 finds the same of images). A position
stores its item and its label, which is the teacher's state, d numbers.
"""

import time
from collections.abc import Sequence

from td3engine.config import Mode, SummaryConfig
from td3engine.data.split import Split
from td3engine.evaluation.baselines import learner_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import Cost, Row
from td3engine.inner_loop.learner import TrainedLearner, learn
from td3engine.outer_loop.initial_summary import labelled, real_histories
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.summary.bundle import packed_bytes
from td3engine.summary.labelled import AnySummary, as_stored
from td3engine.teacher.training import TrainedOnLog

FEWEST_MEASURED = 50  # users whose size says what each takes


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

    first = summaries[seeds[0]]
    cost = Cost(0.0, first.numbers_stored, packed_bytes(first), users, making_seconds)
    return learner_rows(benchmark, name, mode, train_learner, seeds, cost)


def labelled_users(
    split: Split, config: SummaryConfig, teacher: TrainedOnLog, users: int, seed: int
) -> AnySummary:
    """Random users' last events, labelled.

    Args:
        split: the log.
        config: length and sharpness of the sequences.
        teacher: labels each position with its state.
        users: how many.
        seed: of the choice of users.
    """
    sized = config.model_copy(update={"users": users})
    rng = numpy_generator(seed, Purpose.BASELINE_USERS)
    made = labelled(real_histories(split, sized, rng), sized, teacher)
    return as_stored(made, sized)


def users_of_bytes(
    size: int, split: Split, config: SummaryConfig, teacher: TrainedOnLog, most: int
) -> int:
    """How many labelled users are stored in so many bytes, item table included: 1 to `most`.

    From the size of two sets of users: each further one takes about as much.
    """
    few, many = 1, max(2, min(most, FEWEST_MEASURED))
    sizes = [
        packed_bytes(labelled_users(split, config, teacher, users, seed=0)) for users in (few, many)
    ]
    each = (sizes[1] - sizes[0]) / (many - few)
    return max(1, min(most, few + int((size - sizes[0]) / each)))
