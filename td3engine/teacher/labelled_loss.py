"""The loss of a step whose targets are partly next items, partly what counting models expect."""

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.counting.labels import CountingLabels
from td3engine.losses.cross_entropy import mean_cross_entropy
from td3engine.models.recommender import Recommender, StepRandomness


def labelled_loss(
    model: Recommender,
    theta: Tensor,
    items_BL: Tensor,
    lengths_B: Tensor,
    randomness: StepRandomness,
    labels: CountingLabels,
) -> Tensor:
    """Mean cross-entropy against (1 - share) next item + share counting models' distribution.

    A target before which no event has a label is its next item alone. Once differentiable.

    Args:
        model: backbone and item table.
        theta: its parameters.
        items_BL: item indices, right-padded, int64 (B, L).
        lengths_B: events in each row, int64 (B).
        randomness: target positions and dropout.
        labels: of the counting models.
    """
    encoder_P, table_NF = model.parts(theta)
    hidden_KF = model.states(encoder_P, F.embedding(items_BL, table_NF), lengths_B, randomness)
    rows, at = randomness.targets.rows, randomness.targets.at
    next_KF = F.embedding(items_BL[rows, at], table_NF)
    expected_BLF, known_BL = labels.expected(items_BL, table_NF)
    share_K1 = labels.share * known_BL[rows, at, None].to(next_KF)
    targets_KF = torch.lerp(next_KF, expected_BLF[rows, at], share_K1)
    return mean_cross_entropy(hidden_KF, targets_KF, table_NF)
