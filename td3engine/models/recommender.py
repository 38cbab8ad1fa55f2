"""A recommender whole: backbone, item table, item bias, in one flat vector theta.

Who owns the item table depends on the mode. In `shared-items` it is the summary's V, frozen, and
theta holds the encoder; in `from-scratch` theta holds a table E of its own as well. An item bias b
(BERT4Rec) is always trained. Bias and table are one *scoring table* F = [E | b], (n, d + 1), and a
hidden state h scores as [h | 1] F^T; so S F gives expected embedding and expected bias together,
the extra value column of identity I-2, and no loss or ranking needs to know of a bias.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.models.backbone import Backbone, TargetPositions

TABLE_STD = 0.02


@dataclass(frozen=True)
class StepRandomness:
    """Random draws of one training pass: which events it predicts, and its dropout masks."""

    targets: TargetPositions
    dropout: Tensor | None


@dataclass(frozen=True)
class Recommender:
    """A backbone with its item table.

    Attributes:
        backbone: the encoder.
        n_items, width: n and d of the item table.
        frozen: the item table (n, d) if it is given and not trained.
        log_weight: added to items' scores in a loss (n), where the table is a sample of one.
    """

    backbone: Backbone
    n_items: int
    width: int
    frozen: Tensor | None = None
    log_weight: Tensor | None = None

    @classmethod
    def sharing(cls, backbone: Backbone, V_ND: Tensor) -> "Recommender":
        """With the summary's item table, frozen."""
        n_items, width = V_ND.shape
        return cls(backbone, n_items, width, V_ND)

    @property
    def scores_are_fixed(self) -> bool:
        """Whether no part of the scoring table is trained."""
        return self.frozen is not None and not self.backbone.biased

    @property
    def n_parameters(self) -> int:
        return sum(self._sizes())

    def initial(self, generator: Generator) -> Tensor:
        """Fresh theta: the backbone's own start, E from N(0, 0.02^2), b zero."""
        return self.with_table(self.backbone.initial(generator), generator)

    def with_table(self, encoder_P: Tensor, generator: Generator) -> Tensor:
        """Theta of a given encoder, with a fresh table and bias where those are trained."""
        _, table, bias = self._sizes()
        drawn = torch.randn(table, generator=generator, device=generator.device) * TABLE_STD
        return torch.cat([encoder_P, drawn, encoder_P.new_zeros(bias)])

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder parameters (P) and scoring table F, (n, d) or (n, d + 1)."""
        encoder_P, table, bias_N = theta.split(self._sizes())
        table_ND = table.view(self.n_items, self.width) if self.frozen is None else self.frozen
        if not self.backbone.biased:
            return encoder_P, table_ND
        return encoder_P, torch.cat([table_ND, bias_N[:, None]], 1)

    def entries_of(self, items_R: Tensor) -> Tensor:
        """Where in theta the encoder and these items' rows and biases lie: theta[...] is a theta of
        the same recommender over these items alone. Int64; for a recommender that owns its table.
        """
        encoder, table, bias = self._sizes()
        device = items_R.device
        rows = encoder + items_R[:, None] * self.width + torch.arange(self.width, device=device)
        biases = encoder + table + (items_R if bias else items_R[:0])
        return torch.cat([torch.arange(encoder, device=device), rows.flatten(), biases])

    def states(
        self, encoder_P: Tensor, events_BLF: Tensor, lengths_B: Tensor, randomness: StepRandomness
    ) -> Tensor:
        """What predicts the asked events, as scored against F: (K, d) or (K, d + 1)."""
        events_BLD = events_BLF[..., : self.width]
        hidden = self.backbone.predict(
            encoder_P, events_BLD, lengths_B, randomness.targets, randomness.dropout
        )
        return self._scoring(hidden)

    def last(self, encoder_P: Tensor, events_BLF: Tensor, lengths_B: Tensor) -> Tensor:
        """What predicts the event after each row, as scored against F: (B, d) or (B, d + 1)."""
        events_BLD = events_BLF[..., : self.width]
        return self._scoring(self.backbone.last(encoder_P, events_BLD, lengths_B))

    def sample_randomness(self, lengths_B: Tensor, generator: Generator) -> StepRandomness:
        """Draws of a training pass over real rows, padded to the longest of them."""
        targets = self.backbone.draw_targets(lengths_B, generator)
        longest = int(lengths_B.max())
        return StepRandomness(targets, self.backbone.dropout(len(lengths_B), longest, generator))

    def _scoring(self, hidden_KD: Tensor) -> Tensor:
        return F.pad(hidden_KD, (0, 1), value=1.0) if self.backbone.biased else hidden_KD

    def _sizes(self) -> list[int]:
        table = 0 if self.frozen is not None else self.n_items * self.width
        bias = self.n_items if self.backbone.biased else 0
        return [self.backbone.n_parameters, table, bias]
