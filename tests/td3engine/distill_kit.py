"""Settings and a random teacher for outer steps that take milliseconds."""

from typing import Any, Literal

import numpy as np
import torch

from td3engine.config import DistillConfig, Mode
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.trained_model import TrainedModel
from td3engine.outer_loop.distillation import Distillation
from td3engine.ranking.holdout import holdout_set
from td3engine.runtime.distributed import ProcessGroup
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.biased import BiasedSASRec
from tests.td3engine.oracles import make_split, normal
from tests.td3engine.small import paper_config

ITEMS, WIDTH, ZETA = 9, 4, 8
RATES: dict[Mode, float] = {"shared-items": 0.03, "from-scratch": 0.05}


def config_of(
    mode: Mode,
    *,
    targets: Any = "own",
    objective: Any = "last-and-augmented",
    inputs: Literal["soft", "items"] = "soft",
    **outer: Any,
) -> DistillConfig:
    """The paper's method; or, of inputs that are items, labels that nothing rounds, and scores."""
    return paper_config(
        mode=mode,
        backbone={"hidden": WIDTH, "inner": 5, "dropout": 0.2},
        summary={"users": 5, "length": ZETA, "targets": targets, "inputs": inputs},
        learner={
            "loss": "scores" if inputs == "items" else "cross-entropy",
            "batch": 2,
            "objective": objective,
            "augmented": 1,
            "weight_decay": 0.01,
            "scratch_steps": 9,
        },
        outer={
            "normalise": False,
            "clip": 1e6,
            "weight_decay": 0.02,
            "validate_every": 1000,
            "shared_steps": 0,
            "feature_weight": 0.7,
            "teacher_share": 0.3,
            "lr": RATES["shared-items"],
            "scratch_lr": RATES["from-scratch"],
            **outer,
        },
    )


def make(
    config: DistillConfig,
    biased: bool,
    group: ProcessGroup | None = None,
    kind: type[Distillation] = Distillation,
) -> Distillation:
    rng = np.random.default_rng(0)
    histories = [rng.integers(ITEMS, size=size).tolist() for size in [4, 9, 6, 12, 5, 7, 2, 8] * 2]
    split = make_split(histories, ITEMS)
    backbone = (BiasedSASRec if biased else SASRec)(
        config.learner_backbone, config.data.max_history
    )
    size = backbone.n_parameters
    teacher = TrainedOnLog(
        model=TrainedModel(backbone, normal(0, size, std=0.3), normal(1, ITEMS, WIDTH + biased)),
        early=normal(2, 3, size, std=0.1),
        validation=0.5,
        seconds=1.0,
    )
    holdout = holdout_set(split, "validation", config.learner_history)
    return kind(split, config, backbone, teacher, holdout, torch.device("cpu"), group)
