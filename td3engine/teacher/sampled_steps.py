"""Training steps with a sampled softmax, for logs of many items.

A step needs the parameters of the drawn items and of those in its rows only. It is an ordinary step
of a *smaller recommender*, whose theta is cut out of the whole one and put back after Adam. Adam's
moments of other items do not change until they are drawn (lazy Adam).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.config import TeacherConfig
from td3engine.data.split import Split
from td3engine.inner_loop.adam import LearnerAdam, LearnerState, adam
from td3engine.losses.sampled_softmax import NegativeSampler, sampled_cross_entropy
from td3engine.models.recommender import Recommender, StepRandomness


class SampledSteps:
    """Training steps with a sampled softmax; the recommender must own its item table.

    A step reads and updates the rows of its own items and negatives only. Adam's moments of other
    rows are left as they are, so its cost does not grow with the number of items.

    Args:
        split: the log, by whose item counts negatives are drawn.
        model: backbone and item table.
        config: Adam's settings and the number of negatives.
        theta_P: all parameters, (P).

    Attributes:
        theta: all parameters, (P); updated in place.
        age: how many steps have been made.
    """

    def __init__(
        self, split: Split, model: Recommender, config: TeacherConfig, theta_P: Tensor
    ) -> None:
        self.model, self.theta = model, theta_P
        self.schedule = LearnerAdam(config.lr, config.weight_decay, beta2=config.beta2)
        self.negatives = NegativeSampler(split, min(config.negatives, model.n_items))
        self.first, self.second = torch.zeros_like(theta_P), torch.zeros_like(theta_P)
        self.age = 0

    def step(
        self,
        items_BL: Tensor,
        lengths_B: Tensor,
        randomness: StepRandomness,
        rng: np.random.Generator,
    ) -> None:
        """One step of Adam on a batch of rows, right-padded."""
        negatives_M, log_weight_M = (part.to(items_BL.device) for part in self.negatives.draw(rng))
        # Indices among the R distinct items of this step.
        all_items = torch.cat([items_BL.flatten(), negatives_M])
        items_R, local = all_items.unique(return_inverse=True)
        items = local[: items_BL.numel()].view_as(items_BL)
        where = self.model.entries_of(items_R)
        part = replace(self.model, n_items=len(items_R))

        theta = self.theta[where].requires_grad_()
        encoder_P, table_RF = part.parts(theta)
        hidden_KF = part.states(encoder_P, F.embedding(items, table_RF), lengths_B, randomness)
        targets_K = items[randomness.targets.rows, randomness.targets.at]
        negatives = local[items_BL.numel() :]
        loss_K = sampled_cross_entropy(hidden_KF, targets_K, table_RF, negatives, log_weight_M)
        (gradient,) = torch.autograd.grad(loss_K.mean(), theta)

        before = LearnerState(theta.detach(), self.first[where], self.second[where], self.age)
        after = adam(before, gradient, self.schedule)
        self.theta[where] = after.parameters
        self.first[where], self.second[where] = after.first, after.second
        self.age = after.age

    def state(self) -> dict[str, Any]:
        """All that the next step depends on besides theta, for a checkpoint."""
        return {"first": self.first, "second": self.second, "taken": self.age}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.first, self.second = state["first"], state["second"]
        self.age = state["taken"]
