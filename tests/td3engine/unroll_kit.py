"""A tiny distillation in float64: factors, a learner and the real batch that judges it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from td3engine.config import BackboneConfig, LearnerConfig, Mode
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerStep
from td3engine.inner_loop.learner import recommender
from td3engine.inner_loop.plan import InnerLoopPlan
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.unroll import train
from td3engine.models.backbones.sasrec import SASRec
from td3engine.models.recommender import StepRandomness
from td3engine.summary.soft_sequences import ChunkedQueries, DenseProbs, Precomputed
from td3engine.summary.tucker import query
from tests.td3engine.biased import BiasedSASRec
from tests.td3engine.oracles import Textbook, normal, seeded

Objective = Literal["all-positions", "last-and-augmented"]
Steps = Sequence[InnerStep[StepRandomness]]

MU, ZETA, WIDTH, ITEMS = 5, 8, 4, 9
BATCH = 2  # does not divide MU: batches wrap around the users
LEARNER_STEPS = 40  # of the learning rate's schedule; the tests stay well within


@dataclass(frozen=True)
class World:
    """A tiny distillation: factors, a learner, and the real batch that judges it."""

    factors: list[Tensor]
    V: Tensor
    backbone: SASRec
    training: InnerLoopTrainer
    textbook: Textbook
    start: Tensor
    real: Tensor

    def real_loss(self, theta: Tensor) -> Tensor:
        return self.textbook.real_loss(theta, list(self.real))

    def synthetic(self, factors: Sequence[Tensor]) -> Tensor:
        """What batches are cut from: X where the scoring table is fixed, else S."""
        return self.training.soft_embedding.synthetic(query(*factors))

    def steps(self, age: int, count: int) -> Steps:
        return self.training.steps(age, count, MU, seeded(age))


def make_world(
    *,
    mode: Mode = "shared-items",
    biased: bool = False,
    objective: Objective = "all-positions",
    augmented: int = 1,
    dropout: float = 0.0,
    weight_decay: float = 5e-5,
    beta2: float = 0.95,
    layers: int = 1,
    heads: int = 1,
    history: int = ZETA - 1,
    schedule: Literal["constant", "linear"] = "linear",
    chunked: bool = False,
    own_targets: bool = False,
) -> World:
    shape = BackboneConfig(hidden=WIDTH, layers=layers, heads=heads, inner=5, dropout=dropout)
    backbone = (BiasedSASRec if biased else SASRec)(shape, history)
    learner = LearnerConfig(
        loss="cross-entropy",
        steps=LEARNER_STEPS,
        batch=BATCH,
        lr=0.01,
        schedule=schedule,
        weight_decay=weight_decay,
        beta2=beta2,
        objective=objective,
        augmented=augmented,
    )
    V = normal(3, ITEMS, WIDTH)
    model = recommender(backbone, V, mode)
    own_table = ChunkedQueries if chunked else DenseProbs
    soft_embedding = Precomputed(V) if mode == "shared-items" and not biased else own_table(V)
    # The soft embedding is handed over, whatever a plan would choose.
    plan = InnerLoopPlan("autograd" if biased else "analytic", "dense")
    start = torch.cat(
        [
            backbone.initial(seeded(4)).double() + normal(5, backbone.n_parameters, std=0.1),
            # An item table, an item bias: of scale one half, where they are trained.
            normal(12, model.n_parameters - backbone.n_parameters, std=0.5),
        ]
    )
    return World(
        factors=[
            normal(0, MU, 2),
            normal(1, ZETA, 3),
            normal(2, 2, 3, WIDTH, std=0.5),
            *([normal(13, ZETA, 3)] if own_targets else []),
        ],
        V=V,
        backbone=backbone,
        training=InnerLoopTrainer(model, learner, LEARNER_STEPS, soft_embedding, ZETA, plan),
        textbook=Textbook(
            backbone.encode, backbone.n_parameters, V, mode == "from-scratch", biased
        ),
        start=start,
        real=torch.randint(ITEMS, (6, 7), generator=seeded(6)),
    )


def warm(world: World, age: int = 3) -> LearnerState:
    """A learner that has trained for `age` steps, on other sequences."""
    other = [
        normal(7, MU, 2),
        normal(8, ZETA, 3),
        normal(9, 2, 3, WIDTH),
        *([normal(14, ZETA, 3)] if len(world.factors) == 4 else []),
    ]
    state = LearnerState.fresh(world.start)
    steps = world.steps(0, age)
    return train(
        state, world.synthetic(other), steps, world.training.grad_fn, world.training.schedule
    )[-1]
