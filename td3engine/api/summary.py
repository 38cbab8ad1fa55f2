"""A summary in hand: what it holds, how good it is, and what can be done with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from td3engine.api.training import Source, train
from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.contract import MANIFEST_FILE
from td3engine.errors import OutputExistsError, UnusableError
from td3engine.export.sequences import (
    COPIES,
    GUIDANCE,
    TEMPERATURE,
    sample_sequences,
    train_guide,
)
from td3engine.models.trained_model import TrainedModel
from td3engine.summary.bundle import Bundle, load_bundle, save_bundle
from td3engine.summary.soft_sequences import expected_embeddings
from td3engine.summary.tucker import TuckerSummary


class Kept(NamedTuple):
    """NDCG@10 on test under protocol `full`.

    Attributes:
        summary: of learners on the summary.
        full_data: of the full-data model.
        share: of the former in the latter.
    """

    summary: float
    full_data: float
    share: float


class SoftSequenceDataset(Dataset[dict[str, Tensor]]):
    """The synthetic sequences one by one, for a training loop of one's own.

    Item i is `inputs` (zeta, d), the expected item embedding at each position, and `targets`
    (zeta, n), the distribution over items that is to be predicted there from the positions before.
    A causal model has nothing to read before the first position.
    """

    def __init__(self, factors: TuckerSummary) -> None:
        sequences = factors.soft_sequences()
        self.item_embeddings = factors.V
        self._inputs = expected_embeddings(sequences.inputs, factors.V, factors.V)
        self._queries = sequences.targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} synthetic sequences, not one of index {index}")
        targets_TN = (self._queries[index] @ self.item_embeddings.T).softmax(-1)
        return {"inputs": self._inputs[index], "targets": targets_TN}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class Summary(Bundle):
    """A distilled summary with its item ids and its manifest.

    Attributes:
        factors: U, T, G, Y and the item table V.
        item_ids: the id of each row of V.
        manifest: how the summary was made and how good it is.
    """

    @classmethod
    def load(cls, folder: str | Path) -> "Summary":
        """Read a summary's folder and check it against its checksums.

        Raises:
            BundleError: naming the file that is missing or wrong.
        """
        bundle = load_bundle(Path(folder))
        return cls(bundle.factors, bundle.item_ids, bundle.manifest)

    def save(self, folder: str | Path) -> None:
        """Write the summary's three files; the manifest comes last.

        Raises:
            OutputExistsError: the folder holds a summary.
        """
        folder = Path(folder)
        if (folder / MANIFEST_FILE).exists():
            raise OutputExistsError(f"{folder} holds a summary already; take another folder")
        save_bundle(folder, self.factors, self.item_ids, self.manifest)

    @property
    def config(self) -> DistillConfig:
        """All settings that it was made with."""
        return self.manifest.config

    @property
    def n_items(self) -> int:
        """Items of the log after the filter."""
        return len(self.item_ids)

    @property
    def length(self) -> int:
        """Positions of a synthetic sequence, zeta."""
        return len(self.factors.T)

    @property
    def bytes(self) -> int:
        """Size of the factors and of the item table."""
        tensors = (*self.factors.learned, self.factors.V)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def kept(self) -> Kept | None:
        """How much of the full-data model's quality learners reach; None if not measured."""
        figures = {
            row["name"]: float(row["ndcg@10"])
            for row in self.manifest.results
            if row["protocol"] == "full"
        }
        ours, full = figures.get("TD3 summary"), figures.get("full data")
        return Kept(ours, full, ours / full) if ours is not None and full else None

    def __len__(self) -> int:
        """How many synthetic sequences there are, mu."""
        return len(self.factors.U)

    def fit(
        self,
        backbone: BackboneName | None = None,
        mode: Mode = "shared-items",
        *,
        log: Source | None = None,
        seed: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> TrainedModel:
        """Train a model on the summary; see `td3engine.train`."""
        return train(self, backbone, mode, log=log, seed=seed, settings=settings)

    def torch_dataset(self) -> SoftSequenceDataset:
        """The synthetic sequences as a map-style dataset of torch."""
        return SoftSequenceDataset(self.factors)

    def sequences(
        self,
        copies: int = COPIES,
        *,
        temperature: float = TEMPERATURE,
        guidance: float | None = GUIDANCE,
        repeats: bool = False,
        seed: int = 0,
    ) -> list[list[str]]:
        """Item sequences drawn from the summary, in the log's own ids (docs/exports.md).

        Args:
            copies: sequences drawn from each synthetic one.
            temperature: below 1 prefers probable items.
            guidance: weight of a learner that helps to draw; None draws each position by itself.
            repeats: whether an item may come twice in a sequence.
            seed: same seed, machine and settings: same sequences.

        Raises:
            UnusableError: settings that cannot work.
        """
        guide = None
        if guidance is not None:
            guide = train_guide(self.factors, self.config, weight=guidance, seed=seed)
        rows = sample_sequences(
            self.factors,
            copies=copies,
            temperature=temperature,
            guide=guide,
            repeats=repeats,
            seed=seed,
        )
        return [[self.item_ids[item] for item in row] for row in rows.tolist()]

    def top_items(self, sequence: int, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable items that are read at each position of one synthetic sequence.

        Returns:
            For each position, (item id, probability) by falling probability.

        Raises:
            IndexError: there is no such sequence.
            UnusableError: k is not positive.
        """
        if k < 1:
            raise UnusableError(f"k must be positive, not {k}")
        query_TD = self.factors.soft_sequences().inputs[sequence]
        probability, items = (query_TD @ self.factors.V.T).softmax(-1).topk(min(k, self.n_items))
        return [
            [(self.item_ids[item], value) for item, value in zip(row, values, strict=True)]
            for row, values in zip(items.tolist(), probability.tolist(), strict=True)
        ]

    def __repr__(self) -> str:
        return f"Summary({', '.join(f'{name}: {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        return f"<table><caption>Distilled summary</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        statistics = self.manifest.statistics
        log = f"{statistics.get('interactions', 0):,} interactions, {self.n_items:,} items"
        facts = [
            ("size", f"{len(self)} sequences of {self.length}, {self.bytes / 1024:,.0f} KiB"),
            ("log", log),
            ("distilled for", self.manifest.distilled_for),
            ("with", self.config.backbone.name),
        ]
        if self.kept is not None:
            ours, full, share = self.kept
            facts.append(("NDCG@10", f"{ours:.4f}, {share:.0%} of full data ({full:.4f})"))
        return facts
