"""The network of a teacher: what it trains on, as the configuration says."""

from collections.abc import Sequence

import torch

from td3engine.config import DistillConfig, share_of_counting, softmax_over
from td3engine.counting.fitting import FittedCounting
from td3engine.counting.labels import CountingLabels
from td3engine.data.split import Split
from td3engine.data.windows import training_windows
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import HoldoutSet
from td3engine.teacher.training import LogTraining


def network_training(
    split: Split,
    config: DistillConfig,
    counting: Sequence[FittedCounting],
    validation: HoldoutSet,
    device: torch.device,
) -> LogTraining:
    """The training of a teacher's network on the whole log.

    Args:
        split: the log.
        config: all settings; backbone, teacher and seed matter here.
        counting: models that label targets; without any, targets are next items.
        validation: the holdout set that chooses the epoch.
        device: where to compute.
    """
    history = config.data.max_history
    backbone = build_backbone(config.teacher_backbone, history)
    share = counting_share(split, config) if counting else 0.0
    return LogTraining(
        split,
        Recommender(backbone, split.n_items, config.backbone.hidden),
        config.teacher,
        lambda rng: training_windows(split, history, rng),
        validation,
        seed=config.seed,
        device=device,
        labels=CountingLabels.of(counting, share, device) if share else None,
    )


def counting_share(split: Split, config: DistillConfig) -> float:
    """`teacher.counting_share` of this log, settled."""
    statistics, teacher = split.statistics(), config.teacher
    return share_of_counting(
        teacher.counting_share,
        softmax_over(split.n_items, teacher.softmax),
        training_events=statistics.training_interactions,
        n_items=split.n_items,
        repeat_share=statistics.repeat_share,
    )
