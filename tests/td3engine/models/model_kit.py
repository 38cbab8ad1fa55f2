"""Small models with item ids, and the parts of a model's file as plain bytes."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from td3engine.config import BackboneConfig, DataConfig
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from tests.td3engine.oracles import normal, seeded

WIDTH, HISTORY, READS, ITEMS = 8, 7, 5, 30
DATA = DataConfig(min_user_interactions=2, min_item_interactions=3, max_history=HISTORY)


def make_model(
    name: str, *, n_items: int = ITEMS, reads: int = READS, item_ids: list[str] | None = None
) -> TrainedModel:
    """An untrained model whose every weight is noise, its item bias too."""
    config = BackboneConfig.model_validate({"name": name, "hidden": WIDTH, "inner": WIDTH})
    backbone = build_backbone(config, HISTORY)
    parameters = backbone.initial(seeded(1))
    parameters = parameters + normal(2, len(parameters), std=0.4).float()
    table = normal(3, n_items, WIDTH + int(backbone.biased)).float()
    ids = item_ids if item_ids is not None else [f"i{item}" for item in range(n_items)]
    return TrainedModel(backbone, parameters, table).with_metadata(ids, DATA, reads)


def randomly_read(n_rows: int, longest: int, seed: int = 4) -> list[list[int]]:
    """Histories of 1 to `longest` items, with repeats."""
    draw = seeded(seed)
    lengths = torch.randint(1, longest + 1, (n_rows,), generator=draw).tolist()
    return [torch.randint(0, ITEMS, (length,), generator=draw).tolist() for length in lengths]


@dataclass
class RawFile:
    """A safetensors file taken apart by its own specification, with `struct` and `json` alone.

    Attributes:
        metadata: the header's `__metadata__`.
        tensors: (type, shape, bytes) by name.
    """

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, list[int], bytes]]

    @classmethod
    def read(cls, path: Path) -> "RawFile":
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        body = content[8 + size :]
        return cls(
            metadata,
            {
                name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
                for name, entry in header.items()
            },
        )

    @property
    def description(self) -> dict[str, Any]:
        """The metadata's `model`."""
        description: dict[str, Any] = json.loads(self.metadata["model"])
        return description

    @description.setter
    def description(self, description: dict[str, Any]) -> None:
        self.metadata["model"] = json.dumps(description)

    def write(self, path: Path) -> Path:
        header: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        body = b""
        for name, (dtype, shape, content) in self.tensors.items():
            offsets = [len(body), len(body) + len(content)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            body += content
        head = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + body)
        return path
