"""One inner step's gradient and its Hessian product: by autograd for any loss, analytic for SASRec.

Autograd's double backward of an encoder spends its time on hundreds of small kernels. The analytic
gradient joins passes that are written out: the encoder's (`models.analytic`), the softmax's
(`losses.softmax`) and the soft embedding's. `summary_loss` is the same loss for autograd, and tests
hold one to the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.losses.cross_entropy import cross_entropy
from td3engine.losses.score_distance import AnalyticDistance, centred, mean_distance
from td3engine.losses.softmax import SoftmaxOverItems
from td3engine.models.backbone import AnalyticEncoder
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.summary.scored_sequences import InputsWithTargets
from td3engine.summary.soft_sequences import SoftEmbedding
from td3engine.summary.tucker import SoftSequences

Randomness = TypeVar("Randomness")


@dataclass(frozen=True)
class InnerStep(Generic[Randomness]):
    """What one step trains on: rows of the synthetic data, int64 (B), and its random draws."""

    rows: Tensor
    randomness: Randomness


LearnerLoss = Callable[[Tensor, Tensor, Randomness], Tensor]
"""(parameters (P), a batch of the synthetic data (B, zeta, .), randomness) -> scalar loss."""


class InnerGradient(Protocol):
    """One step's loss gradient, and what its own derivatives need.

    Attributes:
        gradient: of the loss with respect to the parameters, (P), detached.
    """

    gradient: Tensor

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of (gradient . direction): to the parameters (P), and to the batch.

        By autograd it can be called once, since it frees the graph.
        """


GradFn = Callable[[Tensor, Tensor, Randomness, bool], InnerGradient]
"""(parameters (P), a batch of the synthetic data, randomness, whether `hvp` follows)."""


def summary_loss(
    model: Recommender,
    soft_embedding: SoftEmbedding,
    length: int,
    theta: Tensor,
    batch: Tensor,
    randomness: StepRandomness,
) -> Tensor:
    """The inner loss on a batch of synthetic sequences: the mean over its target positions.

    Args:
        model: the learner.
        soft_embedding: how the batch is read.
        length: zeta.
        theta: flat parameters (P).
        batch: rows of `SoftSequences.stacked`, (B, positions, .).
        randomness: target positions and dropout.
    """
    encoder_P, table_NF = model.parts(theta)
    X = SoftSequences(soft_embedding.read(batch, table_NF), length)
    lengths = torch.full((len(batch),), length, device=batch.device)
    hidden_KF = model.states(encoder_P, X.inputs, lengths, randomness)
    expected_KF = X.targets[randomness.targets.rows, randomness.targets.at]
    return cross_entropy(hidden_KF, expected_KF, table_NF, model.log_weight).mean()


def scored_loss(
    model: Recommender,
    sequences: InputsWithTargets,
    theta: Tensor,
    batch: Tensor,
    randomness: StepRandomness,
) -> Tensor:
    """The inner loss of learners that are held to scores: the mean over target positions of the
    distance between their scores and those of the target's query.

    Args:
        model: the learner.
        sequences: how the batch is read.
        theta, batch, randomness: as for `summary_loss`.
    """
    encoder_P, table_NF = model.parts(theta)
    lengths = torch.full((len(batch),), sequences.length, device=batch.device)
    hidden_KF = model.states(encoder_P, sequences.read(batch, table_NF), lengths, randomness)
    query_KD = sequences.targets(batch)[randomness.targets.rows, randomness.targets.at]
    if table_NF is model.frozen:
        return mean_distance(hidden_KF, query_KD, sequences.shared_products)
    return mean_distance(hidden_KF, query_KD, sequences.products(centred(table_NF)))


class AutogradGradient(Generic[Randomness]):
    """`InnerGradient` of any twice differentiable loss, by autograd's tape.

    Args:
        parameters_P: flat parameters.
        batch: what the loss reads besides them.
        randomness: the step's random draws.
        second: whether `hvp` follows.
        loss: the learner's loss.
    """

    def __init__(
        self,
        parameters_P: Tensor,
        batch: Tensor,
        randomness: Randomness,
        second: bool,
        *,
        loss: LearnerLoss[Randomness],
    ) -> None:
        self._parameters = parameters_P.detach().requires_grad_()
        self._batch = batch.detach().requires_grad_(second)
        value = loss(self._parameters, self._batch, randomness)
        (self._graph,) = torch.autograd.grad(value, self._parameters, create_graph=second)
        self.gradient = self._graph.detach()

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """See `InnerGradient`."""
        to_parameters, to_batch = torch.autograd.grad(
            self._graph, (self._parameters, self._batch), direction_P
        )
        return to_parameters, to_batch


