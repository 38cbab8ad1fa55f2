"""The summary as it is stored and handed on: three files, the same bytes for the same seed.

`summary.safetensors` holds the factors U, T, G, V, and Y if the summary's targets have a temporal
factor of their own (format 2); `items.parquet` the item ids by index;
`manifest.json` how the summary was made, how good it is, and the checksums of the other two.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError

from td3engine import __version__
from td3engine.config import DistillConfig, Mode
from td3engine.config.presets import merge
from td3engine.contract import FACTORS_FILE, ITEMS_FILE, MANIFEST_FILE
from td3engine.errors import BundleError
from td3engine.files import atomic_file
from td3engine.summary.tucker import TuckerSummary

FACTORS = ("U", "T", "G", "V", "Y")


class Manifest(BaseModel):
    """What `manifest.json` says of a summary.

    Attributes:
        fingerprint: sha256 of the normalised log.
        statistics: of the log after the filter.
        distilled_for: the mode of the learners that it was distilled with.
        validation: best validation NDCG@10 (`full`) of teacher and summary, and the outer step.
        results: test figures, rows as in `report.Row` without their seconds.
        numbers_stored: of the learned factors U, T, G (and Y), and of V.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1, 2] = 2
    config: DistillConfig
    fingerprint: str
    statistics: dict[str, int]
    distilled_for: Mode = "shared-items"
    validation: dict[str, float]
    results: list[dict[str, Any]]
    numbers_stored: dict[str, int]
    checksums: dict[str, str] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _settings_of_earlier_releases(cls, said: Any) -> Any:
        """What earlier ones had no setting for was so; it is not today's default."""
        config = said.get("config") if isinstance(said, dict) else None
        if not isinstance(config, dict):
            return said
        before: dict[str, Any] = {"learner": {"beta2": 0.999}}
        if said.get("format") == 1:
            before["summary"] = {"targets": "next"}
        return said | {"config": merge(before, config)}


@dataclass(frozen=True)
class Bundle:
    """A summary with its items (id of each index) and its manifest."""

    factors: TuckerSummary
    item_ids: list[str]
    manifest: Manifest


def save_bundle(
    folder: Path, summary: TuckerSummary, item_ids: list[str], manifest: Manifest
) -> Manifest:
    """Write the three files and return the manifest with checksums and versions filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {
        name: factor.cpu().contiguous()
        for name in FACTORS
        if (factor := getattr(summary, name)) is not None
    }
    with atomic_file(folder / FACTORS_FILE) as file:
        file.write(safetensors.torch.save(factors, {"format": f"td3-summary-{manifest.format}"}))
    items = pa.table({"index": np.arange(len(item_ids), dtype=np.int32), "item_id": item_ids})
    with atomic_file(folder / ITEMS_FILE) as file:
        pq.write_table(items, file, compression="zstd")
    complete = manifest.model_copy(
        update={
            "checksums": {name: _sha256(folder / name) for name in (FACTORS_FILE, ITEMS_FILE)},
            "versions": {
                "td3engine": __version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "pyarrow": pa.__version__,
                "python": platform.python_version(),
            },
        }
    )
    text = json.dumps(complete.model_dump(mode="json"), indent=2, sort_keys=True)
    # The manifest comes last: a folder that has one holds a finished summary.
    with atomic_file(folder / MANIFEST_FILE) as file:
        file.write(f"{text}\n".encode())
    return complete


def load_bundle(folder: Path, device: torch.device | None = None) -> Bundle:
    """Read a summary and check it against its own checksums.

    Raises:
        BundleError: naming the file that is missing or wrong.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        if set(manifest.checksums) != {FACTORS_FILE, ITEMS_FILE}:
            raise BundleError(f"{MANIFEST_FILE} has checksums of {sorted(manifest.checksums)}")
        for name, expected in manifest.checksums.items():
            if _sha256(folder / name) != expected:
                raise BundleError(f"{folder / name} is not the file that its manifest describes")
        factors = safetensors.torch.load_file(folder / FACTORS_FILE)
        item_ids = pq.read_table(folder / ITEMS_FILE).column("item_id").to_pylist()
        U, T, G, V = (factors[name] for name in FACTORS[:4])
        summary = TuckerSummary(U, T, G, V, factors.get("Y"))
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename} is missing: not a summary's folder") from error
    except (ValidationError, SafetensorError, pa.ArrowException, KeyError) as error:
        raise BundleError(f"{folder} does not hold a summary that can be read: {error}") from error
    if (manifest.config.summary.targets == "own") != (summary.Y is not None):
        raise BundleError(f"{folder}: the factors do not have the targets that the manifest says")
    if len(item_ids) != len(summary.V):
        raise BundleError(f"{folder}: {len(item_ids)} item ids for {len(summary.V)} items")
    return Bundle(summary.to(device or torch.device("cpu")), item_ids, manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
