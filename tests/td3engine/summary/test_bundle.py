"""Bundles: both forms in format 3, those of earlier releases, and what is refused.

`format-2/` is a summary that the release of commit 8a7fc2a wrote, and the scores (of the first
items, after three histories) of learners that it trained on it.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import td3engine as td3
from td3engine.config import DistillConfig, Mode
from td3engine.contract import FACTORS_FILE, ITEMS_FILE, MANIFEST_FILE
from td3engine.errors import BundleError
from td3engine.summary.bundle import Manifest, load_bundle, packed_bytes, save_bundle
from td3engine.summary.labelled import AnySummary, LabelledSummary, as_stored
from td3engine.summary.packing import describe, half, pack, rounded
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.oracles import seeded
from tests.td3engine.small import paper_config, small_config

ITEMS, WIDTH = 30, 8
ITEM_IDS = [f"i{item}" for item in range(ITEMS - 2)] + ["odd\tone", "é漢"]
OLD = Path(__file__).parent / "format-2"
HISTORIES = [["i3", "i5"], ["i40", "i42", "i43", "i46"], ["i149"]]  # of `scores.json`


def manifest_of(config: DistillConfig) -> Manifest:
    return Manifest(
        config=config,
        fingerprint="f" * 64,
        statistics={},
        validation={},
        results=[],
        numbers_stored={},
    )


def labelled(step: float = 0.5) -> tuple[LabelledSummary, DistillConfig]:
    """Of `SMALL`'s size: 4 sequences of 8."""
    config = small_config(summary={"label_step": step, "table_step": step})
    draw = seeded(3)
    summary = LabelledSummary(
        torch.randint(ITEMS, (4, 8), generator=draw),
        torch.randn(4, 7, WIDTH, generator=draw),
        rounded(torch.randn(ITEMS, WIDTH, generator=draw), step),
        config.summary.sharpness,
    )
    stored = as_stored(summary, config.summary)
    assert isinstance(stored, LabelledSummary)
    return stored, config


def soft(**over: Any) -> tuple[TuckerSummary, DistillConfig]:
    config = paper_config(summary=over)
    draw = seeded(3)
    V = rounded(torch.randn(ITEMS, WIDTH, generator=draw), config.summary.table_step)
    made = as_stored(TuckerSummary.initial(config.summary, V, draw), config.summary)
    assert isinstance(made, TuckerSummary)
    return made, config


