"""The surrogate objective of the outer loop: a learner's loss on real windows (section 5).

It is the cross-entropy of the next items, and nearness to the teacher in a form that depends on the
mode. Learners that share the teacher's item table have hidden states in the teacher's space: the
mean squared distance of the two is added. Learners with a table of their own order the same items:
a part of each target is the teacher's distribution over them in place of the next item.
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
from td3engine.teacher.training import TrainedOnLog


@dataclass(frozen=True)
class RealBatch:
    """Real windows and their target positions.

    Attributes:
        items: right-padded, int64 (B, L).
        lengths: events in each row, int64 (B).
        randomness: target positions; no dropout.
        rng: draws the items of a sampled softmax.
        weight: each target's share of the mean, (K, 1); None: all the same.
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
        outer: weights, and the items that targets compete with.
        sampler: draws the items that real targets compete with; None: all items.
    """

    model: Recommender
    teacher: TrainedOnLog
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
        # A cross-entropy depends on its target by the target's expected score (I-2).
        score = mean_score(hidden_KF, embedded_BLF[targets.rows, targets.at], weight)
        share = self.outer.teacher_share
        if self.model.frozen is None and share:
            theirs = self._teachers(batch), self.teacher.model.table
            expected = mean_expected_score(hidden_KF, table_NF, *theirs, weight)
            score = (1 - share) * score + share * expected
        return mean_log_sum_exp(hidden_KF, table_NF, weight) - score

    @torch.no_grad()
    def _teachers(self, batch: RealBatch) -> Tensor:
        """The teacher's hidden states at the target positions, as scored, (K, f)."""
        events_BLF = F.embedding(batch.items, self.teacher.model.table)
        states = self.model.states
        return states(self.teacher.model.parameters, events_BLF, batch.lengths, batch.randomness)


class RecordedObjective:
    """The objective's gradient on batches that are padded to one shape, recorded on a GPU.

    Every position of a batch is a target, and padding has weight zero. So the lengths of its rows
    are data, and no shape depends on them.

    Args:
        objective: of a causal backbone; real targets compete with all items.
        device: where to compute.
        rows, length: the largest sizes of a batch.
    """

    def __init__(
        self, objective: SurrogateObjective, device: torch.device, rows: int, length: int
    ) -> None:
        assert objective.sampler is None  # a sample differs from batch to batch
        assert objective.outer.among == "all"  # the other loss takes no weights
        self.objective, self.rows, self.length = objective, rows, length
        self._graph = CudaGraph(self._gradient, device)

    def gradient(self, theta_P: Tensor, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """See `SurrogateObjective.gradient`."""
        missing = self.rows - len(items_BL)
        items = F.pad(items_BL, (0, self.length - items_BL.shape[1], 0, missing))
        (gradient_P,) = self._graph(theta_P, items, F.pad(lengths_B, (0, missing)))
        return gradient_P.clone()

    def _gradient(self, theta_P: Tensor, items_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor]:
        rows_B = torch.arange(self.rows, device=items_BL.device)
        at_A = torch.arange(1, self.length, device=items_BL.device)
        shape = self.rows, self.length - 1
        targets = TargetPositions(
            rows_B[:, None].expand(shape).flatten(), at_A.expand(shape).flatten()
        )
        is_target = (at_A < lengths_B[:, None]).flatten().to(theta_P.dtype)
        weight_K1 = (is_target / is_target.sum())[:, None]
        batch = RealBatch(items_BL, lengths_B, StepRandomness(targets, None), weight=weight_K1)
        return (self.objective.gradient(theta_P, batch),)
