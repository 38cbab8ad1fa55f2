"""A distilled summary: its content, its quality, and what can be made from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from td3engine.api.training import Source, train
from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.contract import MANIFEST_FILE
from td3engine.errors import OutputExistsError, UnusableError
from td3engine.evaluation.table import FULL_DATA, SUMMARY
from td3engine.export.sequences import (
    COPIES,
    GUIDANCE,
    TEMPERATURE,
    repeats_by_log,
    sample_sequences,
    train_guide,
)
from td3engine.models.trained_model import TrainedModel
from td3engine.summary.bundle import Bundle, load_bundle, packed_bytes, save_bundle
from td3engine.summary.labelled import AnySummary
from td3engine.summary.soft_sequences import expected_embeddings


class Quality(NamedTuple):
    """NDCG@10 on test, under the protocol that checkpoints were chosen by (`data.validate_by`).

    A summary of a release that had protocol `full` has its figures under that one.

    Attributes:
        summary: of learners on the summary.
        full_data: of the full-data model.
        share: summary / full_data.
    """

    summary: float
    full_data: float
    share: float


class SoftSequenceDataset(Dataset[dict[str, Tensor]]):
    """The synthetic sequences as a map-style dataset, for a custom training loop.

    Element i is a dictionary:

    - `inputs` (zeta, d), float32: the expected item embedding at each position.
    - `targets` (zeta, n), float32: the distribution over items at each position, to be predicted
      from the inputs before it. A causal model skips position 0, which has none.

    Attributes:
        item_embeddings: the item table V, (n, d).
    """

    def __init__(self, factors: AnySummary) -> None:
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

    `len(summary)` is mu, the number of synthetic sequences.

    Attributes:
        factors: U (mu, d1), T (zeta, d2), G (d1, d2, d), V (n, d), and Y (zeta, d2) or None.
        item_ids: the id of each row of V.
        manifest: how the summary was made and how good it is.
    """

    @classmethod
    def load(cls, folder: str | Path) -> "Summary":
        """Read a summary's folder, or its zip, and check it against its checksums.

        Args:
            folder: from `save` or `distill`, or the zip that the service sends.

        Raises:
            BundleError: a file is missing, damaged, or does not fit the others; the message names
                it.
        """
        bundle = load_bundle(Path(folder))
        return cls(bundle.factors, bundle.item_ids, bundle.manifest)

    def save(self, folder: str | Path) -> None:
        """Write the summary's three files, the manifest last.

        Args:
            folder: created if absent.

        Raises:
            OutputExistsError: the folder holds a summary.
        """
        folder = Path(folder)
        if (folder / MANIFEST_FILE).exists():
            raise OutputExistsError(f"{folder} holds a summary already; take another folder")
        save_bundle(folder, self.factors, self.item_ids, self.manifest)

    @property
    def config(self) -> DistillConfig:
        """All settings of the distillation."""
        return self.manifest.config

    @property
    def n_items(self) -> int:
        """Number of items, n."""
        return len(self.item_ids)

    @property
    def length(self) -> int:
        """Positions of a synthetic sequence, zeta."""
        return self.factors.length

    @cached_property
    def bytes(self) -> int:
        """Size of the file that items, labels or factors, and the item table are written to."""
        return packed_bytes(self.factors)

    @property
    def method(self) -> Literal["labelled", "distilled"]:
        """`labelled`: real histories with the teacher's labels, which no outer step improved."""
        return "distilled" if self.manifest.validation.get("outer_step", 1) else "labelled"

    @property
    def quality(self) -> Quality | None:
        """NDCG@10 of learners on the summary and of the full-data model; None if not measured."""
        protocols = {self.config.data.validate_by, "full"}
        ndcg = {
            row["name"]: float(row["ndcg@10"])
            for row in self.manifest.results
            if row["protocol"] in protocols
        }
        summary, full = ndcg.get(SUMMARY), ndcg.get(FULL_DATA)
        return Quality(summary, full, summary / full) if summary is not None and full else None

    def __len__(self) -> int:
        """Number of synthetic sequences, mu."""
        return self.factors.users

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
        """The synthetic sequences as a torch dataset, for a custom training loop."""
        return SoftSequenceDataset(self.factors)

    def sequences(
        self,
        copies: int = COPIES,
        *,
        temperature: float = TEMPERATURE,
        guidance: float | None = GUIDANCE,
        repeats: bool | None = None,
        seed: int = 0,
    ) -> list[list[str]]:
        """Item sequences drawn from the summary, in the log's own ids (docs/exports.md).

        Args:
            copies: sequences drawn from each synthetic sequence.
            temperature: below 1 sharpens the distributions; towards 0 it is the argmax.
            guidance: from 0 to 1, the weight of a learner's scores, which make an item depend on
                those before; None: each position is drawn independently.
            repeats: whether a sequence may hold an item twice; None: if the log's events repeat
                items.
            seed: same seed, machine and settings: same sequences.

        Returns:
            len(self) * copies lists of `length` item ids.

        Raises:
            UnusableError: an argument is out of range, or there are too few items for no repeats.
        """
        guide = None
        if guidance is not None:
            guide = train_guide(self.factors, self.config, weight=guidance, seed=seed)
        rows = sample_sequences(
            self.factors,
            copies=copies,
            temperature=temperature,
            guide=guide,
            repeats=repeats_by_log(self.manifest) if repeats is None else repeats,
            seed=seed,
        )
        return [[self.item_ids[item] for item in row] for row in rows.tolist()]

    def top_items(self, sequence: int, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable items of the input at each position of one synthetic sequence.

        Args:
            sequence: index of the sequence, below `len(self)`.
            k: how many items.

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
        """An HTML table, for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        return f"<table><caption>Distilled summary</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        statistics = self.manifest.statistics
        log = f"{int(statistics.get('interactions', 0)):,} interactions, {self.n_items:,} items"
        facts = [
            ("size", f"{len(self)} sequences of {self.length}, {self.bytes / 1024:,.0f} KiB"),
            ("log", log),
            ("method", self.method),
            ("distilled for", self.manifest.distilled_for),
            ("with", self.config.backbone.name),
        ]
        if self.quality is not None:
            summary, full, share = self.quality
            facts.append(("NDCG@10", f"{summary:.4f}, {share:.0%} of full data ({full:.4f})"))
        return facts
