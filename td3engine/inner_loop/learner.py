"""The inner loop: train a learner on a summary (section 4)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from td3engine.config import LearnerConfig, Mode
from td3engine.errors import DivergedError
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.plan import plan_training
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.models.backbone import Backbone
from td3engine.models.recommender import Recommender
from td3engine.models.trained_model import TrainedModel
from td3engine.summary.labelled import AnySummary, LabelledSummary

VALIDATIONS = 20  # of a learner's training, at most
VALIDATE_EVERY = 20  # inner steps, at least, between two of them


@dataclass(frozen=True)
class TrainedLearner:
    """A model that was trained on a summary, and the wall seconds up to its best state."""

    model: TrainedModel
    seconds: float


Validate = Callable[[TrainedModel], float]
"""A model's validation NDCG@10."""


def learn(
    summary: AnySummary,
    backbone: Backbone,
    config: LearnerConfig,
    mode: Mode,
    draw: Generator,
    validate: Validate | None = None,
) -> TrainedLearner:
    """Train a fresh learner on a summary, as its user does.

    Args:
        summary: the factors.
        backbone: an untrained backbone.
        config: steps, batch, Adam.
        mode: `shared-items` reads and scores with the summary's V; `from-scratch` trains its own
            item table E and reads X = softmax(C V^T) E, re-computed at each step.
        draw: of the initial weights, dropout and augmentation.
        validate: called some `VALIDATIONS` times, and the best state is returned; its time does
            not count. None: the last state is returned.

    Raises:
        DivergedError: the learner's parameters are no longer finite.
    """
    training, synthetic = training_on(summary, backbone, config, mode)
    return learn_from(training, synthetic, draw, validate)


def learn_from(
    training: InnerLoopTrainer, synthetic: Tensor, draw: Generator, validate: Validate | None = None
) -> TrainedLearner:
    """`learn` with a trainer and the synthetic tensor, (mu, positions, .).

    Raises:
        DivergedError: see `learn`.
    """
    model = training.model
    state = LearnerState.fresh(model.initial(draw))
    best: TrainedLearner | None = None
    best_value, seconds = -1.0, 0.0
    between = max(VALIDATE_EVERY, -(-training.count // VALIDATIONS))
    while state.age < training.count:
        began = time.perf_counter()
        count = min(between, training.count - state.age)
        state = training.advance(synthetic, state, draw, count)
        seconds += time.perf_counter() - began
        if not torch.isfinite(state.parameters).all():
            raise DivergedError(
                f"a learner diverged within {state.age} steps: a smaller learner.lr may help"
            )
        trained = TrainedModel(model.backbone, *model.parts(state.parameters))
        value = validate(trained) if validate else float(state.age)
        if best is None or value > best_value:
            best_value, best = value, TrainedLearner(trained, seconds)
    assert best is not None  # a learner takes at least 2 steps
    return best


def training_on(
    summary: AnySummary, backbone: Backbone, config: LearnerConfig, mode: Mode
) -> tuple[InnerLoopTrainer, Tensor]:
    """The trainer of learners on this summary, and its synthetic tensor."""
    scored = config.loss == "scores"
    # Cross-entropies compare distributions: such a learner reads them, too.
    queries = summary.queries() if scored else summary.soft_sequences().stacked
    items = scored and isinstance(summary, LabelledSummary)
    inputs: Literal["items", "soft"] = "items" if items else "soft"
    sizes = len(summary.V), queries.shape[:2].numel()
    plan = plan_training(backbone, mode, *sizes, config.loss, inputs)
    model = recommender(backbone, summary.V, mode)
    sequences = plan.sequences(summary)
    steps = config.steps_in(mode)
    trainer = InnerLoopTrainer(model, config, steps, sequences, summary.length, plan)
    return trainer, sequences.synthetic(queries)


def recommender(backbone: Backbone, V_ND: Tensor, mode: Mode) -> Recommender:
    """A learner of this mode over the items of V."""
    if mode == "shared-items":
        return Recommender.sharing(backbone, V_ND)
    n_items, width = V_ND.shape
    return Recommender(backbone, n_items, width)
