"""The files of a summary: the same seed gives the same bytes.

| file | content |
|---|---|
| `summary.safetensors` | items and labels, or factors U, T, G (and Y); and the item table V |
| `items.parquet` | item ids, by index |
| `manifest.json` | settings, quality, and the checksums of the other two |

Format 3 packs each tensor (`packing`) and has summaries of items and labels; format 2 has factors
in float32, format 1 those without Y. All are read, format 3 is written.
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
from td3engine.config import EARLIER_DATA, EARLIER_DROPOUT, DistillConfig, Mode
from td3engine.config.presets import merge
from td3engine.contract import FACTORS_FILE, ITEMS_FILE, MANIFEST_FILE
from td3engine.errors import BundleError
from td3engine.files import atomic_file, ordered_header
from td3engine.summary import packing
from td3engine.summary.folder import summary_folder
from td3engine.summary.labelled import AnySummary, LabelledSummary
from td3engine.summary.tucker import TuckerSummary

FACTORS = ("U", "T", "G", "V", "Y")
LABELLED = ("items", "labels", "V")


class Manifest(BaseModel):
    """The content of `manifest.json`.

    Attributes:
        format: version of the file layout.
        config: all settings.
        fingerprint: of the log, `Interactions.fingerprint`.
        statistics: of the log, `data.split.SplitStatistics`.
        distilled_for: mode of the learners that the summary was distilled with.
        validation: best validation NDCG@10 of teacher and summary, and the outer step.
        results: test metrics, as `evaluation.table.Row` without wall times.
        numbers_stored: sizes of the trained factors U, T, G (and Y), and of V.
        checksums: sha256 of the other files, by name.
        versions: of this package and of what it computes with.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1, 2, 3] = 3
    config: DistillConfig
    fingerprint: str
    statistics: dict[str, int | float | str]
    distilled_for: Mode = "shared-items"
    validation: dict[str, float]
    results: list[dict[str, Any]]
    numbers_stored: dict[str, int]
    checksums: dict[str, str] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_earlier_releases(cls, content: Any) -> Any:
        """Settings that an earlier release did not have get the value that it computed with."""
        config = content.get("config") if isinstance(content, dict) else None
        if not isinstance(config, dict):
            return content
        implied: dict[str, Any] = {
            "learner": {"beta2": 0.999},
            "teacher": {"counting_share": 0.0},
            "data": EARLIER_DATA,
        }
        if content.get("format") in (1, 2):
            targets = {"targets": "next"} if content["format"] == 1 else {}
            implied["summary"] = {"inputs": "soft", "table_step": 0, "label_step": 0} | targets
            dropout = config.get("backbone", {}).get("dropout", EARLIER_DROPOUT)
            implied["learner"] |= {"loss": "cross-entropy", "dropout": dropout}
            implied["outer"] = {"support": "all"}
        return content | {"config": merge(implied, config)}


@dataclass(frozen=True)
class Bundle:
    """A summary with its item ids and its manifest.

    Attributes:
        factors: items, labels and V, or U, T, G, V, and Y if there is one.
        item_ids: the id of each row of V.
        manifest: how the summary was made and how good it is.
    """

    factors: AnySummary
    item_ids: list[str]
    manifest: Manifest


