"""The surrogate objective: what a learner of the outer loop is worth on real windows (section 5).

Cross-entropy of what happened next, and nearness to the teacher, in a form that the mode allows.
Learners that share the teacher's item table have hidden states in the teacher's own space: the mean
squared distance of the two. Learners with a table of their own have not, but they order the same
items: a part of each target is the teacher's distribution over them in place of the next item.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.config import OuterConfig
from td3engine.inner_loop.cuda_graphs import CudaGraph
from td3engine.losses.cross_entropy import mean_score
from td3engine.losses.softmax import mean_expected_score, mean_log_sum_exp
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.training_loss import unseen_cross_entropy
from td3engine.outer_loop.item_sampler import ItemSampler
from td3engine.teacher.training import Trained


@dataclass(frozen=True)
class RealBatch:
    """Real windows and what is asked of them.

    Attributes:
        items: right-padded, int64 (B, L).
        lengths: events in each row, int64 (B).
        draws: the asked events; no dropout.
        rng: of drawn items, where the softmax is sampled.
        weight: each asked event's share of the mean, (K, 1); None: all the same.
    """

    items: Tensor
    lengths: Tensor
    randomness: StepRandomness
    rng: np.random.Generator | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class SurrogateObjective:
    """The objective of learners of one kind.

    Attributes:
        model: the learners.
        teacher: trained on the whole log; its first d table columns are V.
        outer: weights, and what targets compete with.
        sampler: of items that real targets compete with; None: all of them.
    """

    model: Recommender
    teacher: Trained
    outer: OuterConfig
    sampler: ItemSampler | None

    def gradient(self, theta_P: Tensor, batch: RealBatch) -> Tensor:
        """Gradient of the objective to a learner's parameters, (P)."""
        theta = theta_P.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theta, batch), theta)
        return gradient

    def loss(self, theta_P: Tensor, batch: RealBatch) -> Tensor:
        """The objective, once differentiable."""
        encoder_P, table_NF = self.model.parts(theta_P)
        embedded_BLF = F.embedding(batch.items, table_NF)
        hidden_KF = self.model.states(encoder_P, embedded_BLF, batch.lengths, batch.randomness)
        loss = self._of_targets(hidden_KF, embedded_BLF, table_NF, batch)
        if self.model.frozen is None or not self.outer.feature_weight:
            return loss
        apart_KD = (hidden_KF - self._teachers(batch))[:, : self.model.width]
        apart = apart_KD.square()
        mean = apart.mean() if batch.weight is None else (apart.mean(1, True) * batch.weight).sum()
        return loss + self.outer.feature_weight * mean

    def _of_targets(
        self, hidden_KF: Tensor, embedded_BLF: Tensor, table_NF: Tensor, batch: RealBatch
    ) -> Tensor:
        """Mean cross-entropy of the targets."""
        targets, weight = batch.randomness.targets, batch.weight
        if self.outer.among == "unseen":
            return unseen_cross_entropy(hidden_KF, embedded_BLF, table_NF, batch.items, targets)
        if self.sampler is not None:
            assert batch.rng is not None
            targets_K = batch.items[targets.rows, targets.at]
            return self.sampler.cross_entropy(hidden_KF, targets_K, batch.rng).mean()
        # What a cross-entropy has of its target is the target's expected score (I-2).
        score = mean_score(hidden_KF, embedded_BLF[targets.rows, targets.at], weight)
        share = self.outer.teacher_share
        if self.model.frozen is None and share:
            theirs = self._teachers(batch), self.teacher.table
            expected = mean_expected_score(hidden_KF, table_NF, *theirs, weight)
            score = (1 - share) * score + share * expected
        return mean_log_sum_exp(hidden_KF, table_NF, weight) - score

    @torch.no_grad()
    def _teachers(self, batch: RealBatch) -> Tensor:
        """The teacher's hidden states where the learner's are asked for, as scored, (K, f)."""
        read_BLF = F.embedding(batch.items, self.teacher.table)
        return self.model.states(self.teacher.parameters, read_BLF, batch.lengths, batch.randomness)


class RecordedObjective:
    """A surrogate's gradient on batches that are padded to one shape, on a GPU recorded.

    Each place of a batch is asked for, and what is padding weighs nothing: so nothing depends on
    how long its rows are but numbers.

    Args:
        surrogate: of a causal backbone; real targets compete with all items.
        device: where to compute.
        rows, length: of a batch, the most.
    """

    def __init__(
        self, surrogate: SurrogateObjective, device: torch.device, rows: int, length: int
    ) -> None:
        assert surrogate.sampler is None  # a sample is another one each time
        assert surrogate.outer.among == "all"  # others know no weights
        self.surrogate, self.rows, self.length = surrogate, rows, length
        self._graphed = CudaGraph(self._gradient, device)

    def gradient(self, theta_P: Tensor, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """See `SurrogateObjective.gradient`."""
        less = self.rows - len(items_BL)
        items = F.pad(items_BL, (0, self.length - items_BL.shape[1], 0, less))
        (found,) = self._graphed(theta_P, items, F.pad(lengths_B, (0, less)))
        return found.clone()

    def _gradient(self, theta_P: Tensor, items_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor]:
        rows_B = torch.arange(self.rows, device=items_BL.device)
        at_A = torch.arange(1, self.length, device=items_BL.device)
        shape = self.rows, self.length - 1
        targets = TargetPositions(
            rows_B[:, None].expand(shape).flatten(), at_A.expand(shape).flatten()
        )
        counted = (at_A < lengths_B[:, None]).flatten().to(theta_P.dtype)
        weight_K1 = (counted / counted.sum())[:, None]
        batch = RealBatch(items_BL, lengths_B, StepRandomness(targets, None), weight=weight_K1)
        return (self.surrogate.gradient(theta_P, batch),)
