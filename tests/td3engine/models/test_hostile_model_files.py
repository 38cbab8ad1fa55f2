"""Files that are no models, or damaged ones: one kind of error, naming the file; never a crash."""

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.errors import UnusableError
from td3engine.models.model_file import ModelFileError
from td3engine.models.trained_model import TrainedModel
from tests.td3engine.models.model_kit import HISTORY, ITEMS, READS, WIDTH, RawFile, make_model

Change = Callable[[RawFile], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of BERT4Rec, which has every kind of tensor."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    make_model("bert4rec").save(path)
    return path


def refused(path: Path) -> str:
    """Why a file is refused; it must be one kind of error, and name the file."""
    with pytest.raises(ModelFileError, match=re.escape(str(path))) as error:
        TrainedModel.load(path)
    assert isinstance(error.value, UnusableError)
    assert error.value.code == "bad_model"
    return str(error.value)


def describe(**changes: Any) -> Change:
    """A change of the description; a key with two underscores lies deeper."""

    def change(raw: RawFile) -> None:
        description = raw.description
        for key, value in changes.items():
            *above, last = key.split("__")
            level = description
            for part in above:
                level = level[part]
            level[last] = value
        raw.description = description

    return change


def tensor(name: str, values: Any, dtype: str | None = None) -> Change:
    """A change of one tensor."""
    array = np.asarray(values)
    kinds = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}

    def change(raw: RawFile) -> None:
        kind = dtype or kinds[array.dtype.name]
        raw.tensors[name] = (kind, list(array.shape), array.tobytes())

    return change


def remove(name: str) -> Change:
    return lambda raw: raw.tensors.pop(name)


def metadata(**changes: str) -> Change:
    return lambda raw: raw.metadata.update(changes)


def ends(change: Callable[[Any], Any]) -> Change:
    """A change of the ends of the item ids."""

    def apply(raw: RawFile) -> None:
        before = np.frombuffer(raw.tensors["item_id_ends"][2], "<i8").copy()
        tensor("item_id_ends", change(before))(raw)

    return apply


def swapped(values: Any) -> Any:
    values[[3, 4]] = values[[4, 3]]
    return values


def negative(values: Any) -> Any:
    values[0] = -1
    return values


def beyond(values: Any) -> Any:
    values[-1] += 1
    return values


def short_of(values: Any) -> Any:
    values[-1] -= 1
    return values


def not_utf8(raw: RawFile) -> None:
    dtype, shape, content = raw.tensors["item_ids"]
    raw.tensors["item_ids"] = (dtype, shape, content[:-1] + b"\xff")


def twice(raw: RawFile) -> None:
    dtype, shape, content = raw.tensors["item_ids"]
    raw.tensors["item_ids"] = (dtype, shape, content.replace(b"i1i2", b"i1i1", 1))


def no_items(raw: RawFile) -> None:
    raw.tensors["items"] = ("F32", [0, WIDTH], b"")
    raw.tensors["item_bias"] = ("F32", [0], b"")
    raw.tensors["item_id_ends"] = ("I64", [0], b"")
    raw.tensors["item_ids"] = ("U8", [0], b"")


