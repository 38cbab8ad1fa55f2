"""The inner loop: train a learner on a summary (section 4)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from td3engine.backbones import Backbone
from td3engine.catalogue import log_sum_exp
from td3engine.config import LearnerConfig, Mode
from td3engine.ranking import Scorer
from td3engine.summary import Summary, query, soft_sequences
from td3engine.unroll import AdamRule, InnerStep, LearnerLoss, LearnerState, train

FIRST_AUGMENTED = 5  # the augmentation predicts no earlier position than this (section 4)
ENCODED_AT_ONCE = 1024
VALIDATE_EVERY = 20  # inner steps between two looks at validation, where a caller wants them
TABLE_STD = 0.02


@dataclass(frozen=True)
class StepNoise:
    """Random draws of one inner step: dropout masks, and augmented targets (B, k), or None."""

    dropout: Tensor | None
    augmented: Tensor | None


def cross_entropy(hidden_KD: Tensor, expected_KD: Tensor, table_ND: Tensor) -> Tensor:
    """KL(target || softmax(h E^T)) less the target's entropy, per row (K) (identity I-2).

    Args:
        hidden_KD: hidden states h, (K, d).
        expected_KD: the target's expected embedding S_t E, (K, d); for a real item, its own row.
        table_ND: the item table E, (n, d).
    """
    if table_ND.requires_grad:
        normaliser = torch.logsumexp(hidden_KD @ table_ND.T, -1)
    else:
        normaliser = log_sum_exp(hidden_KD, table_ND)
    return normaliser - (hidden_KD * expected_KD).sum(-1)


def summary_loss(
    backbone: Backbone, table_ND: Tensor, parameters_P: Tensor, X_BTD: Tensor, noise: StepNoise
) -> Tensor:
    """The inner loss on soft sequences (B, zeta, d): each position predicts the next one.

    With `noise.augmented` set, only the last position and the drawn positions of a sequence count;
    the encoder is causal, so one pass serves all.
    """
    hidden = backbone.encode(parameters_P, X_BTD[:, :-1], noise.dropout)
    target = X_BTD[:, 1:]
    if noise.augmented is not None:
        rows = torch.arange(len(X_BTD), device=X_BTD.device)[:, None]
        last = torch.full_like(noise.augmented[:, :1], target.shape[1])
        at = torch.cat([last, noise.augmented], 1) - 1
        hidden, target = hidden[rows, at], target[rows, at]
    width = hidden.shape[-1]
    return cross_entropy(hidden.reshape(-1, width), target.reshape(-1, width), table_ND).mean()


def adam_rule(config: LearnerConfig, steps: int) -> AdamRule:
    """The configured Adam of a learner that takes so many steps."""
    decay_steps = steps if config.schedule == "linear" else None
    return AdamRule(config.lr, config.weight_decay, decay_steps)


class SummaryTraining:
    """The inner loop's recipe: which rows, which noise, which loss, which Adam."""

    def __init__(self, backbone: Backbone, table_ND: Tensor, config: LearnerConfig) -> None:
        self.backbone = backbone
        self.config = config
        self.rule = adam_rule(config, config.steps)
        self.loss: LearnerLoss[StepNoise] = partial(summary_loss, backbone, table_ND)

    def steps(
        self, age: int, count: int, users: int, length: int, generator: Generator
    ) -> list[InnerStep[StepNoise]]:
        """The next `count` steps of a learner of this age: rows in fixed cyclic order."""
        batch = min(self.config.batch, users)
        drawn = []
        for step in range(age, age + count):
            rows = torch.arange(step * batch, (step + 1) * batch, device=generator.device) % users
            drawn.append(InnerStep(rows, self._noise(batch, length, generator)))
        return drawn

    def _noise(self, batch: int, length: int, generator: Generator) -> StepNoise:
        augmented = None
        if self.config.objective == "last-and-augmented":
            first = min(FIRST_AUGMENTED, length - 2)
            augmented = torch.randint(
                first,
                length - 1,
                (batch, self.config.augmented),
                generator=generator,
                device=generator.device,
            )
        return StepNoise(self.backbone.dropout(batch, length - 1, generator), augmented)


@dataclass(frozen=True)
class Learned:
    """A trained model: flat encoder parameters (P), item table (n, d), wall seconds."""

    parameters: Tensor
    table: Tensor
    seconds: float


Validate = Callable[[Tensor, Tensor], float]
"""(encoder parameters, item table) -> validation NDCG@10."""


