"""Training of a backbone on real sequences, an epoch at a time.

All positions of a window are targets at once: a window of L events has L - 1 targets. Per target
this is an order of magnitude cheaper than the paper's prefix rows, which have one target each.
Training stops early on validation NDCG@10 (method, section 1). Targets are partly what counting
models expect (`labelled_loss`). Logs of many items use a sampled softmax (`sampled_steps`), without
these labels.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from td3engine.config import TeacherConfig, softmax_over
from td3engine.counting.labels import CountingLabels
from td3engine.data.split import Split
from td3engine.data.windows import WindowIndex, batches_of_like_length
from td3engine.errors import DivergedError
from td3engine.inner_loop.adam import BETA1
from td3engine.models.backbone import Backbone
from td3engine.models.recommender import Recommender, StepRandomness
from td3engine.models.sequences import padded_sequences
from td3engine.models.trained_model import TrainedModel
from td3engine.models.training_loss import real_loss
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import validation_ndcg
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.teacher.labelled_loss import labelled_loss
from td3engine.teacher.sampled_steps import SampledSteps

WindowsOfEpoch = Callable[[np.random.Generator], WindowIndex]
"""An epoch's random numbers -> the windows that it trains on."""

EARLY_EPOCHS = 30  # first epochs whose encoders learners may start from (method, section 5)


@dataclass(frozen=True)
class TrainedOnLog:
    """A model trained on real sequences.

    Attributes:
        model: of the best epoch by validation.
        early: encoder parameters after each of the first epochs, (epochs, P).
        validation: best validation NDCG@10.
        seconds: wall time of training up to the best epoch, without validation.
    """

    model: TrainedModel
    early: Tensor
    validation: float
    seconds: float

    def state(self) -> dict[str, Any]:
        """All fields, for a checkpoint."""
        return {
            "parameters": self.model.parameters,
            "table": self.model.table,
            "early": self.early,
            "validation": self.validation,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], backbone: Backbone) -> "TrainedOnLog":
        """The inverse of `state()`, for a model with this backbone."""
        model = TrainedModel(backbone, state["parameters"], state["table"])
        return cls(model, state["early"], state["validation"], state["seconds"])