def with_value(name: str, value: float) -> Change:
    def change(raw: RawFile) -> None:
        dtype, shape, content = raw.tensors[name]
        values = np.frombuffer(content, "<f4").copy()
        values[len(values) // 2] = value
        raw.tensors[name] = (dtype, shape, values.tobytes())

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "no metadata": (lambda raw: raw.metadata.clear(), "format is 'none'"),
    "another format": (metadata(format="td3-model-2"), "format is 'td3-model-2'"),
    "no description": (lambda raw: raw.metadata.pop("model"), "does not hold a model"),
    "broken JSON": (metadata(model='{"backbone": '), "does not hold a model"),
    "not an object": (metadata(model="[]"), "does not hold a model"),
    "deep JSON": (metadata(model="[" * 100_000), "does not hold a model"),
    "unknown backbone": (describe(backbone__name="mlp"), "backbone.name"),
    "a path as backbone": (describe(backbone__name="../../x"), "backbone.name"),
    "unknown field": (describe(surprise=1), "surprise"),
    "unknown setting": (describe(backbone__surprise=1), "backbone.surprise"),
    "heads do not divide": (describe(backbone__heads=3), "multiple of heads"),
    "reads nothing": (describe(reads=0), "reads"),
    "reads too much": (describe(reads=HISTORY + 1), "has positions for 7"),
    "history too long": (describe(history=100_001), "history"),
    "NaN in the description": (metadata(model='{"history": NaN}'), "does not hold a model"),
    "another history": (describe(history=HISTORY + 1), "encoder.position"),
    "another width": (describe(backbone__hidden=WIDTH * 2), "encoder."),
    "another depth": (describe(backbone__layers=2), "missing ['encoder.1_"),
    "another backbone": (describe(backbone__name="gru4rec"), "not the tensors of a gru4rec"),
    "missing encoder tensor": (remove("encoder.head"), "missing ['encoder.head']"),
    "missing items": (remove("items"), "missing ['items']"),
    "missing bias": (remove("item_bias"), "missing ['item_bias']"),
    "missing ids": (remove("item_ids"), "missing ['item_ids']"),
    "missing ends": (remove("item_id_ends"), "missing ['item_id_ends']"),
    "extra tensor": (tensor("extra", np.zeros(2, np.float32)), "unexpected ['extra']"),
    "items are a number": (tensor("items", np.float32(1)), "no items"),
    "items too wide": (tensor("items", np.zeros((ITEMS, WIDTH + 1), np.float32)), "items is F32"),
    "items of three dimensions": (tensor("items", np.zeros((ITEMS, 2, 4), np.float32)), "items is"),
    "too few items": (tensor("items", np.zeros((ITEMS - 1, WIDTH), np.float32)), "item_bias is"),
    "bias of other length": (tensor("item_bias", np.zeros(ITEMS + 1, np.float32)), "item_bias is"),
    "double items": (tensor("items", np.zeros((ITEMS, WIDTH))), "items is F64"),
    "half bias": (tensor("item_bias", np.zeros(ITEMS, np.float16), "BF16"), "item_bias is BF16"),
    "four-bit bias": (
        lambda raw: raw.tensors.update(item_bias=("F4", [ITEMS], bytes(ITEMS // 2))),
        "item_bias is F4",
    ),
    "NaN weight": (with_value("encoder.head", float("nan")), "encoder.head holds"),
    "infinite item": (with_value("items", float("inf")), "items holds"),
    "infinite bias": (with_value("item_bias", float("-inf")), "item_bias holds"),
    "no items": (no_items, "no items"),
    "ids of another type": (
        lambda raw: raw.tensors.update(item_ids=("I8", *raw.tensors["item_ids"][1:])),
        "item_ids is I8",
    ),
    "ids of two dimensions": (tensor("item_ids", np.zeros((4, 2), np.uint8)), "item_ids is"),
    "ids are a number": (tensor("item_ids", np.uint8(7)), "item_ids is"),
    "ends of another type": (ends(lambda e: e.astype(np.int32)), "item_id_ends is I32"),
    "too few ends": (ends(lambda e: e[:-1]), "item_id_ends is"),
    "falling ends": (ends(swapped), "one after another"),
    "negative end": (ends(negative), "one after another"),
    "ends beyond the text": (ends(beyond), "one after another"),
    "ends short of the text": (ends(short_of), "one after another"),
    "ids are not UTF-8": (not_utf8, "UTF-8"),
    "an id twice": (twice, "twice"),
    "empty ids": (ends(lambda e: np.concatenate([np.zeros(ITEMS - 1, np.int64), e[-1:]])), "twice"),
    "shape beyond int64": (
        lambda raw: raw.tensors.update(items=("F32", [0, 2**63], b"")),
        "no items",
    ),
    "bias shape beyond int64": (
        lambda raw: raw.tensors.update(item_bias=("F32", [0, 2**63], b"")),
        "item_bias is",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_and_says_why(change: str, good: Path, tmp_path: Path) -> None:
    apply, why = CHANGES[change]
    raw = RawFile.read(good)
    apply(raw)
    assert why in refused(raw.write(tmp_path / "changed"))


def test_the_raw_writer_itself_breaks_nothing(good: Path, tmp_path: Path) -> None:
    same = TrainedModel.load(RawFile.read(good).write(tmp_path / "same"))
    assert same.recommend([["i1"]]) == TrainedModel.load(good).recommend([["i1"]])


def test_what_is_no_safetensors_file_is_refused(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = good.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    for size in (0, 1, 7, 8, 9, 8 + header // 2, 8 + header, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)
    path.write_bytes(struct.pack("<Q", 2**63) + content[8:])
    refused(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)
    path.write_bytes(b'{"format": "td3-model-1"}')
    refused(path)


def test_another_safetensors_file_and_a_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    safetensors.torch.save_file({"items": torch.zeros(3, 4)}, path)
    assert "format is 'none'" in refused(path)
    safetensors.torch.save_file({"U": torch.zeros(3, 4)}, path, {"format": "td3-summary-2"})
    assert "td3-summary-2" in refused(path)
    torch.save({"items": torch.zeros(3, 4)}, path)
    refused(path)


def test_a_folder_is_refused_and_an_absent_file_is_absent(tmp_path: Path) -> None:
    refused(tmp_path)
    for absent in (tmp_path / "absent", tmp_path / "no" / "folder"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(absent))):
            TrainedModel.load(absent)


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
@settings(max_examples=80, deadline=None)
def test_a_flipped_byte_is_refused_or_harmless(
    at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    path, good = folder / "file", folder / "good"
    if not good.exists():
        make_model("bert4rec").save(good)
    content = bytearray(good.read_bytes())
    # Half of all changes to the header, which is the smaller part.
    (header,) = struct.unpack("<Q", content[:8])
    content[at // 2 % (8 + header if at % 2 else len(content))] = byte
    path.write_bytes(content)
    try:
        model = TrainedModel.load(path)
    except ModelFileError as error:
        assert str(path) in str(error)
    else:
        assert model.n_items == ITEMS
        assert len(model.recommend([[model.item_ids[0]]])[0]) == 10


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "narm"])
def test_sizes_that_only_the_description_claims_cost_nothing(
    name: str, good: Path, tmp_path: Path
) -> None:
    """Such a model would have gigabytes; its file has a few kilobytes."""
    raw = RawFile.read(good)
    sizes = {"name": name, "hidden": 1024, "layers": 16, "heads": 16, "inner": 8192}
    describe(backbone=raw.description["backbone"] | sizes, history=100_000, reads=READS)(raw)
    path = raw.write(tmp_path / "large")
    allocated: list[int] = []
    empty = torch.empty

    def counting(*shape: Any, **more: Any) -> torch.Tensor:
        made = empty(*shape, **more)
        if made.device.type != "meta":
            allocated.append(made.numel())
        return made

    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", counting)
        refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert sum(allocated) < 10**6


def test_a_header_of_many_tensors_is_answered_in_short(good: Path, tmp_path: Path) -> None:
    raw = RawFile.read(good)
    raw.tensors |= {f"t{number}": ("F32", [0], b"") for number in range(2000)}
    assert len(refused(raw.write(tmp_path / "many"))) < 2000


def test_the_description_is_json_of_plain_fields(good: Path) -> None:
    assert set(json.loads(RawFile.read(good).metadata["model"])) == {
        "backbone",
        "history",
        "reads",
        "data",
    }