def learn_shared(
    training: SummaryTraining, X_UTD: Tensor, start: LearnerState, draw: Generator, count: int
) -> LearnerState:
    """`count` more steps of a learner whose item table is the summary's V, frozen."""
    users, length, _ = X_UTD.shape
    steps = training.steps(start.age, count, users, length, draw)
    return train(start, X_UTD, steps, training.loss, training.rule)[-1]


def learn(
    summary: Summary,
    backbone: Backbone,
    config: LearnerConfig,
    mode: Mode,
    draw: Generator,
    validate: Validate | None = None,
) -> Learned:
    """Train a fresh learner on a summary, as its user does.

    Args:
        summary: the factors.
        backbone: an untrained backbone.
        config: steps, batch, Adam.
        mode: `shared-items` reads and scores with the summary's V; `from-scratch` trains its own
            item table E and reads X = softmax(C V^T) E, re-computed at each step.
        draw: of the initial weights, dropout and augmentation.
        validate: if given, asked every `VALIDATE_EVERY` steps, and the best state is returned;
            its time is not counted.
    """
    parameters = backbone.initial(draw)
    C_UTD = query(*summary.learned)
    steps = config.steps if mode == "shared-items" else config.scratch_steps
    if mode == "shared-items":
        advance = _shared_items(summary, backbone, config, C_UTD, parameters, draw)
    else:
        advance = _from_scratch(summary, backbone, config, C_UTD, parameters, draw)
    best: Learned | None = None
    best_value, seconds = -1.0, 0.0
    for first in range(0, steps, VALIDATE_EVERY):
        began = time.perf_counter()
        found, table = advance(min(VALIDATE_EVERY, steps - first))
        seconds += time.perf_counter() - began
        value = validate(found, table) if validate else float(first)
        if best is None or value > best_value:
            best_value, best = value, Learned(found.clone(), table.clone(), seconds)
    assert best is not None  # config.steps is at least 2
    return best


def _shared_items(
    summary: Summary,
    backbone: Backbone,
    config: LearnerConfig,
    C_UTD: Tensor,
    parameters_P: Tensor,
    draw: Generator,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    training = SummaryTraining(backbone, summary.V, config)
    X_UTD = soft_sequences(C_UTD, summary.V, summary.V)
    state = LearnerState.fresh(parameters_P)

    def advance(count: int) -> tuple[Tensor, Tensor]:
        nonlocal state
        state = learn_shared(training, X_UTD, state, draw, count)
        return state.parameters, summary.V

    return advance


def _from_scratch(
    summary: Summary,
    backbone: Backbone,
    config: LearnerConfig,
    C_UTD: Tensor,
    parameters_P: Tensor,
    draw: Generator,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    training = SummaryTraining(backbone, summary.V, config)
    users, length, _ = C_UTD.shape
    parameters = parameters_P.requires_grad_()
    E_ND = new_table(len(summary.V), summary.V.shape[1], draw).requires_grad_()
    optimizer = torch.optim.Adam([parameters, E_ND], lr=config.lr, weight_decay=config.weight_decay)
    rule = adam_rule(config, config.scratch_steps)
    age = 0

    def advance(count: int) -> tuple[Tensor, Tensor]:
        nonlocal age
        for step in training.steps(age, count, users, length, draw):
            for group in optimizer.param_groups:
                group["lr"] = rule.lr_at(age)
            X_BTD = soft_sequences(C_UTD[step.rows], summary.V, E_ND)
            loss = summary_loss(backbone, E_ND, parameters, X_BTD, step.noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            age += 1
        return parameters.detach(), E_ND.detach()

    return advance


def new_table(n_items: int, width: int, draw: Generator) -> Tensor:
    """A fresh item table (n, d), N(0, 0.02^2)."""
    return torch.randn(n_items, width, generator=draw, device=draw.device) * TABLE_STD


def encode_last(backbone: Backbone, parameters_P: Tensor, table_ND: Tensor) -> Scorer:
    """A scorer for `ranking.evaluate`: last hidden state of each history, without dropout."""

    @torch.no_grad()
    def score(items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        parts = []
        for first in range(0, len(items_BL), ENCODED_AT_ONCE):
            items = items_BL[first : first + ENCODED_AT_ONCE].to(table_ND.device)
            lengths = lengths_B[first : first + ENCODED_AT_ONCE].to(table_ND.device)
            hidden = backbone.encode(parameters_P, table_ND[items], None)
            parts.append(hidden[torch.arange(len(items), device=items.device), lengths - 1])
        return torch.cat(parts)

    return score
