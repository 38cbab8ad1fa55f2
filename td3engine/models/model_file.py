"""The file of a trained model: safetensors that describe themselves (docs/model-format.md).

| tensor | content |
|---|---|
| `encoder.NAME` | each of the backbone's parameters, float32 |
| `items` | item table, float32 (n, d) |
| `item_bias` | item bias, float32 (n), if the backbone has one |
| `item_ids` | all item ids as UTF-8 text without separators, uint8 |
| `item_id_ends` | end of each id within `item_ids`, int64 (n) |

The header's metadata holds `format` and `model`, the JSON of a `ModelDescription`. A file holds no
code. Every tensor is validated before it is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from td3engine.config import BackboneConfig, DataConfig
from td3engine.errors import UnusableError
from td3engine.files import atomic_file
from td3engine.models.registry import build_backbone

FORMAT = "td3-model-1"
IDS, ENDS = "item_ids", "item_id_ends"
ITEMS, BIAS, ENCODER = "items", "item_bias", "encoder."


class ModelFileError(UnusableError):
    """A file holds no model, is damaged, or has a format that this release does not know."""

    code = "bad_model"


class ModelDescription(BaseModel):
    """A model's metadata.

    Attributes:
        backbone: kind and sizes of the encoder.
        history: longest history that the encoder has positions for.
        reads: longest history that the model was trained to read.
        data: filter of the log that it was made from; None if unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: BackboneConfig
    history: Annotated[int, Field(ge=1, le=100_000)]
    reads: Annotated[int, Field(ge=1, le=100_000)]
    data: DataConfig | None = None


class ModelContent(NamedTuple):
    """The content of a model's file.

    Attributes:
        description: the metadata.
        parameters: flat encoder parameters, (P).
        table: scoring table F, (n, f).
        item_ids: the id of each row of F.
    """

    description: ModelDescription
    parameters: Tensor
    table: Tensor
    item_ids: Sequence[str]


def write_model(path: Path, content: ModelContent) -> None:
    """Write the file whole or not at all; a file of that name is replaced."""
    config = content.description.backbone
    backbone = build_backbone(config, content.description.history)
    tensors = {
        f"{ENCODER}{name}": view for name, view in backbone.named(content.parameters).items()
    }
    tensors[ITEMS] = content.table[:, : config.hidden]
    if backbone.biased:
        tensors[BIAS] = content.table[:, config.hidden]
    tensors[IDS], tensors[ENDS] = _pack_ids(content.item_ids)
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"format": FORMAT, "model": content.description.model_dump_json()},
    )
    with atomic_file(path) as file:
        file.write(data)


def read_model(path: Path) -> ModelContent:
    """Read a file that `write_model` wrote, on the CPU, and validate all of it.

    Raises:
        ModelFileError: the file is something else, damaged, or of another format.
        FileNotFoundError: there is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                release = metadata.get("format", "none")
                raise ModelFileError(f"{path}: its format is {release!r}, not {FORMAT!r}")
            description = ModelDescription.model_validate_json(metadata.get("model", ""))
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValidationError) as error:
        raise ModelFileError(f"{path} does not hold a model: {error}") from error
    return _validated(path, description, tensors)


def _validated(
    path: Path, description: ModelDescription, tensors: dict[str, Tensor]
) -> ModelContent:
    """The content, if every tensor has the name, shape, type and values that it must have."""
    config = description.backbone
    if description.reads > description.history:
        raise ModelFileError(
            f"{path}: it reads {description.reads} events and has positions for "
            f"{description.history}"
        )
    backbone = build_backbone(config, description.history)
    shapes: dict[str, tuple[int, ...]] = {
        f"{ENCODER}{name}": tuple(view.shape)
        for name, view in backbone.named(torch.empty(backbone.n_parameters, device="meta")).items()
    }
    n_items = len(tensors[ITEMS]) if ITEMS in tensors and tensors[ITEMS].dim() else 0
    shapes[ITEMS] = (n_items, config.hidden)
    if backbone.biased:
        shapes[BIAS] = (n_items,)
    weights = {name: tensor for name, tensor in tensors.items() if name not in (IDS, ENDS)}
    if n_items == 0 or set(weights) != set(shapes):
        raise ModelFileError(f"{path}: a {config.name} has other tensors than {sorted(weights)}")
    for name, shape in shapes.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ModelFileError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, not float32 {shape}"
            )
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} holds numbers that are not finite")
    parameters = [weights[name].flatten() for name in shapes if name.startswith(ENCODER)]
    table_NF = weights[ITEMS]
    if backbone.biased:
        table_NF = torch.cat([table_NF, weights[BIAS][:, None]], 1)
    item_ids = _unpack_ids(path, tensors, n_items)
    return ModelContent(description, torch.cat(parameters), table_NF, item_ids)


def _pack_ids(item_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The ids' bytes without separators, uint8, and the end of each, int64 (n)."""
    texts = [item_id.encode() for item_id in item_ids]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    content = np.frombuffer(b"".join(texts), np.uint8)
    return torch.from_numpy(content.copy()), torch.from_numpy(ends)


def _unpack_ids(path: Path, tensors: dict[str, Tensor], n_items: int) -> tuple[str, ...]:
    ids, ends = tensors.get(IDS), tensors.get(ENDS)
    if ids is None or ends is None or ids.dtype != torch.uint8 or ends.dtype != torch.int64:
        raise ModelFileError(f"{path}: it has no item ids")
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]) if ends.dim() == 1 else ends
    ordered = ends.dim() == 1 and ids.dim() == 1 and bool((starts <= ends).all())
    if not ordered or len(ends) != n_items or int(starts[0]) != 0 or int(ends[-1]) != len(ids):
        raise ModelFileError(f"{path}: its item ids are not those of {n_items:,} items")
    content = ids.numpy().tobytes()
    try:
        texts = [
            content[start:end].decode()
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: an item id is not UTF-8 text") from error
    if len(set(texts)) != n_items:
        raise ModelFileError(f"{path}: an item id occurs twice")
    return tuple(texts)
