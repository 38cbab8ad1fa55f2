"""The reader on docs/model-format.md reads what `save` writes, without td3engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from td3engine.config import BACKBONES
from td3engine.models.model_file import FORMAT, ModelDescription
from tests.td3engine.models.model_kit import ITEMS, READS, WIDTH, RawFile, make_model

PAGE = Path(__file__).parents[3] / "docs" / "model-format.md"


def reader() -> str:
    (block,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "safe_open" in block
    ]
    return str(block)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_documented_reader_reads_a_saved_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name, item_ids=[f"é{item}" for item in range(ITEMS)])
    model.save(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(reader(), names)  # noqa: S102 (our own page)
    assert names["item_ids"] == model.item_ids
    assert names["description"]["backbone"]["name"] == name
    assert names["description"]["reads"] == READS
    tensors = names["tensors"]
    np.testing.assert_array_equal(tensors["items"], model.table[:, :WIDTH].numpy())
    if model.backbone.biased:
        np.testing.assert_array_equal(tensors["item_bias"], model.table[:, WIDTH].numpy())
    encoder = {f"encoder.{part}" for part in model.backbone.named(model.parameters)}
    assert set(tensors) == {"items", *encoder} | ({"item_bias"} if model.backbone.biased else set())


def test_the_documented_reader_refuses_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    make_model("sasrec").save(path)
    raw = RawFile.read(path)
    raw.metadata["format"] = "td3-model-9"
    raw.write(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="td3-model-9"):
        exec(reader(), {})  # noqa: S102 (our own page)


def test_the_documented_reader_needs_neither_td3engine_nor_torch(tmp_path: Path) -> None:
    make_model("gru4rec").save(tmp_path / "model.safetensors")
    code = "import sys\nsys.modules.update(td3engine=None, torch=None)\n" + reader()
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(len(item_ids))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(ITEMS), done.stderr


def test_the_page_names_the_format_and_every_field() -> None:
    page = PAGE.read_text()
    assert f"`{FORMAT}`" in page
    for field in ModelDescription.model_fields:
        assert f"| `{field}` |" in page
