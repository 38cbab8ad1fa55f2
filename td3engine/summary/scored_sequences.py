"""Sequences for learners that are held to scores: inputs, and beside each a target's query.

The synthetic tensor has one row a position, [input | query]: what the position's input is embedded
from (`soft_sequences`, or an item), and the d numbers of its target. A target is never embedded, so
an input's derivatives are all that the item table has to do with.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.errors import ConfigError
from td3engine.losses.score_distance import ItemProducts, centred
from td3engine.summary.soft_sequences import EmbeddingPasses, SoftEmbedding

LARGEST_INDEX = 2**24  # float32 holds all whole numbers up to this one


@dataclass(frozen=True)
class ItemInputs:
    """`SoftEmbedding` of inputs that are items. Synthetic tensor: their indices (mu, zeta, 1).

    Attributes:
        items: int64 (mu, zeta).
        n_items: n, at most `LARGEST_INDEX`: an index is one of the tensor's numbers.

    Raises:
        ConfigError: there are more items.
    """

    items: Tensor
    n_items: int

    def __post_init__(self) -> None:
        if self.n_items > LARGEST_INDEX:
            raise ConfigError(
                f"summary.inputs 'items' can tell {LARGEST_INDEX:,} items apart, there are "
                f"{self.n_items:,}: a higher data.min_item_interactions leaves fewer"
            )

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        """The indices; the queries only say which type of number they have to be."""
        return self.items[..., None].to(C_UTD.dtype)

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        return F.embedding(batch[..., 0].long(), table_NF)

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        return _ItemPasses(batch, table_ND)


class _ItemPasses:
    def __init__(self, batch: Tensor, table_ND: Tensor) -> None:
        self.batch, self.items, self.table = batch, batch[..., 0].long(), table_ND

    def forward(self) -> Tensor:
        return F.embedding(self.items, self.table)

    def backward(self, to_X: Tensor) -> Tensor:
        flat = self.items.flatten(), to_X.flatten(0, 1)
        return torch.zeros_like(self.table).index_add_(0, *flat)

    def jvp(self, table_ND: Tensor) -> Tensor:
        return F.embedding(self.items, table_ND)

    def backward_jvp(self, to_X: Tensor) -> tuple[Tensor, Tensor]:
        return self.backward(to_X), torch.zeros_like(self.batch)


@dataclass(frozen=True)
class InputsWithTargets:
    """`SoftEmbedding` of inputs, whose synthetic tensor has the targets' queries beside them.

    Attributes:
        inputs: embeds the inputs.
        length: zeta.
        V: the table that queries are scored against, (n, d).
    """

    inputs: SoftEmbedding
    length: int
    V: Tensor

    @cached_property
    def centred_table(self) -> Tensor:
        """V less its mean row, (n, d)."""
        return centred(self.V)

    @cached_property
    def shared_products(self) -> ItemProducts:
        """For learners that score by V too."""
        product = self.centred_table.T @ self.centred_table / len(self.V)
        return ItemProducts(product, product, product)

    def products(self, own_NF: Tensor) -> ItemProducts:
        """For learners with this centred table, (n, f), of their own or with an item bias."""
        return ItemProducts.of(own_NF, self.centred_table, self.shared_products.other)

    def synthetic(self, C_UTD: Tensor) -> Tensor:
        """[input | target's query], (mu, zeta, .), from queries as `SoftSequences` stacks them."""
        inputs = self.inputs.synthetic(C_UTD[:, : self.length])
        return torch.cat([inputs, C_UTD[:, -self.length :]], -1)

    def targets(self, batch: Tensor) -> Tensor:
        """The queries of a batch's targets, (B, zeta, d)."""
        return batch[..., -self.V.shape[1] :]

    def read(self, batch: Tensor, table_NF: Tensor) -> Tensor:
        """Embedded inputs, (B, zeta, f)."""
        return self.inputs.read(self._of_inputs(batch), table_NF)

    def passes(self, batch: Tensor, table_ND: Tensor) -> EmbeddingPasses:
        """Of the inputs."""
        return self.inputs.passes(self._of_inputs(batch), table_ND)

    def _of_inputs(self, batch: Tensor) -> Tensor:
        return batch[..., : -self.V.shape[1]]