def tensors_of(summary: AnySummary) -> dict[str, torch.Tensor]:
    names = ("items", "labels", "V", "U", "T", "G", "Y")
    found = {name: getattr(summary, name, None) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


FORMS: dict[str, tuple[AnySummary, DistillConfig]] = {
    "items": labelled(),
    "items, not rounded": labelled(0.0),
    "soft": soft(),
    "soft, rounded": soft(label_step=0.5, table_step=0.2),
    "soft, targets are inputs": soft(targets="next"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_summary_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    summary, config = FORMS[name]
    written = save_bundle(tmp_path, summary, ITEM_IDS, manifest_of(config))
    assert written.format == 3
    bundle = load_bundle(tmp_path)
    assert type(bundle.factors) is type(summary)
    assert bundle.item_ids == ITEM_IDS
    assert bundle.manifest == written
    assert bundle.manifest.config == config
    mine, read = tensors_of(summary), tensors_of(bundle.factors)
    assert mine.keys() == read.keys()
    for part, tensor in mine.items():
        assert (read[part].dtype, read[part].shape) == (tensor.dtype, tensor.shape)
        assert read[part].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    if isinstance(bundle.factors, LabelledSummary):
        assert bundle.factors.sharpness == config.summary.sharpness
    # Same summary, same bytes.
    save_bundle(tmp_path / "again", bundle.factors, bundle.item_ids, bundle.manifest)
    for file in (FACTORS_FILE, ITEMS_FILE, MANIFEST_FILE):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("name", FORMS)
def test_the_size_that_is_said_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    summary, config = FORMS[name]
    save_bundle(tmp_path, summary, ITEM_IDS, manifest_of(config))
    assert packed_bytes(summary) == (tmp_path / FACTORS_FILE).stat().st_size


def test_what_is_on_a_grid_takes_less(tmp_path: Path) -> None:
    sizes = {name: packed_bytes(summary) for name, (summary, _) in FORMS.items()}
    assert sizes["items"] < sizes["items, not rounded"]
    assert sizes["soft, rounded"] < sizes["soft"]


def test_factors_of_a_rounded_summary_are_halves() -> None:
    summary, _ = FORMS["soft, rounded"]
    for factor in summary.learned:
        assert torch.equal(factor, half(factor))


def test_items_have_their_ids_alone(tmp_path: Path) -> None:
    summary, config = labelled()
    save_bundle(tmp_path, summary, ITEM_IDS, manifest_of(config))
    table = pq.read_table(tmp_path / ITEMS_FILE)
    assert table.column_names == ["item_id"]
    assert table.column("item_id").to_pylist() == ITEM_IDS


def test_a_bundle_of_the_second_format_is_read() -> None:
    """Plain float32, and an index beside each item id."""
    bundle = load_bundle(OLD)
    plain = safetensors.torch.load_file(OLD / FACTORS_FILE)
    read = tensors_of(bundle.factors)
    assert read.keys() == plain.keys() == {"U", "T", "G", "V", "Y"}
    for name, tensor in plain.items():
        assert torch.equal(read[name], tensor)
    assert len(bundle.item_ids) == len(bundle.factors.V) == 143
    written = json.loads((OLD / MANIFEST_FILE).read_text())
    assert (bundle.manifest.format, written["format"]) == (2, 2)
    assert bundle.manifest.results == written["results"]
    # What it says stays, and what it cannot say is what that release did.
    config = json.loads(bundle.manifest.model_dump_json())["config"]
    for part, settings in written["config"].items():
        if isinstance(settings, dict):
            assert settings.items() <= config[part].items()
    learner, summary = bundle.manifest.config.learner, bundle.manifest.config.summary
    assert (learner.loss, learner.dropout) == ("cross-entropy", 0.2)
    assert bundle.manifest.config.learner_backbone.dropout == 0.2
    assert (summary.inputs, summary.table_step, summary.label_step) == ("soft", 0, 0)


def test_learners_on_it_have_the_dropout_that_its_backbone_had(tmp_path: Path) -> None:
    folder = changed(tmp_path, OLD, lambda manifest: manifest["config"]["backbone"].pop("dropout"))
    assert load_bundle(folder).manifest.config.learner.dropout == 0.2
    for rate in (0.0, 0.35):
        own = {"dropout": rate}
        folder = changed(tmp_path, OLD, lambda m, own=own: m["config"]["backbone"].update(own))
        config = load_bundle(folder).manifest.config
        assert config.learner.dropout == config.learner_backbone.dropout == rate


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_learners_train_on_it_as_that_release_had_them(mode: Mode) -> None:
    wanted = torch.tensor(json.loads((OLD / "scores.json").read_text())[mode])

    def scores(**settings: Any) -> torch.Tensor:
        model = td3.load_summary(OLD).fit(mode=mode, seed=1, settings=settings or None)
        index = {item: place for place, item in enumerate(model.item_ids)}
        found = []
        for history in HISTORIES:
            items = torch.tensor([[index[item] for item in history]])
            (state,) = model.states(items, torch.tensor([len(history)]))
            found.append(model.table[: wanted.shape[1]] @ state)
        return torch.stack(found)

    torch.testing.assert_close(scores(), wanted, rtol=1e-3, atol=5e-4)
    # Neither of today's defaults would do.
    for other in ({"loss": "scores"}, {"dropout": 0.0}):
        assert (scores(**other) - wanted).abs().max() > 0.005


def test_written_again_it_is_packed_and_has_its_settings(tmp_path: Path) -> None:
    td3.load_summary(OLD).save(tmp_path / "new")
    old, new = load_bundle(OLD), load_bundle(tmp_path / "new")
    assert (old.manifest.format, new.manifest.format) == (2, 3)
    assert new.manifest.config == old.manifest.config
    assert new.item_ids == old.item_ids
    for name, tensor in tensors_of(old.factors).items():
        assert torch.equal(tensors_of(new.factors)[name], tensor)


def test_a_bundle_of_the_first_format_has_no_targets_of_its_own(tmp_path: Path) -> None:
    """Its configuration does not know of them either, and does not get today's default."""

    def without_targets(manifest: dict[str, Any]) -> None:
        manifest["format"] = 1
        del manifest["config"]["summary"]["targets"]

    plain = safetensors.torch.load_file(OLD / FACTORS_FILE)
    del plain["Y"]
    folder = changed(tmp_path, OLD, without_targets, safetensors.torch.save(plain))
    read = load_bundle(folder)
    assert read.manifest.config.summary.targets == "next"
    assert read.manifest.config.summary.inputs == "soft"
    assert read.manifest.config.learner.loss == "cross-entropy"
    assert isinstance(read.factors, TuckerSummary)
    assert read.factors.Y is None
    sequences = read.factors.soft_sequences()
    assert torch.equal(sequences.targets, sequences.inputs)
    changed(tmp_path, folder, lambda manifest: manifest.update(format=2))
    with pytest.raises(BundleError, match="targets"):
        load_bundle(folder)


def changed(
    tmp_path: Path, source: Path, change: Any = lambda _manifest: None, tensors: bytes | None = None
) -> Path:
    """A copy of a bundle with another manifest, or other tensors that fit their checksum."""
    folder = tmp_path / "changed"
    if source != folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    if tensors is not None:
        (folder / FACTORS_FILE).write_bytes(tensors)
        manifest["checksums"][FACTORS_FILE] = hashlib.sha256(tensors).hexdigest()
    change(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def packed(parts: dict[str, torch.Tensor], described: str | None = None) -> bytes:
    """A file of tensors in the third format; `described`: another description."""
    data, about = {}, {}
    for name, tensor in parts.items():
        stored, about[name] = pack(tensor)
        data[name] = torch.frombuffer(bytearray(stored), dtype=torch.uint8)
    return safetensors.torch.save(data, {"tensors": described or describe(about)})


SUMMARY, CONFIG = labelled()
PARTS = tensors_of(SUMMARY)
UNFIT: dict[str, bytes] = {
    "an item that the table lacks": packed(PARTS | {"items": torch.full((4, 8), ITEMS)}),
    "labels of another length": packed(PARTS | {"labels": SUMMARY.labels[:, 1:]}),
    "labels of another number": packed(PARTS | {"labels": SUMMARY.labels[1:]}),
    "labels of another width": packed(PARTS | {"labels": SUMMARY.labels[..., 1:]}),
    "items in one row": packed(PARTS | {"items": SUMMARY.items.flatten()}),
    "items that are no whole numbers": packed(PARTS | {"items": SUMMARY.labels[..., 0]}),
    "labels that are whole numbers": packed(PARTS | {"labels": SUMMARY.labels.long().abs()}),
    "a table in one row": packed(PARTS | {"V": SUMMARY.V.flatten()}),
    "a table of fewer items": packed(PARTS | {"V": SUMMARY.V[:-1]}),
    "no labels": packed({name: PARTS[name] for name in ("items", "V")}),
    "factors": packed(tensors_of(soft()[0])),
    "no description": packed(PARTS, "{}"),
    "a description that is a list": packed(PARTS, "[]"),
    "a description that is no JSON": packed(PARTS, "{"),
    "descriptions that are lists": packed(PARTS, json.dumps({name: [] for name in PARTS})),
    "no header": safetensors.torch.save({"items": torch.zeros(3, dtype=torch.uint8)}),
    "what is not packed": safetensors.torch.save(
        PARTS, {"tensors": describe({name: pack(tensor)[1] for name, tensor in PARTS.items()})}
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_tensors_that_fit_no_summary_are_refused(name: str, tmp_path: Path) -> None:
    """Though their checksum is that of the manifest."""
    save_bundle(tmp_path / "good", SUMMARY, ITEM_IDS, manifest_of(CONFIG))
    load_bundle(changed(tmp_path, tmp_path / "good", tensors=packed(PARTS)))
    with pytest.raises(BundleError):
        load_bundle(changed(tmp_path, tmp_path / "good", tensors=UNFIT[name]))


def test_soft_factors_do_not_have_other_targets_than_the_manifest_says(tmp_path: Path) -> None:
    save_bundle(tmp_path / "good", *soft()[:1], ITEM_IDS, manifest_of(soft()[1]))
    folder = changed(
        tmp_path, tmp_path / "good", lambda m: m["config"]["summary"].update(targets="next")
    )
    with pytest.raises(BundleError, match="targets"):
        load_bundle(folder)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, OLD, lambda manifest: manifest.update(format=4))
    with pytest.raises(BundleError):
        load_bundle(folder)
