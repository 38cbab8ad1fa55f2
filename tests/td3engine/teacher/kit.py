"""Parts of mixtures over the items of the odd log, and mixtures by their definition."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from td3engine.counting.models import WHOLE_HISTORY, KernelModel, Popularity, Reading, RepeatRule
from td3engine.ranking.holdout import HoldoutSet, Role, holdout_set
from td3engine.teacher.mixture import HISTORY, Part, Repeat
from tests.td3engine.counting.kit import ITEMS, all_scores
from tests.td3engine.models.model_kit import make_model
from tests.td3engine.oracles import make_split


def make_parts(seed: int = 0, n_items: int = ITEMS) -> dict[str, Part]:
    """A network and counting models; one has zeros, and one scores below zero."""
    rng = np.random.default_rng(seed)
    counts = torch.from_numpy(rng.integers(0, 4, n_items)).float()
    kernel = rng.normal(size=(n_items, n_items)).astype(np.float32)
    return {
        "network": make_model("sasrec", n_items=n_items),
        "popularity": Popularity(counts),
        "had": RepeatRule(counts / 5, Reading(WHOLE_HISTORY, 0.9)),
        "neighbours": KernelModel(kernel, Reading(3, 0.5)),
    }


def cases_of(histories: list[list[int]], role: Role = "test", n_items: int = ITEMS) -> HoldoutSet:
    return holdout_set(make_split(histories, n_items), role, 6)


def pasts_of(cases: HoldoutSet) -> list[list[int]]:
    pasts: list[list[int]] = [[] for _ in cases.targets]
    for row, item in zip(cases.seen_rows.tolist(), cases.seen_items.tolist(), strict=True):
        pasts[row].append(item)
    return pasts


def slow_weights(part: Part, cases: HoldoutSet) -> list[list[float]]:
    """A network's scores are logits; other scores are weights, of which those below 0 are none."""
    found = []
    for scores in all_scores(part, cases).double().tolist():
        if hasattr(part, "backbone"):
            powers = [math.exp(score - max(scores)) for score in scores]
            found.append([power / sum(powers) for power in powers])
        else:
            found.append([max(0.0, score) for score in scores])
    return found


def slow_mixture(
    parts: Mapping[str, Part],
    new: list[float],
    met: list[float],
    repeat: Repeat,
    cases: HoldoutSet,
) -> list[list[float]]:
    """p(j) for each case: a loop over parts and items."""
    weights = [slow_weights(part, cases) for part in parts.values()]
    found = []
    for row, past in enumerate(pasts_of(cases)):
        if repeat.source == HISTORY:
            repeats = len(past) - len(set(past))
            share_of_user = (repeats + 10 * repeat.share) / (len(past) - 1 + 10)
        else:
            source = weights[list(parts).index(repeat.source)][row]
            share_of_user = sum(source[item] for item in set(past)) / (sum(source) or 1)
        odds = repeat.odds * share_of_user
        # Never sure, if anything repeats.
        again = min(max(odds / (odds + 1 - share_of_user), min(2**-20, repeat.share)), 1 - 2**-20)
        scores = [0.0] * cases.n_items
        for kind, share, weights_of_parts in (
            (set(past), again, met),
            (set(range(cases.n_items)) - set(past), 1 - again, new),
        ):
            mixed = dict.fromkeys(kind, 0.0)
            for part, weight in zip(weights, weights_of_parts, strict=True):
                total = sum(part[row][item] for item in kind)
                for item in kind:
                    mixed[item] += weight * part[row][item] / total if total else 0.0
            total = sum(mixed.values())
            for item in kind:
                scores[item] = share * mixed[item] / total if total else 0.0
        found.append(scores)
    return found
