"""Train a backbone on real sequences: the teacher on the whole log, baselines on a part of it.

All positions of a window are targets at once (a window of L events gives L-1 of them), which is
an order of magnitude cheaper per target than the paper's one-target prefix rows; training stops
early on validation NDCG@10 under the `full` protocol (section 8).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from td3engine.backbones import Backbone
from td3engine.config import TeacherConfig
from td3engine.errors import DivergedError
from td3engine.interactions import Split
from td3engine.learner import encode_last, new_table
from td3engine.ranking import evaluate
from td3engine.seeding import Purpose, generator, numpy_generator
from td3engine.sequences import Questions, WindowIndex, gather

WindowsOfEpoch = Callable[[np.random.Generator], WindowIndex]
EARLY_EPOCHS = 30  # the teacher's first epochs, whose encoders learners may start from (section 5)


@dataclass(frozen=True)
class Trained:
    """A model trained on real sequences.

    Attributes:
        parameters: the encoder's flat parameters (P).
        table: the item table (n, d).
        early: encoder parameters after each of the first epochs, (epochs, P).
        validation: best validation NDCG@10.
        seconds: wall time of training up to the best epoch, validation not counted.
    """

    parameters: Tensor
    table: Tensor
    early: Tensor
    validation: float
    seconds: float


class LogTraining:
    """Training on real sequences, an epoch at a time, so that it can be stopped and resumed.

    Args:
        split: the log.
        backbone: untrained.
        config: epochs, batch, Adam, early stopping.
        windows: which windows an epoch trains on.
        asked: the validation questions.
        history: most events that a window feeds the model.
        width: d, of the item table.
        seed: of weights, order and dropout.
        device: where to compute.
        frozen_table: item table that is given and not trained (`shared-items`), or None to train
            one from the start.
    """

    def __init__(
        self,
        split: Split,
        backbone: Backbone,
        config: TeacherConfig,
        windows: WindowsOfEpoch,
        asked: Questions,
        *,
        history: int,
        width: int,
        seed: int,
        device: torch.device,
        frozen_table: Tensor | None = None,
    ) -> None:
        self.split, self.backbone, self.config = split, backbone, config
        self.windows, self.asked, self.seed, self.device = windows, asked, seed, device
        self.history = history
        draw = generator(seed, Purpose.TEACHER_INITIAL, device=device.type)
        self.parameters = backbone.initial(draw).requires_grad_()
        if frozen_table is None:
            self.table = new_table(split.n_items, width, draw).requires_grad_()
            trained = [self.parameters, self.table]
        else:
            self.table, trained = frozen_table, [self.parameters]
        self.optimizer = torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay)
        self.epoch = 0
        self.seconds = 0.0
        self.stale = 0
        self.early: list[Tensor] = []
        self.best: dict[str, Any] = {"validation": -1.0}

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.max_epochs or self.stale >= self.config.patience

    def epochs(self) -> Iterator[float]:
        """Train to the end, yielding the best validation NDCG@10 after each epoch."""
        while not self.finished:
            began = time.perf_counter()
            self._train_epoch()
            self.seconds += time.perf_counter() - began
            self.epoch += 1
            if len(self.early) < EARLY_EPOCHS:
                self.early.append(self.parameters.detach().clone())
            if self.epoch % self.config.validate_every == 0 or self.epoch == self.config.max_epochs:
                self._validate()
            yield max(self.best["validation"], 0.0)

    def result(self) -> Trained:
        """The best model by validation.

        Raises:
            RuntimeError: no epoch has been validated yet.
        """
        if "parameters" not in self.best:
            raise RuntimeError("training has not been validated yet")
        return Trained(early=torch.stack(self.early), **self.best)

    def state(self) -> dict[str, Any]:
        """Everything that training depends on, for a checkpoint."""
        return {
            "parameters": self.parameters.detach(),
            "table": self.table.detach(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "stale": self.stale,
            "early": self.early,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
            if self.table.requires_grad:
                self.table.copy_(state["table"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.stale = state["epoch"], state["seconds"], state["stale"]
        self.early, self.best = list(state["early"]), dict(state["best"])

    def _train_epoch(self) -> None:
        rng = numpy_generator(self.seed, Purpose.TEACHER_EPOCH, self.epoch)
        draw = generator(self.seed, Purpose.TEACHER_EPOCH, self.epoch, self.device.type)
        index = self.windows(rng)
        order = rng.permutation(len(index))
        for first in range(0, len(order), self.config.batch):
            chosen = order[first : first + self.config.batch]
            items, lengths = gather(
                self.split, index.start[chosen], index.end[chosen], self.history + 1
            )
            loss = self._loss(items.to(self.device), lengths.to(self.device), draw)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _loss(self, items_BL: Tensor, lengths_B: Tensor, draw: torch.Generator) -> Tensor:
        inputs, targets = items_BL[:, :-1], items_BL[:, 1:]
        masks = self.backbone.dropout(len(inputs), inputs.shape[1], draw)
        hidden = self.backbone.encode(self.parameters, F.embedding(inputs, self.table), masks)
        real = real_targets(lengths_B, inputs.shape[1])
        return F.cross_entropy(hidden[real] @ self.table.T, targets[real])

    def _validate(self) -> None:
        """Keep the model if it is the best so far."""
        parameters, table = self.parameters.detach(), self.table.detach()
        scorer = encode_last(self.backbone, parameters, table)
        validation = evaluate(scorer, table, self.asked, "full")["ndcg@10"]
        if not torch.isfinite(parameters).all() or not torch.isfinite(table).all():
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


def real_targets(lengths_B: Tensor, positions: int) -> Tensor:
    """Which positions of right-padded windows predict a real event, bool (B, positions)."""
    return torch.arange(positions, device=lengths_B.device) < (lengths_B - 1)[:, None]