class AnalyticGradient:
    """`InnerGradient` of a learner on a batch of synthetic sequences, without autograd.

    The loss is the mean over target positions of logsumexp(h E^T) - h . X_t (I-2). X is the batch
    itself for a frozen item table, and S E for a trained one.

    Args:
        model: a recommender without item bias.
        encoder: its encoder's passes.
        soft_embedding: how the batch is read.
        theta: flat parameters (P).
        batch: rows of `SoftSequences.stacked`, (B, positions, .).
        length: zeta.
        randomness: target positions, as many in every row.
    """

    def __init__(
        self,
        model: Recommender,
        encoder: AnalyticEncoder,
        soft_embedding: SoftEmbedding,
        theta: Tensor,
        batch: Tensor,
        length: int,
        randomness: StepRandomness,
    ) -> None:
        _, table_ND = model.parts(theta)
        self.model, self.encoder, self.trained = model, encoder, model.frozen is None
        self.embedding = soft_embedding.passes(batch, table_ND)
        # The last position is no input: nothing comes after it.
        self.inputs, self.positions = length - 1, batch.shape[1]
        at = randomness.targets.at + (self.positions - length)
        self.targets = randomness.targets.rows * self.positions + at
        self.weight = 1 / len(self.targets)
        X_BTD = self.embedding.forward()
        hidden = encoder.forward(X_BTD[:, : self.inputs])
        small = model.scores_are_small(hidden)
        self.softmax = SoftmaxOverItems(hidden, table_ND, True, model.log_weight, small=small)
        to_hidden, to_table = self.softmax.gradient(self.weight, self.trained)
        to_encoder, to_input = encoder.backward(self._subtract_targets(to_hidden, X_BTD))
        via_X = self.embedding.backward(self._to_soft(to_input, hidden)) if self.trained else None
        self.gradient = _flat(to_encoder, to_table, via_X)

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """See `InnerGradient`."""
        encoder_P, table_ND = self.model.parts(direction_P)
        table_tangent_ND = table_ND if self.trained else None
        X_BTD = self.embedding.jvp(table_ND)
        input_BLD = None if X_BTD is None else X_BTD[:, : self.inputs]
        hidden = self.encoder.jvp(encoder_P, input_BLD)
        _, to_hidden, to_table = self.softmax.hvp(
            self.weight, hidden, table_tangent_ND, self.trained
        )
        if X_BTD is not None:
            self._subtract_targets(to_hidden, X_BTD)
        to_encoder, to_input = self.encoder.backward_jvp(to_hidden)
        via_X, to_batch = self.embedding.backward_jvp(self._to_soft(to_input, hidden))
        return _flat(to_encoder, to_table, via_X), to_batch

    def _subtract_targets(self, to_hidden_KD: Tensor, X_BTD: Tensor) -> Tensor:
        return to_hidden_KD.sub_(X_BTD.flatten(0, 1)[self.targets], alpha=self.weight)

    def _to_soft(self, to_input_BLD: Tensor, hidden_KD: Tensor) -> Tensor:
        """Gradient of X, (B, positions, d): as the encoder's input, and as targets."""
        to_X = F.pad(to_input_BLD, (0, 0, 0, self.positions - self.inputs))
        to_X.flatten(0, 1).index_add_(0, self.targets, hidden_KD, alpha=-self.weight)
        return to_X


class AnalyticScoredGradient:
    """`InnerGradient` of `scored_loss`, without autograd.

    Args:
        model: a recommender without item bias.
        encoder: its encoder's passes.
        sequences: how the batch is read.
        theta: flat parameters (P).
        batch: rows of the synthetic tensor, (B, zeta, .).
        randomness: target positions, as many in every row.
    """

    def __init__(
        self,
        model: Recommender,
        encoder: AnalyticEncoder,
        sequences: InputsWithTargets,
        theta: Tensor,
        batch: Tensor,
        randomness: StepRandomness,
    ) -> None:
        _, table_ND = model.parts(theta)
        self.model, self.encoder, self.trained = model, encoder, model.frozen is None
        self.embedding = sequences.passes(batch, table_ND)
        self.batch = batch
        self.targets = randomness.targets.rows * sequences.length + randomness.targets.at
        X_BTD = self.embedding.forward()
        # The last position is no input: nothing comes after it.
        hidden = encoder.forward(X_BTD[:, :-1])
        query = sequences.targets(batch).flatten(0, 1)[self.targets]
        table = centred(table_ND) if self.trained else None
        products = sequences.shared_products if table is None else sequences.products(table)
        self.distance = AnalyticDistance(hidden, query, products, table, sequences.centred_table)
        to_hidden, to_table = self.distance.gradient()
        to_encoder, to_input = encoder.backward(to_hidden)
        via_X = self.embedding.backward(_with_last(to_input)) if self.trained else None
        self.gradient = _flat(to_encoder, to_table, via_X)

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """See `InnerGradient`."""
        encoder_P, table_ND = self.model.parts(direction_P)
        # A frozen table has no direction, and inputs that are items none at all.
        X_BTD = self.embedding.jvp(table_ND) if self.trained else None
        hidden = self.encoder.jvp(encoder_P, None if X_BTD is None else X_BTD[:, :-1])
        to_hidden, to_table, to_query = self.distance.hvp(
            hidden, table_ND if self.trained else None
        )
        to_encoder, to_input = self.encoder.backward_jvp(to_hidden)
        via_X, to_inputs = self.embedding.backward_jvp(_with_last(to_input))
        to_batch = torch.zeros_like(self.batch)
        to_batch[..., : to_inputs.shape[-1]] = to_inputs
        width = to_query.shape[-1]
        to_targets = to_query.new_zeros(to_batch[..., 0].numel(), width)
        to_targets.index_add_(0, self.targets, to_query)
        to_batch[..., -width:] = to_targets.view(*self.batch.shape[:2], width)
        return _flat(to_encoder, to_table, via_X if self.trained else None), to_batch


def _with_last(to_input_BLD: Tensor) -> Tensor:
    """Gradient of X, (B, zeta, d), whose last position no learner reads."""
    return F.pad(to_input_BLD, (0, 0, 0, 1))


def _flat(to_encoder_P: Tensor, to_table: Tensor | None, via_X: Tensor | None) -> Tensor:
    """The flat gradient (P); a trained table's is the sum of its uses in scores and in X."""
    if to_table is None or via_X is None:
        return to_encoder_P
    return torch.cat([to_encoder_P, to_table.add_(via_X).flatten()])