def save_bundle(
    folder: Path, summary: AnySummary, item_ids: list[str], manifest: Manifest
) -> Manifest:
    """Write the three files, each whole or not at all; returns the manifest as written.

    Args:
        folder: created if absent.
        summary: the summary.
        item_ids: the id of each row of V.
        manifest: without checksums and versions, which are filled in; its format is the one that is
            written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FACTORS_FILE) as file:
        file.write(_packed(summary))
    with atomic_file(folder / ITEMS_FILE) as file:
        ids = pa.table({"item_id": pa.array(item_ids, pa.string())})
        pq.write_table(ids, file, compression="zstd", compression_level=19, use_dictionary=False)
    complete = manifest.model_copy(
        update={
            "format": 3,
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
    # The manifest comes last: a folder that has one holds a finished summary.
    with atomic_file(folder / MANIFEST_FILE) as file:
        file.write(_text(complete).encode())
    return complete


def _text(manifest: Manifest) -> str:
    """The manifest as JSON, a line a row of results: indented, these would be most of a bundle."""
    content = manifest.model_dump(mode="json")
    rows = [
        json.dumps({key: _short(value) for key, value in row.items()}, separators=(",", ":"))
        for row in content.pop("results")
    ]
    head = json.dumps(content, indent=1, sort_keys=True).removesuffix("\n}")
    results = "".join(f"\n  {row}," for row in rows).removesuffix(",")
    return f'{head},\n "results": [{results}\n ]\n}}\n'


def _short(value: Any) -> Any:
    """A figure to six decimals: more than seeds agree on."""
    return round(value, 6) if isinstance(value, float) else value


def load_bundle(folder: Path, device: torch.device | None = None) -> Bundle:
    """Read a summary's folder, or its zip, and check it against its checksums.

    Args:
        folder: of the summary, or the zip that the service sends.
        device: where the factors go; None: the CPU.

    Raises:
        BundleError: a file is missing, damaged, or does not fit the others; the message names it.
    """
    with summary_folder(folder) as unpacked:
        return _load(unpacked, folder, device or torch.device("cpu"))


def _load(folder: Path, named: Path, device: torch.device) -> Bundle:
    """`load_bundle` of a folder that errors call `named`."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        if set(manifest.checksums) != {FACTORS_FILE, ITEMS_FILE}:
            raise BundleError(f"{MANIFEST_FILE} has checksums of {sorted(manifest.checksums)}")
        for name, expected in manifest.checksums.items():
            if _sha256(folder / name) != expected:
                raise BundleError(f"{named / name} is not the file that its manifest describes")
        summary = _unpacked(folder / FACTORS_FILE, manifest)
        item_ids = pq.read_table(folder / ITEMS_FILE).column("item_id").to_pylist()
    except BundleError:  # a ValueError too
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = named / Path(error.filename).name
        raise BundleError(f"{missing} is missing: not a summary's folder") from error
    except ValidationError as error:
        raise BundleError(f"{named / MANIFEST_FILE} is broken: {_first_fault(error)}") from error
    except (SafetensorError, pa.ArrowException, KeyError, ValueError) as error:
        raise BundleError(f"{named} does not hold a summary that can be read: {error}") from error
    _check_fit(summary, item_ids, manifest, named)
    return Bundle(summary.to(device), item_ids, manifest)


def _check_fit(summary: AnySummary, item_ids: list[str], manifest: Manifest, named: Path) -> None:
    """Raise BundleError unless the parts of a summary fit each other."""
    if isinstance(summary, TuckerSummary):
        own = manifest.config.summary.targets == "own"
        if own != (summary.Y is not None):
            raise BundleError(
                f"{named}: the factors do not have the targets that the manifest says"
            )
    elif summary.items.numel() and int(summary.items.max()) >= len(summary.V):
        raise BundleError(f"{named}: a sequence has an item that is not in the item table")
    if len(item_ids) != len(summary.V):
        raise BundleError(f"{named}: {len(item_ids)} item ids for {len(summary.V)} items")


def _first_fault(error: ValidationError) -> str:
    """What is wrong with a manifest, in one line."""
    first, *more = error.errors(include_url=False)
    where = ".".join(map(str, first["loc"]))
    others = f" (and {len(more)} more)" if more else ""
    return f"{where}: {first['msg']}{others}" if where else f"{first['msg']}{others}"


def packed_bytes(summary: AnySummary) -> int:
    """Size of the file that a summary's tensors are written to."""
    return len(_packed(summary))


def _packed(summary: AnySummary) -> bytes:
    names = LABELLED if isinstance(summary, LabelledSummary) else FACTORS
    packed, about = {}, {}
    for name in names:
        if (tensor := getattr(summary, name)) is not None:
            data, about[name] = packing.pack(tensor)
            packed[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    header = {"format": "td3-summary-3", "tensors": packing.describe(about)}
    return ordered_header(safetensors.torch.save(packed, header))


def _unpacked(path: Path, manifest: Manifest) -> AnySummary:
    tensors = safetensors.torch.load_file(path)
    if manifest.format == 3:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["tensors"])
        if not isinstance(about, dict):
            raise BundleError(f"{path}: its header does not describe its tensors")
        tensors = {
            name: packing.unpack(data.numpy().tobytes(), about[name])
            for name, data in tensors.items()
        }
    if manifest.config.summary.inputs == "items":
        items, labels, V = (tensors[name] for name in LABELLED)
        types = [tensor.dtype for tensor in (items, labels, V)]
        tables = items.ndim == V.ndim == 2 and types == [torch.int64, torch.float32, torch.float32]
        if not tables or labels.shape != (len(items), items.shape[1] - 1, V.shape[1]):
            raise BundleError(f"{path}: items, labels and item table do not fit together")
        return LabelledSummary(items, labels, V, manifest.config.summary.sharpness)
    U, T, G, V = (tensors[name] for name in FACTORS[:4])
    return TuckerSummary(U, T, G, V, tensors.get("Y"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
