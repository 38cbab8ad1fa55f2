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
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor

from td3engine.config import EARLIER_DATA, BackboneConfig, DataConfig
from td3engine.errors import UnusableError
from td3engine.files import atomic_file, ordered_header
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone

FORMAT = "td3-model-1"
IDS, ENDS = "item_ids", "item_id_ends"
ITEMS, BIAS, ENCODER = "items", "item_bias", "encoder."
NAMED = 5  # tensors, at most, that an error names


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

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_earlier_releases(cls, content: Any) -> Any:
        """A filter that an earlier release wrote counts rows as that release did."""
        data = content.get("data") if isinstance(content, dict) else None
        return content | {"data": EARLIER_DATA | data} if isinstance(data, dict) else content

    @model_validator(mode="after")
    def _has_positions_for_what_it_reads(self) -> Self:
        if self.reads > self.history:
            raise ValueError(f"it reads {self.reads} events and has positions for {self.history}")
        return self


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
    """Write the file, whole or not at all; one of that name is replaced.

    Raises:
        UnusableError: the content is not what `read_model` reads: a weight that is not a finite
            float32 number, or item ids that are not text or occur twice.
    """
    config = content.description.backbone
    backbone = build_backbone(config, content.description.history)
    tensors = {
        f"{ENCODER}{name}": view for name, view in backbone.named(content.parameters).items()
    }
    tensors[ITEMS] = content.table[:, : config.hidden]
    if backbone.biased:
        tensors[BIAS] = content.table[:, config.hidden]
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise UnusableError(f"{name} of this model is not all finite float32 numbers")
    tensors[IDS], tensors[ENDS] = _packed(content.item_ids)
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"format": FORMAT, "model": content.description.model_dump_json()},
    )
    with atomic_file(path) as file:
        file.write(ordered_header(data))


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
                raise ModelFileError(f"{path}: its format is {release[:40]!r}, not {FORMAT!r}")
            description = ModelDescription.model_validate_json(metadata.get("model", ""))
            backbone = build_backbone(description.backbone, description.history)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            layout = {
                name: Layout(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
            # Before any tensor is made: what the header claims is not to be believed.
            _refuse_other_layout(path, description, backbone, layout)
            tensors = {name: file.get_tensor(name) for name in layout}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValidationError) as error:
        raise ModelFileError(f"{path} does not hold a model: {error}") from error
    return _content(path, description, tensors)


class Layout(NamedTuple):
    """What a file's header says of a tensor: its type, as safetensors writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def _refuse_other_layout(
    path: Path, description: ModelDescription, backbone: Backbone, layout: dict[str, Layout]
) -> None:
    """ModelFileError unless there are the tensors of such a model, of its sizes, and no others."""
    # A meta tensor has a shape and no memory.
    named = backbone.named(torch.empty(backbone.n_parameters, device="meta"))
    shapes: dict[str, tuple[int, ...]] = {
        f"{ENCODER}{name}": tuple(view.shape) for name, view in named.items()
    }
    n_items = _length(layout, ITEMS)
    shapes[ITEMS] = (n_items, description.backbone.hidden)
    if backbone.biased:
        shapes[BIAS] = (n_items,)
    expected = {name: Layout("F32", shape) for name, shape in shapes.items()}
    expected[IDS] = Layout("U8", (_length(layout, IDS),))
    expected[ENDS] = Layout("I64", (n_items,))
    missing, surplus = sorted(expected.keys() - layout), sorted(layout.keys() - expected)
    if missing or surplus:
        raise ModelFileError(
            f"{path}: not the tensors of a {description.backbone.name}: "
            f"missing {missing[:NAMED]}, unexpected {surplus[:NAMED]}"
        )
    if n_items == 0:
        raise ModelFileError(f"{path}: it has no items")
    for name, required in expected.items():
        if layout[name] != required:
            raise ModelFileError(
                f"{path}: {name} is {layout[name].dtype} {layout[name].shape}, "
                f"not {required.dtype} {required.shape}"
            )


def _length(layout: dict[str, Layout], name: str) -> int:
    """Rows of a tensor; 0 where there is no such tensor, or it is one number."""
    return layout[name].shape[0] if name in layout and layout[name].shape else 0


def _content(path: Path, description: ModelDescription, tensors: dict[str, Tensor]) -> ModelContent:
    """The content of tensors that have their sizes, once their values are checked too."""
    weights = {name: tensor for name, tensor in tensors.items() if name not in (IDS, ENDS)}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} holds numbers that are not finite")
    backbone = build_backbone(description.backbone, description.history)
    names = backbone.named(torch.empty(backbone.n_parameters, device="meta"))
    parameters = torch.cat([weights[f"{ENCODER}{name}"].flatten() for name in names])
    table_NF = weights[ITEMS]
    if backbone.biased:
        table_NF = torch.cat([table_NF, weights[BIAS][:, None]], 1)
    item_ids = _unpacked(path, tensors[IDS], tensors[ENDS])
    return ModelContent(description, parameters, table_NF, item_ids)


def _packed(item_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The ids' bytes one after another, uint8, and the end of each, int64 (n).

    Raises:
        UnusableError: an id is not Unicode text, or occurs twice.
    """
    try:
        texts = [item_id.encode() for item_id in item_ids]
    except UnicodeEncodeError as error:
        raise UnusableError(f"the item id {error.object!r} is not Unicode text") from error
    if len(set(texts)) != len(texts):
        raise UnusableError("an item id of this model occurs twice")
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    content = np.frombuffer(b"".join(texts), np.uint8)
    return torch.from_numpy(content.copy()), torch.from_numpy(ends)


def _unpacked(path: Path, ids: Tensor, ends: Tensor) -> tuple[str, ...]:
    """The text of each id, from their bytes (uint8) and the end of each (int64)."""
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    if not bool((starts <= ends).all()) or int(ends[-1]) != len(ids):
        raise ModelFileError(f"{path}: its item ids do not lie one after another")
    content = ids.numpy().tobytes()
    try:
        texts = [
            content[start:end].decode()
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: an item id is not UTF-8 text") from error
    if len(set(texts)) != len(texts):
        raise ModelFileError(f"{path}: an item id occurs twice")
    return tuple(texts)
