"""The losses of a recommender on real rows (method, section 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.losses.cross_entropy import mean_cross_entropy
from td3engine.losses.softmax import log_sum_exp
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness

SMALLEST_SHARE = 1e-6  # of the probability, that unseen items have at least


def real_loss(
    model: Recommender,
    theta: Tensor,
    items_BL: Tensor,
    lengths_B: Tensor,
    randomness: StepRandomness,
) -> Tensor:
    """Mean cross-entropy at the target positions of real rows. Once differentiable.

    Args:
        model: backbone and item table.
        theta: its parameters.
        items_BL: item indices, right-padded, int64 (B, L).
        lengths_B: events in each row, int64 (B).
        randomness: target positions and dropout.
    """
    encoder_P, table_NF = model.parts(theta)
    hidden_KF = model.states(encoder_P, F.embedding(items_BL, table_NF), lengths_B, randomness)
    targets_K = items_BL[randomness.targets.rows, randomness.targets.at]
    return mean_cross_entropy(hidden_KF, F.embedding(targets_K, table_NF), table_NF)


def unseen_loss(
    model: Recommender,
    theta: Tensor,
    items_BL: Tensor,
    lengths_B: Tensor,
    randomness: StepRandomness,
) -> Tensor:
    """Mean cross-entropy at the target positions, among items that are new to the row.

    Ranking leaves out the items that a user has seen, so this loss is closer to the metrics than
    `real_loss`: a learner need not learn to avoid repetition. A target that repeats an earlier
    event of its row does not count. Once differentiable. Arguments as for `real_loss`.
    """
    encoder_P, table_NF = model.parts(theta)
    embedded = F.embedding(items_BL, table_NF)
    hidden_KF = model.states(encoder_P, embedded, lengths_B, randomness)
    return unseen_cross_entropy(hidden_KF, embedded, table_NF, items_BL, randomness.targets)


def unseen_cross_entropy(
    hidden_KF: Tensor,
    embedded_BLF: Tensor,
    table_NF: Tensor,
    items_BL: Tensor,
    targets: TargetPositions,
) -> Tensor:
    """`unseen_loss` from its states (K, f) and embedded rows (B, L, f)."""
    log_total_K = log_sum_exp(hidden_KF, table_NF)
    scores_KL = (embedded_BLF[targets.rows] @ hidden_KF[:, :, None]).squeeze(-1)
    same_BLL = items_BL[:, :, None] == items_BL[:, None, :]
    repeats_BL = same_BLL.tril(-1).any(-1)
    at_L = torch.arange(items_BL.shape[1], device=items_BL.device)
    before_KL = (at_L < targets.at[:, None]) & ~repeats_BL[targets.rows]
    share_K = torch.where(before_KL, (scores_KL - log_total_K[:, None]).exp(), 0.0).sum(-1)
    # Rounding can push the share past one where unseen items have next to none.
    unseen_K = log_total_K + torch.log1p(-share_K.clamp(max=1 - SMALLEST_SHARE))
    target_K = scores_KL.gather(1, targets.at[:, None]).squeeze(1)
    counted_K = ~repeats_BL[targets.rows, targets.at]
    return (unseen_K - target_K)[counted_K].sum() / counted_K.sum().clamp(min=1)