class FullSteps:
    """Training steps with a softmax over all items.

    Args:
        model: backbone and item table.
        config: Adam's settings.
        theta_P: all parameters, (P).
        labels: of counting models; None: targets are next items.

    Attributes:
        theta: all parameters, (P); updated in place.
    """

    def __init__(
        self,
        model: Recommender,
        config: TeacherConfig,
        theta_P: Tensor,
        labels: CountingLabels | None = None,
    ) -> None:
        self.model, self.theta = model, theta_P.requires_grad_()
        self.labels = labels
        self.optimizer = torch.optim.Adam(
            [self.theta],
            lr=config.lr,
            betas=(BETA1, config.beta2),
            weight_decay=config.weight_decay,
        )

    def step(
        self,
        items_BL: Tensor,
        lengths_B: Tensor,
        randomness: StepRandomness,
        _rng: np.random.Generator,
    ) -> None:
        """One step of Adam on a batch of rows, right-padded."""
        batch = self.model, self.theta, items_BL, lengths_B, randomness
        loss = labelled_loss(*batch, self.labels) if self.labels else real_loss(*batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on besides theta, for a checkpoint."""
        return self.optimizer.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.optimizer.load_state_dict(state)


class LogTraining:
    """Training on real sequences, which can be stopped and resumed after each epoch.

    Args:
        split: the log.
        model: backbone and item table; a frozen table is not trained.
        config: epochs, batch, Adam, early stopping.
        windows: the windows that an epoch trains on.
        holdout: the validation set.
        seed: of weights, order and dropout.
        device: where to compute.
        labels: of counting models, in targets under a full softmax; None: none.
    """

    def __init__(
        self,
        split: Split,
        model: Recommender,
        config: TeacherConfig,
        windows: WindowsOfEpoch,
        holdout: HoldoutSet,
        *,
        seed: int,
        device: torch.device,
        labels: CountingLabels | None = None,
    ) -> None:
        self.split, self.model, self.config = split, model, config
        self.windows, self.holdout, self.seed, self.device = windows, holdout, seed, device
        draw = generator(seed, Purpose.TEACHER_INITIAL, device=device.type)
        self.theta = model.initial(draw)
        # A frozen table has no rows to update.
        sampled = model.frozen is None and softmax_over(model.n_items, config.softmax) == "sampled"
        self.steps: FullSteps | SampledSteps = (
            SampledSteps(split, model, config, self.theta)
            if sampled
            else FullSteps(model, config, self.theta, labels)
        )
        self.epoch = 0
        self.seconds = 0.0
        self.stale = 0
        self.early: list[Tensor] = []
        self.best: dict[str, Any] = {"validation": -1.0}

    @property
    def finished(self) -> bool:
        """Whether all epochs are over, or early stopping has ended them."""
        return self.epoch >= self.config.max_epochs or self.stale >= self.config.patience

    def epochs(self) -> Iterator[float]:
        """Train to the end; yields the best validation NDCG@10 so far after each epoch.

        Raises:
            DivergedError: parameters are no longer finite.
        """
        while not self.finished:
            began = time.perf_counter()
            self._train_epoch()
            self.seconds += time.perf_counter() - began
            self.epoch += 1
            if len(self.early) < EARLY_EPOCHS:
                self.early.append(self.model.parts(self.theta.detach())[0].clone())
            if self.epoch % self.config.validate_every == 0 or self.epoch == self.config.max_epochs:
                self._validate()
            yield max(self.best["validation"], 0.0)

    def result(self) -> TrainedOnLog:
        """The best model by validation.

        Raises:
            RuntimeError: no epoch has been validated.
        """
        if "parameters" not in self.best:
            raise RuntimeError("no epoch has been validated")
        state = {"early": torch.stack(self.early), **self.best}
        return TrainedOnLog.from_state(state, self.model.backbone)

    def state(self) -> dict[str, Any]:
        """All that training depends on, for a checkpoint."""
        return {
            "theta": self.theta.detach(),
            "optimizer": self.steps.state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "stale": self.stale,
            "early": self.early,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            self.theta.copy_(state["theta"])
        self.steps.restore(state["optimizer"])
        self.epoch, self.seconds, self.stale = state["epoch"], state["seconds"], state["stale"]
        self.early, self.best = list(state["early"]), dict(state["best"])

    def randomness(self, lengths_B: Tensor, draw: torch.Generator) -> StepRandomness:
        """Target positions and dropout of a training pass."""
        return self.model.sample_randomness(lengths_B, draw)

    def _train_epoch(self) -> None:
        rng = numpy_generator(self.seed, Purpose.TEACHER_EPOCH, self.epoch)
        draw = generator(self.seed, Purpose.TEACHER_EPOCH, self.epoch, self.device.type)
        index = self.windows(rng)
        for batch in batches_of_like_length(index, self.config.batch, rng):
            items, lengths = padded_sequences(self.split, index.start[batch], index.end[batch])
            items, lengths = items.to(self.device), lengths.to(self.device)
            self.steps.step(items, lengths, self.randomness(lengths, draw), rng)

    def _validate(self) -> None:
        """Keep the model if it is the best so far."""
        parameters, table = self.model.parts(self.theta.detach())
        model = TrainedModel(self.model.backbone, parameters, table)
        validation = validation_ndcg(model, self.holdout)
        if not torch.isfinite(self.theta).all():
            raise DivergedError(f"training on real sequences diverged in epoch {self.epoch}")
        if validation > self.best["validation"]:
            self.stale = 0
            self.best = {
                "parameters": parameters.clone(),
                "table": table.clone(),
                "validation": validation,
                "seconds": self.seconds,
            }
        else:
            self.stale += 1
