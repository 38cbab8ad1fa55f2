"""Choosing a mixture's weights on validation.

An item can be among a mixture's first ten only if some part ranks it high. So each question is
reduced to its target and the best `CANDIDATES` items of each part, once; then thousands of weights
can be tried in seconds, however many items there are. The ranks on test are over all items.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import row_slices
from td3engine.teacher.mixture import (
    FLOOR,
    HISTORY,
    Mixture,
    Part,
    PartDistributions,
    Repeat,
    met_items,
    mixed,
    normalised,
    repeat_share_of_users,
    share_of_met,
)

CANDIDATES = 50
CUTOFF = 10
ROUNDS = 10
FACTORS = (0.0, 0.25, 0.5, 2.0, 4.0)  # by which a round tries to change a part's weight
ENTERING = (0.05, 0.2)  # the weights at which it tries a part that has none, or the floor
# By which the odds of a repeat are multiplied; the first of equally good ones is taken.
ODDS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0, 0.03, 30.0)
SCORED_AT_MOST = 2**28  # scores of one part that weights are chosen by: of a large log, fewer users
FEWEST_CASES = 500


def fit_mixture(parts: Mapping[str, Part], validation: HoldoutSet, repeat_share: float) -> Mixture:
    """The mixture that ranks the validation set best.

    Args:
        parts: the models, trained.
        validation: the holdout set on which weights are chosen.
        repeat_share: of the log's training and validation events (`Split.repeat_share`). How often
            users repeat decides nothing among new items, and so is chosen by protocol `all`.
    """
    affordable = max(FEWEST_CASES, SCORED_AT_MOST // validation.n_items)
    if len(validation.targets) > affordable:
        count = len(validation.targets)
        validation = validation.take(torch.arange(affordable) * count // affordable)
    new, met = candidates(list(parts.values()), validation)
    weights = best_weights(new), best_weights(met)
    neutral = Mixture(dict(parts), *weights, Repeat(HISTORY, repeat_share))
    return replace(neutral, repeat=best_repeat(neutral, validation)) if repeat_share else neutral


def best_repeat(mixture: Mixture, cases: HoldoutSet) -> Repeat:
    """The source and odds of repeats with which a mixture ranks the cases best among all items."""
    share, names = mixture.repeat.share, list(mixture.parts)
    distributions = PartDistributions(list(mixture.parts.values()), cases)
    best: list[Tensor] = []  # the highest scores of met and of new items, and the target's
    sources: list[Tensor] = []
    for rows in row_slices(cases):
        each, seen = distributions.of(rows), met_items(cases, rows)
        targets = cases.targets[rows, None]
        kinds = []
        for weights, without in ((mixture.met_weights, ~seen), (mixture.new_weights, seen)):
            scores = mixed(each, weights, without).masked_fill(without, -1)
            target = scores.gather(1, targets)
            rivals = scores.scatter(1, targets, -1).topk(min(CUTOFF, scores.shape[1])).values
            kinds.append(torch.cat([target, rivals], 1))
        best.append(torch.stack(kinds, 1))
        sources.append(torch.stack([share_of_met(part, seen) for part in each], 1))
    values_Q2M = torch.cat(best)
    from_source = dict(zip(names, torch.cat(sources).T, strict=True))
    from_source = {HISTORY: repeat_share_of_users(cases, share), **from_source}
    tried = [Repeat(source, share, odds) for source in from_source for odds in ODDS]
    return max(
        tried, key=lambda each: _ndcg_at(values_Q2M, each.probability(from_source[each.source]))
    )


def _ndcg_at(values_Q2M: Tensor, repeat_Q: Tensor) -> float:
    """NDCG@10 at these probabilities of a repeat; of either kind the target's score comes first,
    which is -1 in the kind that the target is not of."""
    shares_Q2 = torch.stack([repeat_Q, 1 - repeat_Q], 1)
    scores_Q2M = torch.where(values_Q2M < 0, values_Q2M, values_Q2M * shares_Q2[:, :, None])
    target_Q = scores_Q2M[:, :, 0].amax(1)
    return _ndcg(target_Q, scores_Q2M[:, :, 1:].flatten(1))


def candidates(parts: Sequence[Part], cases: HoldoutSet) -> tuple[Tensor, Tensor]:
    """What the parts expect of the items that matter, (Q', M, K): of cases with a new target among
    new items, and of cases with a target that was met among items that were.

    The target comes first. An item has weight -1 in all parts where it is named again, and where it
    is of the other kind, which the best items of a part hold when there are too few of this kind.
    """
    distributions = PartDistributions(parts, cases)
    new: list[Tensor] = []
    met: list[Tensor] = []
    for rows in row_slices(cases):
        each, seen = distributions.of(rows), met_items(cases, rows)
        targets = cases.targets[rows]
        is_new = cases.new_target[rows]
        for chosen, blocked, kept in ((is_new, seen, new), (~is_new, ~seen, met)):
            kept.append(_reduced([part[chosen] for part in each], blocked[chosen], targets[chosen]))
    return torch.cat(new), torch.cat(met)


def _reduced(parts: Sequence[Tensor], blocked_BN: Tensor, targets: Tensor) -> Tensor:
    """The parts' weights of the target and of each part's best items, (B, M, K)."""
    parts = [
        normalised(part.masked_fill(blocked_BN, 0)).masked_fill(blocked_BN, -1) for part in parts
    ]
    best = [part.topk(min(CANDIDATES, part.shape[1])).indices for part in parts]
    items_BM = torch.cat([targets[:, None], *best], 1)
    values_BMK = torch.stack([part.gather(1, items_BM) for part in parts], 2)
    order = items_BM[:, 1:].argsort(dim=1, stable=True)
    ordered = items_BM[:, 1:].gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    twice = torch.zeros_like(again).scatter(1, order, again) | (items_BM[:, 1:] == items_BM[:, :1])
    values_BMK[:, 1:][twice] = -1.0
    return values_BMK


def best_weights(values_QMK: Tensor) -> Tensor:
    """Weights (K) of sum 1 that rank targets best, by steepest ascent.

    It starts from equal weights or from a part alone, whichever is best; each round takes the best
    change of one part. Without questions, all is on the first part.
    """
    n_parts = values_QMK.shape[2]
    units = torch.eye(n_parts)
    if not len(values_QMK):
        return units[0]
    starts = [_with_floor(each) for each in (torch.full((n_parts,), 1 / n_parts), *units)]
    best, found = _best(values_QMK, starts)
    for _ in range(ROUNDS):
        value, tried = _best(values_QMK, _changed(found))
        if value <= best:
            break
        best, found = value, tried
    return found


def _best(values_QMK: Tensor, tried: Iterable[Tensor]) -> tuple[float, Tensor]:
    """The first of the best of these weights, after its NDCG."""
    ranked = ((reduced_ndcg(values_QMK, weights), weights) for weights in tried)
    return max(ranked, key=lambda each: each[0])


def _changed(weights: Tensor) -> Iterator[Tensor]:
    """Weights that give one part more or less."""
    for part, share in enumerate(weights.tolist()):
        for value in [factor * share for factor in FACTORS] if share > FLOOR else ENTERING:
            changed = weights.clone()
            changed[part] = value
            if changed.sum():
                yield _with_floor(changed / changed.sum())


def _with_floor(weights: Tensor) -> Tensor:
    floored = weights.clone()
    floored[0] = max(float(weights[0]), FLOOR)
    return floored / floored.sum()


def reduced_ndcg(values_QMK: Tensor, weights_K: Tensor) -> float:
    """NDCG@10 of the first of each question's candidates; ties count against it."""
    scores_QM = values_QMK @ weights_K
    return _ndcg(scores_QM[:, 0], scores_QM[:, 1:])


def _ndcg(target_Q: Tensor, rivals_QM: Tensor) -> float:
    """NDCG@10 of targets among rivals; ties count against them."""
    # "Not below" is true of ties, and where the target's score is not a number.
    ranks = (~(rivals_QM < target_Q[:, None])).sum(1)
    gains = torch.where(ranks < CUTOFF, 1 / torch.log2(ranks + 2.0), 0.0)
    return float(gains.double().mean())
