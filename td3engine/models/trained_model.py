"""A model with its weights: the result of every training, and what a user saves and serves."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from td3engine.config import DataConfig
from td3engine.errors import UnusableError
from td3engine.models.backbone import Backbone
from td3engine.models.model_file import ModelContent, ModelDescription, read_model, write_model
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone

ENCODED_AT_ONCE = 1024
ATTENDED_AT_ONCE = 2**24  # pairs of positions; reached by histories of more than 128 events

Unknown = Literal["raise", "drop"]


class UnknownItemError(UnusableError):
    """A history holds an unknown item, or no known one."""

    code = "unknown_item"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained recommender. It scores items by h F^T, where h is its state after a history.

    Attributes:
        backbone: the encoder, which knows its own configuration.
        parameters: the encoder's flat parameters (P).
        table: the scoring table F, (n, d), or (n, d + 1) with the item bias last.
        reads: longest history that it reads; only the last `reads` events count.
        item_ids: the id of each row of the table; empty if unknown.
        data: filter of the log that it was made from; None if unknown.
    """

    backbone: Backbone
    parameters: Tensor
    table: Tensor
    reads: int = 0
    item_ids: Sequence[str] = field(default=(), repr=False)
    data: DataConfig | None = None

    def __post_init__(self) -> None:
        if not self.reads:
            object.__setattr__(self, "reads", self.backbone.history)

    def __repr__(self) -> str:
        config = self.backbone.config
        return (
            f"TrainedModel({config.name}, {len(self.table):,} items, width {config.hidden}, "
            f"reads {self.reads} events, {self.parameters.numel():,} encoder parameters)"
        )

    @property
    def n_items(self) -> int:
        """How many items it scores."""
        return len(self.table)

    def with_metadata(
        self, item_ids: Sequence[str], data: DataConfig, reads: int
    ) -> "TrainedModel":
        """The same model with its item ids, its log's filter and the longest history it reads."""
        return replace(self, item_ids=item_ids, data=data, reads=reads)

    def to(self, device: torch.device) -> "TrainedModel":
        """The same model on another device."""
        return replace(self, parameters=self.parameters.to(device), table=self.table.to(device))

    @torch.no_grad()
    def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States after histories, to be scored against F.

        Args:
            items_BL: item indices, right-padded, int64 (B, L).
            lengths_B: events in each row, at least one, int64 (B).

        Returns:
            (B, f), on the model's device.
        """
        states_BF = self.table.new_empty(len(items_BL), self.table.shape[1])
        # Rows of like length go together, since a chunk is as wide as its longest row.
        longest = max(1, items_BL.shape[1])
        at_once = min(ENCODED_AT_ONCE, max(1, ATTENDED_AT_ONCE // longest**2))
        for rows in lengths_B.argsort(stable=True).split(at_once):
            lengths = lengths_B[rows].to(self.table.device)
            items = items_BL[rows, : int(lengths.max())].to(self.table.device)
            states_BF[rows] = self._recommender.last(self.parameters, self.table[items], lengths)
        return states_BF

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        unknown: Unknown = "raise",
    ) -> list[list[str]]:
        """The k most probable next items of each history, best first.

        Args:
            histories: item ids of each user, oldest first.
            k: how many items; fewer if a user has seen nearly all.
            exclude_seen: leave out the items of the history.
            unknown: `raise` on ids that the model does not know, or `drop` them.

        Raises:
            UnknownItemError: an unknown id under `raise`, or a history without any known item; with
                the position of the history.
            UnusableError: the model has no item ids, k is not positive, `unknown` is
                neither word, or a history is one text.
        """
        if k < 1:
            raise UnusableError(f"k must be positive, not {k}")
        if unknown not in get_args(Unknown):
            raise UnusableError(f"unknown must be one of {get_args(Unknown)}, not {unknown!r}")
        self._require_item_ids()
        rows = [self._indices(nth, history, unknown) for nth, history in enumerate(histories)]
        if not rows:
            return []
        recent = [row[-self.reads :] for row in rows]
        lengths_B = torch.tensor([len(row) for row in recent])
        items_BL = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.int64)
        for padded, row in zip(items_BL, recent, strict=True):
            padded[: len(row)] = torch.tensor(row)
        recommendations = []
        for state_F, row in zip(self.states(items_BL, lengths_B), rows, strict=True):
            scores_N = self.table @ state_F
            seen = sorted(set(row)) if exclude_seen else []
            scores_N[seen] = -torch.inf
            best = scores_N.topk(min(k, len(scores_N) - len(seen))).indices.tolist()
            recommendations.append([self.item_ids[item] for item in best])
        return recommendations

    def save(self, path: str | Path) -> None:
        """Write the model as one file, whole or not at all (docs/model-format.md).

        Raises:
            UnusableError: the model has no item ids.
            UnusableError: there is no such folder.
        """
        self._require_item_ids()
        description = ModelDescription(
            backbone=self.backbone.config,
            history=self.backbone.history,
            reads=self.reads,
            data=self.data,
        )
        content = ModelContent(description, self.parameters, self.table, self.item_ids)
        write_model(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "TrainedModel":
        """Read a model that `save` wrote.

        Raises:
            ModelFileError: the file is something else, damaged, or of another format.
            FileNotFoundError: there is no such file.
        """
        description, parameters, table, item_ids = read_model(Path(path))
        backbone = build_backbone(description.backbone, description.history)
        model = cls(backbone, parameters, table, description.reads, item_ids, description.data)
        return model.to(torch.device(device))

    @cached_property
    def _recommender(self) -> Recommender:
        width = self.table.shape[1] - int(self.backbone.biased)
        return Recommender(self.backbone, len(self.table), width)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def _require_item_ids(self) -> None:
        if len(self.item_ids) != len(self.table):
            raise UnusableError("this model has no item ids")
        if len(self._index) != len(self.table):
            raise UnusableError("an item id of this model occurs twice")

    def _indices(self, nth: int, history: Sequence[str], unknown: Unknown) -> list[int]:
        if isinstance(history, str):
            raise UnusableError(f"history {nth} is one text, not a list of item ids: {history!r}")
        indices = [self._index.get(item_id) for item_id in history]
        known = [index for index in indices if index is not None]
        if len(known) < len(indices) and unknown == "raise":
            first_unknown = history[indices.index(None)]
            raise UnknownItemError(
                f"history {nth} holds {first_unknown!r}, which is none of the model's "
                f"{self.n_items:,} items (unknown='drop' leaves such items out)"
            )
        if not known:
            raise UnknownItemError(f"history {nth} holds no item that the model knows")
        return known
