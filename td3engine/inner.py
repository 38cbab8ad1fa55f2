"""The gradient of one inner step by hand: SASRec's passes, the catalogue's, and what joins them.

The loss is the mean over the asked events of logsumexp(h E^T) - h . X_t (I-2), where X is the batch
itself for a frozen table, and S E for a trained one. Written out because autograd's double backward
spends its time on hundreds of small kernels; `learner.summary_loss` is the same loss for autograd,
and the tests hold one to the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.backbones.interface import Passes
from td3engine.catalogue import Catalogue
from td3engine.model import Draws, Recommender


class ByHand:
    """`unroll.Taken` of a learner on a batch of synthetic sequences.

    Args:
        model: a recommender without item bias.
        passes: its encoder's.
        theta: flat parameters (P).
        batch: X (B, zeta, d) for a frozen table, S (B, zeta, n) for a trained one.
        draws: what is asked, as many events of every row.
    """

    def __init__(
        self,
        model: Recommender,
        passes: Passes,
        theta: Tensor,
        batch: Tensor,
        draws: Draws,
    ) -> None:
        self.trained = model.frozen is None
        self.model, self.passes, self.batch = model, passes, batch
        _, self.table = model.parts(theta)
        X_BTD = batch @ self.table if self.trained else batch
        length = batch.shape[1]
        self.targets = draws.asked.rows * length + draws.asked.at
        self.weight = 1 / len(self.targets)
        self.hidden = passes.forward(X_BTD[:, :-1])
        self.catalogue = Catalogue(self.hidden, self.table, keep=True)
        to_hidden, to_table = self.catalogue.gradient(self.weight, self.trained)
        expected = X_BTD.flatten(0, 1)[self.targets]
        to_encoder, to_input = passes.backward(to_hidden.sub_(expected, alpha=self.weight))
        if to_table is None:
            self.gradient = to_encoder
            return
        self.to_X = self._to_soft(to_input, self.hidden)
        to_table.addmm_(batch.flatten(0, 1).t(), self.to_X.flatten(0, 1))
        self.gradient = torch.cat([to_encoder, to_table.flatten()])

    def along(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        """See `unroll.Taken`."""
        encoder_P, table_ND = self.model.parts(direction_P)
        if not self.trained:
            hidden = self.passes.forward_along(encoder_P, None)
            _, to_hidden, _ = self.catalogue.along(self.weight, hidden, None, False)
            to_encoder, to_input = self.passes.backward_along(to_hidden)
            return to_encoder, self._to_soft(to_input, hidden)
        X_BTD = self.batch @ table_ND
        hidden = self.passes.forward_along(encoder_P, X_BTD[:, :-1])
        _, to_hidden, to_table = self.catalogue.along(self.weight, hidden, table_ND, True)
        assert to_table is not None  # asked for
        to_hidden.sub_(X_BTD.flatten(0, 1)[self.targets], alpha=self.weight)
        to_encoder, to_input = self.passes.backward_along(to_hidden)
        to_X = self._to_soft(to_input, hidden)
        to_table.addmm_(self.batch.flatten(0, 1).t(), to_X.flatten(0, 1))
        to_S = to_X @ self.table.t() + self.to_X @ table_ND.t()
        return torch.cat([to_encoder, to_table.flatten()]), to_S

    def _to_soft(self, to_input_BLD: Tensor, hidden_KD: Tensor) -> Tensor:
        """Gradient of X (B, zeta, d): as the encoder's input, and as targets."""
        to_X = F.pad(to_input_BLD, (0, 0, 0, 1))
        to_X.flatten(0, 1).index_add_(0, self.targets, hidden_KD, alpha=-self.weight)
        return to_X
