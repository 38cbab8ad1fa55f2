"""Settings are chosen by validation NDCG@10 under the set's own protocol, of training events."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from td3engine.config import ValidationProtocol
from td3engine.counting import fitting
from td3engine.counting.fitting import (
    EASE,
    FAMILIES,
    ITEM_KNN,
    MARKOV,
    POPULARITY,
    REPEAT_RULE,
    WINDOWED,
    FittedCounting,
    fit_counting_models,
    tuning_cases,
)
from td3engine.counting.kernels import co_occurrences, cosine, ease, transitions
from td3engine.counting.models import (
    WHOLE_HISTORY,
    CountingModel,
    KernelModel,
    Popularity,
    Reading,
    RepeatRule,
)
from td3engine.data.split import Split, training_counts
from td3engine.ranking.holdout import HoldoutSet, holdout_set
from tests.td3engine.counting.kit import HELD_OUT_ONLY, ITEMS, NEVER, all_scores, odd_log
from tests.td3engine.oracles import make_split

PROTOCOLS: tuple[ValidationProtocol, ...] = ("all", "unseen")


def slow_ndcg(model: CountingModel, cases: HoldoutSet, protocol: ValidationProtocol) -> float:
    gains = []
    pasts: list[list[int]] = [[] for _ in cases.targets]
    for row, item in zip(cases.seen_rows.tolist(), cases.seen_items.tolist(), strict=True):
        pasts[row].append(item)
    scored = zip(all_scores(model, cases).tolist(), cases.targets.tolist(), pasts, strict=True)
    for scores, target, past in scored:
        hidden = past if protocol == "unseen" else []
        if target not in hidden:
            rivals = set(range(ITEMS)) - {target, *hidden}
            rank = sum(scores[item] >= scores[target] for item in rivals)
            gains.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
    return sum(gains) / len(gains)


def all_settings(split: Split, protocol: ValidationProtocol) -> dict[str, dict[str, CountingModel]]:
    """Every model of every family that could be chosen, by its settings in words."""
    counts = torch.from_numpy(training_counts(split)).float()
    share = counts / (counts.max() + 1)
    together = co_occurrences(split)
    found: dict[str, dict[str, CountingModel]] = {family: {} for family in FAMILIES}
    found[POPULARITY][""] = Popularity(counts)
    for decay in (1.0, 0.9, 0.7):
        rule = RepeatRule(share, Reading(WHOLE_HISTORY, decay))
        found[REPEAT_RULE][f"decay {decay}"] = rule
    found[MARKOV][""] = KernelModel(transitions(split, 1, 1.0, 0.0), Reading(1, 1.0), share)
    windows, shrinkages = [(1, 1.0), (5, 0.7), (10, 0.8)], [0.0, 5.0]
    for (window, decay), shrinkage, (last, old) in product(
        windows, shrinkages, [(5, 0.5), (10, 0.8), (20, 0.9)]
    ):
        words = f"window {window}, decay {decay}, shrinkage {shrinkage:g}"
        kernel = transitions(split, window, decay, shrinkage)
        found[WINDOWED][f"{words}, of the last {last} events at decay {old}"] = KernelModel(
            kernel, Reading(last, old), share
        )
    for exponent, itself, old in product([0.5, 0.7], [False, True], [0.5, 0.8, 0.95]):
        words = f"exponent {exponent}{', itself' if itself else ''}"
        if not itself or protocol == "all":
            found[ITEM_KNN][f"{words}, of the last 50 events at decay {old}"] = KernelModel(
                cosine(together, exponent, itself=itself), Reading(50, old), share
            )
    for ridge, (words, reading) in product(
        [100, 500],
        [
            ("last 50 events at decay 0.8", Reading(50, 0.8)),
            ("last 50 events at decay 0.95", Reading(50, 0.95)),
            ("whole history at decay 1.0", Reading(WHOLE_HISTORY, 1.0)),
        ],
    ):
        found[EASE][f"ridge {ridge}, of the {words}"] = KernelModel(
            ease(together, ridge), reading, share
        )
    return found


def fitted(
    histories: list[list[int]], protocol: ValidationProtocol, ease_items: int = ITEMS
) -> list[FittedCounting]:
    split = make_split(histories, ITEMS)
    validation = holdout_set(split, "validation", 6, validate_by=protocol)
    return fit_counting_models(split, validation, ease_items)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_best_settings_of_each_family(protocol: ValidationProtocol) -> None:
    split = make_split(odd_log(5, users=60), ITEMS)
    validation = holdout_set(split, "validation", 6, validate_by=protocol)
    settings = all_settings(split, protocol)
    found = fit_counting_models(split, validation, ITEMS)
    assert [model.name for model in found] == list(FAMILIES)
    for model in found:
        values = {
            words: slow_ndcg(tried, validation, protocol)
            for words, tried in settings[model.name].items()
        }
        assert model.validation == pytest.approx(max(values.values()))
        assert values[model.settings] == pytest.approx(model.validation)
        assert slow_ndcg(model.model, validation, protocol) == pytest.approx(model.validation)
        assert model.seconds > 0


def test_the_protocols_choose_differently() -> None:
    """Else the test above would not tell them apart."""
    log = odd_log(5, users=60)
    by_all, by_unseen = (
        {model.name: model.settings for model in fitted(log, protocol)} for protocol in PROTOCOLS
    )
    assert by_all != by_unseen


def test_ease_is_left_out_of_a_large_catalogue() -> None:
    log = odd_log()
    assert [model.name for model in fitted(log, "all", ITEMS)] == list(FAMILIES)
    assert [model.name for model in fitted(log, "all", ITEMS - 1)] == list(FAMILIES[:-1])


def test_a_larger_log_tries_one_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SEVERAL_RIDGES", ITEMS - 1)
    monkeypatch.setattr(fitting, "RIDGES", (0.001, 7.0))
    assert fitted(odd_log(), "all")[-1].settings.startswith("ridge 7,")


def test_fitting_twice_is_the_same() -> None:
    once, again = (fitted(odd_log(6), "all") for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert (one.name, one.settings, one.validation) == (
            other.name,
            other.settings,
            other.validation,
        )


def test_no_test_event_decides_anything() -> None:
    histories = odd_log(7, users=60)
    others = [
        [*history[:-1], NEVER if number % 2 else HELD_OUT_ONLY] if len(history) >= 3 else history
        for number, history in enumerate(histories)
    ]
    split = make_split(histories, ITEMS)
    probe = holdout_set(split, "validation", 6)
    for one, other in zip(fitted(histories, "all"), fitted(others, "all"), strict=True):
        assert (one.settings, one.validation) == (other.settings, other.validation)
        assert torch.equal(all_scores(one.model, probe), all_scores(other.model, probe))


def validation_of(users: int, protocol: ValidationProtocol) -> HoldoutSet:
    """Every third user's validation target is new to it, and is the user's number."""
    histories = [[0, 1, (2 + user if user % 3 == 0 else 0), 1] for user in range(users)]
    return holdout_set(make_split(histories, users + 2), "validation", 4, validate_by=protocol)


@pytest.mark.parametrize("most", [1, 4, 10, 2000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_settings_are_tried_on_questions_at_equal_distances(
    monkeypatch: pytest.MonkeyPatch, protocol: ValidationProtocol, most: int
) -> None:
    monkeypatch.setattr(fitting, "TUNED_ON", most)
    validation = validation_of(30, protocol)
    cases = tuning_cases(validation)
    questions = list(range(30)) if protocol == "all" else list(range(0, 30, 3))
    count = min(most, len(questions))
    wanted = [questions[nth * len(questions) // count] for nth in range(count)]
    assert cases.targets.tolist() == validation.targets[wanted].tolist()
    assert cases.validate_by == protocol


@pytest.mark.parametrize(("scores", "wanted"), [(32 * 20, 20), (32 * 3, 5), (32 * 1000, 30)])
def test_settings_are_tried_on_what_is_affordable(
    monkeypatch: pytest.MonkeyPatch, scores: int, wanted: int
) -> None:
    """Of 32 items; never fewer than the least number."""
    monkeypatch.setattr(fitting, "SCORED_AT_MOST", scores)
    monkeypatch.setattr(fitting, "FEWEST_TUNED_ON", 5)
    assert len(tuning_cases(validation_of(30, "all")).targets) == wanted


def test_the_only_question_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though few users are asked, and the protocol has a question about one of many."""
    monkeypatch.setattr(fitting, "TUNED_ON", 2)
    histories = [[0, 1, 0, 1] for _ in range(20)]
    histories[13] = [0, 1, 2, 1]
    for model in fitted(histories, "unseen"):
        assert np.isfinite(model.validation)
