"""A recommender: backbone, item table and item bias, trained as one flat vector theta.

The mode decides who owns the item table. In `shared-items` it is the summary's V, frozen, and theta
holds the encoder. In `from-scratch` theta also holds a table E. An item bias b (BERT4Rec) is always
trained.

Table and bias form one *scoring table* F = [E | b], (n, d + 1). A hidden state h scores items by
[h | 1] F^T, and S F gives expected embeddings and expected biases together: the extra value column
of identity I-2. No loss and no ranking treats a bias apart. Shapes end in f, which is d or d + 1.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from td3engine.losses import softmax
from td3engine.models.backbone import Backbone, TargetPositions

TABLE_STD = 0.02


@dataclass(frozen=True)
class StepRandomness:
    """The random draws of one training pass.

    Attributes:
        targets: the positions that it predicts.
        dropout: its dropout masks; None without dropout.
    """

    targets: TargetPositions
    dropout: Tensor | None


@dataclass(frozen=True)
class Recommender:
    """A backbone with its item table.

    Attributes:
        backbone: the encoder.
        n_items, width: n and d of the item table.
        frozen: the item table (n, d) if it is not trained; None: theta holds one.
        log_weight: added to the items' scores in a loss, (n), if the table is a sample of a larger
            one.
    """

    backbone: Backbone
    n_items: int
    width: int
    frozen: Tensor | None = None
    log_weight: Tensor | None = None

    @classmethod
    def sharing(cls, backbone: Backbone, V_ND: Tensor) -> "Recommender":
        """A recommender over the summary's item table V (n, d), frozen."""
        n_items, width = V_ND.shape
        return cls(backbone, n_items, width, V_ND)

    @property
    def n_parameters(self) -> int:
        """Size of theta, P."""
        return sum(self._sizes())

    def initial(self, generator: Generator) -> Tensor:
        """Fresh theta: the backbone's initial weights, E from N(0, 0.02^2), b zero."""
        return self.with_table(self.backbone.initial(generator), generator)

    def with_table(self, encoder_P: Tensor, generator: Generator) -> Tensor:
        """Theta of these encoder parameters (P), with a fresh table and bias if it has them."""
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
        """Indices into theta, int64, of the encoder and of these items' rows and biases.

        `theta[indices]` is theta of the same recommender over these items alone. The recommender
        must own its table.
        """
        encoder, table, bias = self._sizes()
        device = items_R.device
        rows = encoder + items_R[:, None] * self.width + torch.arange(self.width, device=device)
        biases = encoder + table + (items_R if bias else items_R[:0])
        return torch.cat([torch.arange(encoder, device=device), rows.flatten(), biases])

    def states(
        self, encoder_P: Tensor, events_BLF: Tensor, lengths_B: Tensor, randomness: StepRandomness
    ) -> Tensor:
        """States that predict the target positions, to be scored against F.

        Args:
            encoder_P: the encoder's parameters.
            events_BLF: embedded events, right-padded, (B, L, f).
            lengths_B: events in each row, int64 (B).
            randomness: target positions and dropout.

        Returns:
            (K, f), one state a target position.
        """
        events_BLD = events_BLF[..., : self.width]
        hidden = self.backbone.predict(
            encoder_P, events_BLD, lengths_B, randomness.targets, randomness.dropout
        )
        return self._scoring(hidden)

    def last(self, encoder_P: Tensor, events_BLF: Tensor, lengths_B: Tensor) -> Tensor:
        """States that predict the event after each row, to be scored against F: (B, f)."""
        events_BLD = events_BLF[..., : self.width]
        return self._scoring(self.backbone.last(encoder_P, events_BLD, lengths_B))

    def sample_randomness(self, lengths_B: Tensor, generator: Generator) -> StepRandomness:
        """The draws of a training pass over real rows, padded to the longest of them."""
        targets = self.backbone.draw_targets(lengths_B, generator)
        longest = int(lengths_B.max())
        return StepRandomness(targets, self.backbone.dropout(len(lengths_B), longest, generator))

    def scores_are_small(self, hidden_KD: Tensor) -> bool:
        """Whether exp bears all scores of these states (K, d) by a frozen table; False otherwise,
        and on a GPU."""
        if self.frozen is None or hidden_KD.device.type != "cpu":
            return False
        return softmax.scores_are_small(hidden_KD, self.frozen, *self._largest)

    @cached_property
    def _largest(self) -> tuple[float, float]:
        """The longest row of a frozen table, and the largest log weight."""
        assert self.frozen is not None  # the caller has looked
        weight = 0.0 if self.log_weight is None else float(self.log_weight.max())
        return softmax.longest_row(self.frozen), weight

    def _scoring(self, hidden_KD: Tensor) -> Tensor:
        return F.pad(hidden_KD, (0, 1), value=1.0) if self.backbone.biased else hidden_KD

    def _sizes(self) -> list[int]:
        table = 0 if self.frozen is not None else self.n_items * self.width
        bias = self.n_items if self.backbone.biased else 0
        return [self.backbone.n_parameters, table, bias]
