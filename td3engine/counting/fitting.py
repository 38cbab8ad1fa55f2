"""Counting models of a log, each with the settings that do best on validation.

A family tries each of its kernels with each of its readings; all choices are by validation NDCG@10
under the log's own protocol, as those of networks are.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import scipy.sparse as sp
import torch
from torch import Tensor

from td3engine.counting.kernels import Kernel, co_occurrences, cosine, ease, transitions
from td3engine.counting.models import (
    WHOLE_HISTORY,
    CountingModel,
    KernelModel,
    Popularity,
    Reading,
    RepeatRule,
)
from td3engine.data.split import Split, training_counts
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import validation_ndcg
from td3engine.ranking.protocols import asked

TUNED_ON = 2000  # validation users at most
SCORED_AT_MOST = 2**25  # scores that a setting is judged by: of a large log, fewer users
FEWEST_TUNED_ON = 500

POPULARITY, REPEAT_RULE = "popularity", "repeat rule"
MARKOV, WINDOWED, ITEM_KNN, EASE = "Markov", "windowed Markov", "item-kNN", "EASE"
FAMILIES = (POPULARITY, REPEAT_RULE, MARKOV, WINDOWED, ITEM_KNN, EASE)

REPEAT_DECAYS = (1.0, 0.9, 0.7)
WINDOWS = ((1, 1.0), (5, 0.7), (10, 0.8))
SHRINKAGES = (0.0, 5.0)
WINDOWED_READINGS = (Reading(5, 0.5), Reading(10, 0.8), Reading(20, 0.9))
EXPONENTS = (0.5, 0.7)
NEIGHBOUR_READINGS = (Reading(50, 0.5), Reading(50, 0.8), Reading(50, 0.95))
RIDGES = (100.0, 500.0)
SEVERAL_RIDGES = 5000  # items; a larger log has the last of them only
EASE_READINGS = (Reading(50, 0.8), Reading(50, 0.95), Reading(WHOLE_HISTORY, 1.0))


@dataclass(frozen=True)
class FittedCounting:
    """A counting model and how it was made.

    Attributes:
        name: of its family.
        model: with the best settings of those tried.
        settings: these settings, in words.
        validation: their NDCG@10 on the validation users that they were chosen on.
        seconds: wall time of counting and of trying all settings.
    """

    name: str
    model: CountingModel
    settings: str
    validation: float
    seconds: float


def fit_counting_models(
    split: Split, validation: HoldoutSet, ease_items: int
) -> list[FittedCounting]:
    """A model of each family, with the best of its settings.

    Args:
        split: the log; models count its training events.
        validation: the holdout set whose protocol decides between settings.
        ease_items: EASE is left out where the log has more items; its time grows as n^3.
    """
    cases = tuning_cases(validation)
    counts = torch.from_numpy(training_counts(split)).float()
    share = counts / (counts.max() + 1)
    families = {
        POPULARITY: iter([("", Popularity(counts))]),
        REPEAT_RULE: _repeat_rules(share),
        MARKOV: _markov(split, share),
        WINDOWED: _windowed(split, share),
    }
    models = [_best(name, candidates, cases) for name, candidates in families.items()]
    began = time.perf_counter()
    together = co_occurrences(split)
    shared = time.perf_counter() - began
    # Where nothing that was met can be asked about, an item need not be its own neighbour.
    itself = (False, True) if validation.validate_by == "all" else (False,)
    models.append(_best(ITEM_KNN, _item_knn(together, share, itself), cases, shared))
    if split.n_items <= ease_items:
        models.append(_best(EASE, _ease(together, share), cases, shared))
    return models


def tuning_cases(validation: HoldoutSet) -> HoldoutSet:
    """The part of the validation set that settings are tried on: at equal distances, of the cases
    that its protocol asks about."""
    questions = asked(validation, validation.validate_by).nonzero()[:, 0]
    affordable = max(FEWEST_TUNED_ON, SCORED_AT_MOST // validation.n_items)
    count = min(TUNED_ON, affordable, len(questions))
    return validation.take(questions[torch.arange(count) * len(questions) // count])


Candidates = Iterator[tuple[str, CountingModel]]
"""Settings in words, and the model that has them; made one at a time."""


def _best(
    name: str, candidates: Candidates, cases: HoldoutSet, seconds: float = 0.0
) -> FittedCounting:
    """The best candidate; `seconds` were spent on what it is made of."""
    began = time.perf_counter() - seconds
    # Not a list: one kernel can take gigabytes.
    tried = ((validation_ndcg(model, cases), settings, model) for settings, model in candidates)
    validation, settings, model = max(tried, key=lambda each: each[0])
    return FittedCounting(name, model, settings, validation, time.perf_counter() - began)


def _repeat_rules(popularity: Tensor) -> Candidates:
    for decay in REPEAT_DECAYS:
        yield f"decay {decay}", RepeatRule(popularity, Reading(WHOLE_HISTORY, decay))


def _markov(split: Split, popularity: Tensor) -> Candidates:
    yield "", KernelModel(transitions(split, 1, 1.0, 0.0), Reading(1, 1.0), popularity)


def _windowed(split: Split, popularity: Tensor) -> Candidates:
    for (window, decay), shrinkage in product(WINDOWS, SHRINKAGES):
        kernel = transitions(split, window, decay, shrinkage)
        settings = f"window {window}, decay {decay}, shrinkage {shrinkage:g}"
        yield from _read(kernel, WINDOWED_READINGS, popularity, settings)


def _item_knn(together: sp.csr_array, popularity: Tensor, itself: Sequence[bool]) -> Candidates:
    for exponent, with_itself in product(EXPONENTS, itself):
        kernel = cosine(together, exponent, itself=with_itself)
        settings = f"exponent {exponent}{', itself' if with_itself else ''}"
        yield from _read(kernel, NEIGHBOUR_READINGS, popularity, settings)


def _ease(together: sp.csr_array, popularity: Tensor) -> Candidates:
    for ridge in RIDGES if together.shape[0] <= SEVERAL_RIDGES else RIDGES[-1:]:
        yield from _read(ease(together, ridge), EASE_READINGS, popularity, f"ridge {ridge:g}")


def _read(
    kernel: Kernel, readings: Sequence[Reading], popularity: Tensor, settings: str
) -> Candidates:
    for reading in readings:
        last = "whole history" if reading.last == WHOLE_HISTORY else f"last {reading.last} events"
        read = f"{last} at decay {reading.decay}"
        yield f"{settings}, of the {read}", KernelModel(kernel, reading, popularity)
