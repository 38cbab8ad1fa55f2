"""Rows of models made of the whole log: counting models, a network, and the teacher of both."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from td3engine.counting.fitting import EASE, FittedCounting
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import (
    COUNTING_MIXED,
    FULL_DATA,
    INTERACTION,
    NUMBER,
    TEACHER,
    Cost,
    Row,
    make_rows,
)
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import evaluate_all
from td3engine.teacher.mixing import fit_mixture
from td3engine.teacher.mixture import Mixture, Part
from td3engine.teacher.training import TrainedOnLog

NETWORK = "network"  # the part of a teacher that was trained


@dataclass(frozen=True)
class Teacher:
    """A mixture and what it took.

    Attributes:
        mixture: of counting models and, mostly, a network.
        seconds: wall time of making all its parts and of mixing them.
    """

    mixture: Mixture
    seconds: float


def make_teacher(
    network: TrainedOnLog | None,
    counting: Sequence[FittedCounting],
    validation: HoldoutSet,
    repeat_share: float,
) -> Teacher:
    """The teacher of counting models and a network, if there is one; weights are chosen on
    validation."""
    began = time.perf_counter()
    parts: dict[str, Part] = {} if network is None else {NETWORK: network.model}
    parts |= {each.name: each.model for each in counting}
    mixture = fit_mixture(parts, validation, repeat_share)
    seconds = time.perf_counter() - began + (network.seconds if network else 0.0)
    return Teacher(mixture, seconds + sum(each.seconds for each in counting))


def counting_rows(benchmark: Benchmark, models: Sequence[FittedCounting]) -> list[Row]:
    """Counting models, which read a user's whole history."""
    rows = []
    for fitted in models:
        result = evaluate_all(fitted.model, benchmark.test, benchmark.protocols)
        stored = fitted.model.stored_bytes
        cost = Cost(fitted.seconds, stored // NUMBER, stored)
        rows += make_rows(fitted.name, "from-scratch", [result], cost)
    return rows


def full_data_rows(benchmark: Benchmark, networks: Sequence[TrainedOnLog]) -> list[Row]:
    """Networks, which read `max_history` events and train on every interaction."""
    holdout = benchmark.holdouts.test(benchmark.config.data.max_history)
    results = [evaluate_all(each.model, holdout, benchmark.protocols) for each in networks]
    events = len(benchmark.split.histories)
    seconds = float(np.mean([each.seconds for each in networks]))
    cost = Cost(seconds, events, INTERACTION * events, benchmark.split.n_users)
    return make_rows(FULL_DATA, "from-scratch", results, cost)


def teacher_rows(benchmark: Benchmark, teachers: Sequence[Teacher]) -> list[Row]:
    """Teachers as they are, shipped in place of a summary; without a network, counting models
    mixed."""
    holdout = benchmark.holdouts.test(benchmark.config.data.max_history)
    results = [evaluate_all(each.mixture, holdout, benchmark.protocols) for each in teachers]
    seconds = float(np.mean([each.seconds for each in teachers]))
    stored = round(np.mean([each.mixture.stored_bytes for each in teachers]))
    cost = Cost(seconds, stored // NUMBER, stored)
    name = TEACHER if NETWORK in teachers[0].mixture.parts else COUNTING_MIXED
    return make_rows(name, "from-scratch", results, cost)


def counting_notes(models: Sequence[FittedCounting], n_items: int) -> list[str]:
    """Which settings validation chose, and what is absent; for people."""
    chosen = [f"{each.name} ({each.settings})" for each in models if each.settings]
    notes = [f"counting models' settings, chosen on validation: {'; '.join(chosen)}"]
    if all(each.name != EASE for each in models):
        notes.append(f"no EASE: the log has {n_items:,} items, more than teacher.ease_items")
    return notes


def full_data_note(rows: Sequence[Row]) -> str | None:
    """What a user should hear where a counting model ranks as well as the network; else None.

    Among all items, which is what a user of a recommender sees.
    """
    by_name = {row["name"]: row["ndcg@10"] for row in rows if row["protocol"] == "all"}
    network = by_name.pop(FULL_DATA, math.inf)
    for mixture in (TEACHER, COUNTING_MIXED):
        by_name.pop(mixture, None)
    name, best = max(by_name.items(), key=lambda each: each[1])
    if best < network:
        return None
    return (
        f"{name}, a model that counts, has NDCG@10 {best:.4f} on test, the network trained on the "
        f"whole log {network:.4f} (protocol `all`): a counting model may be all that this log needs"
    )
