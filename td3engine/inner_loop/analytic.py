"""The gradient of one inner step by hand: SASRec's passes, the catalogue's, and what joins them.

The loss is the mean over the asked events of logsumexp(h E^T) - h . X_t (I-2), where X is the batch
itself for a frozen table, and S E for a trained one; targets of their own lie behind what is read.
Written out because autograd's double backward spends its time on hundreds of small kernels;
`learner.summary_loss` is the same loss for autograd, and the tests hold one to the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.losses.softmax import SoftmaxOverItems
from td3engine.models.backbone import AnalyticEncoder
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.summary.soft_sequences import SoftEmbedding


class AnalyticGradient:
    """`unroll.InnerGradient` of a learner on a batch of synthetic sequences.

    Args:
        model: a recommender without item bias.
        encoder: its encoder's passes.
        reader: how the batch is read.
        theta: flat parameters (P).
        batch: of the reader's leaf, (B, zeta or 2 zeta, .): the first zeta positions are read,
            the last ones are to be predicted.
        length: zeta.
        draws: what is asked, as many events of every row.
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
        self.reading = soft_embedding.passes(batch, table_ND)
        # The last position is not read: nothing comes after it.
        self.inputs, self.positions = length - 1, batch.shape[1]
        at = randomness.targets.at + (self.positions - length)
        self.targets = randomness.targets.rows * self.positions + at
        self.weight = 1 / len(self.targets)
        X_BTD = self.reading.forward()
        hidden = encoder.forward(X_BTD[:, : self.inputs])
        self.softmax = SoftmaxOverItems(hidden, table_ND, True, model.log_weight)
        to_hidden, to_table = self.softmax.gradient(self.weight, self.trained)
        to_encoder, to_input = encoder.backward(self._less_expected(to_hidden, X_BTD))
        read = self.reading.backward(self._to_soft(to_input, hidden)) if self.trained else None
        self.gradient = _joined(to_encoder, to_table, read)

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """See `unroll.InnerGradient`."""
        encoder_P, table_ND = self.model.parts(direction_P)
        moved_ND = table_ND if self.trained else None
        X_BTD = self.reading.jvp(table_ND)
        read_BLD = None if X_BTD is None else X_BTD[:, : self.inputs]
        hidden = self.encoder.jvp(encoder_P, read_BLD)
        _, to_hidden, to_table = self.softmax.hvp(self.weight, hidden, moved_ND, self.trained)
        if X_BTD is not None:
            self._less_expected(to_hidden, X_BTD)
        to_encoder, to_input = self.encoder.backward_jvp(to_hidden)
        read, to_batch = self.reading.backward_jvp(self._to_soft(to_input, hidden))
        return _joined(to_encoder, to_table, read), to_batch

    def _less_expected(self, to_hidden_KD: Tensor, X_BTD: Tensor) -> Tensor:
        return to_hidden_KD.sub_(X_BTD.flatten(0, 1)[self.targets], alpha=self.weight)

    def _to_soft(self, to_input_BLD: Tensor, hidden_KD: Tensor) -> Tensor:
        """Gradient of X, (B, zeta or 2 zeta, d): as the encoder's input, and as targets."""
        to_X = F.pad(to_input_BLD, (0, 0, 0, self.positions - self.inputs))
        to_X.flatten(0, 1).index_add_(0, self.targets, hidden_KD, alpha=-self.weight)
        return to_X


def _joined(to_encoder_P: Tensor, to_table: Tensor | None, read: Tensor | None) -> Tensor:
    """The flat gradient; the table's share is both what scoring and what reading gave."""
    if to_table is None or read is None:
        return to_encoder_P
    return torch.cat([to_encoder_P, to_table.add_(read).flatten()])
