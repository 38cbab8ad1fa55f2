"""Recommendations against scores computed by hand, and models that come back from their files."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from td3engine.config import BACKBONES
from td3engine.errors import UnusableError
from td3engine.models.trained_model import TrainedModel, UnknownItemError
from tests.td3engine.models.model_kit import (
    DATA,
    HISTORY,
    ITEMS,
    READS,
    WIDTH,
    RawFile,
    make_model,
    randomly_read,
)

NAMES = sorted(BACKBONES)


def ids_of(rows: list[list[int]]) -> list[list[str]]:
    return [[f"i{item}" for item in row] for row in rows]


def scores_by_hand(model: TrainedModel, history: list[int]) -> list[float]:
    """Scores of all items after one history: its last events alone, no padding, item by item."""
    recent = history[-READS:]
    table = model.table.numpy().astype(np.float64)
    events_1LD = model.table[recent, :WIDTH][None]
    with torch.no_grad():
        state = model.backbone.last(model.parameters, events_1LD, torch.tensor([len(recent)]))
    h = state[0].numpy().astype(np.float64)
    scores = []
    for row in table:
        score = sum(float(x * y) for x, y in zip(h, row[:WIDTH], strict=True))
        scores.append(score + (float(row[WIDTH]) if model.backbone.biased else 0.0))
    return scores


def best_by_hand(model: TrainedModel, history: list[int], k: int, *, exclude: bool) -> list[str]:
    scores = scores_by_hand(model, history)
    left = [item for item in range(ITEMS) if not (exclude and item in history)]
    return [f"i{item}" for item in sorted(left, key=lambda item: -scores[item])[:k]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exclude", [True, False])
def test_recommendations_are_those_of_the_slow_loop(name: str, exclude: bool) -> None:
    model = make_model(name)
    rows = [*randomly_read(12, HISTORY + 6), [3], [4, 4, 4], list(range(ITEMS - 2))]
    for k in (1, 5, ITEMS + 9):
        lists = model.recommend(ids_of(rows), k, exclude_seen=exclude)
        assert lists == [best_by_hand(model, row, k, exclude=exclude) for row in rows]


def test_an_item_bias_decides_between_items() -> None:
    """BERT4Rec: an item whose bias towers over all scores comes first for everyone."""
    model = make_model("bert4rec")
    model.table[17, WIDTH] = 1e4
    lists = model.recommend(ids_of(randomly_read(6, 4)), 3, exclude_seen=False)
    assert [best[0] for best in lists] == ["i17"] * 6


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_its_histories_give_one_by_one(name: str) -> None:
    model = make_model(name)
    histories = ids_of(randomly_read(20, HISTORY + 4))
    assert model.recommend(histories, 4) == [model.recommend([row], 4)[0] for row in histories]


def test_rows_and_lists_hold_what_is_left() -> None:
    model = make_model("sasrec")
    everything, nearly = list(range(ITEMS)), list(range(ITEMS - 1))
    assert model.recommend(ids_of([everything, nearly]), 5) == [[], [f"i{ITEMS - 1}"]]
    full = model.recommend(ids_of([everything]), ITEMS, exclude_seen=False)
    assert sorted(full[0]) == sorted(model.item_ids)
    assert model.recommend([]) == []


def test_events_before_what_it_reads_only_exclude() -> None:
    model = make_model("gru4rec")
    recent = [5, 6, 7, 8, 9]
    assert len(recent) == READS
    long = [1, 2, *recent]
    both = model.recommend(ids_of([recent, long]), ITEMS, exclude_seen=False)
    assert both[0] == both[1]
    (after_recent,) = model.recommend(ids_of([recent]), ITEMS)
    (after_long,) = model.recommend(ids_of([long]), ITEMS)
    assert after_long == [item for item in after_recent if item not in ("i1", "i2")]


def test_an_unknown_item_is_named_with_its_history_or_left_out() -> None:
    model = make_model("narm")
    histories = [["i1"], ["i2", "x' <y>", "i3", "z"]]
    with pytest.raises(UnknownItemError, match='history 1 holds "x\' <y>"') as refused:
        model.recommend(histories)
    assert refused.value.code == "unknown_item"
    dropped = model.recommend(histories, 4, unknown="drop")
    assert dropped == model.recommend([["i1"], ["i2", "i3"]], 4)


@pytest.mark.parametrize("unknown", ["raise", "drop"])
def test_a_history_without_any_known_item_is_refused(unknown: Any) -> None:
    model = make_model("sasrec")
    with pytest.raises(UnknownItemError, match="history 1 "):
        model.recommend([["i1"], []], unknown=unknown)
    with pytest.raises(UnknownItemError, match="history 0 "):
        model.recommend([["none", "such"]], unknown=unknown)


@pytest.mark.parametrize(
    ("histories", "more", "message"),
    [
        (["i1", "i2"], {}, "history 0 is one text.*'i1'"),
        ([["i1"], "i2"], {}, "history 1 is one text.*'i2'"),
        ("i1", {}, "history 0 is one text"),
        ([["i1"]], {"k": 0}, "k must be positive, not 0"),
        ([["i1"]], {"k": -3}, "k must be positive, not -3"),
        ([["i1"]], {"unknown": "ignore"}, "unknown must be one of .*'ignore'"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(
    histories: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnusableError, match=message):
        make_model("sasrec").recommend(histories, **more)


@pytest.mark.parametrize("ids", [[], [f"i{item}" for item in range(ITEMS - 1)], ["i"] * ITEMS])
def test_a_model_needs_one_id_an_item(ids: list[str], tmp_path: Path) -> None:
    model = make_model("sasrec", item_ids=ids)
    message = "twice" if len(ids) == ITEMS else "no item ids"
    with pytest.raises(UnusableError, match=message):
        model.recommend([["i1"]])
    with pytest.raises(UnusableError, match=message):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back_to_the_byte(name: str, tmp_path: Path) -> None:
    model, path = make_model(name), tmp_path / "model.safetensors"
    model.save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    loaded = TrainedModel.load(str(path))
    rows = randomly_read(9, READS)
    lengths = torch.tensor([len(row) for row in rows])
    items = torch.zeros(len(rows), READS, dtype=torch.int64)
    for padded, row in zip(items, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    states = [each.states(items, lengths).numpy().tobytes() for each in (model, loaded)]
    assert states[0] == states[1]
    assert loaded.table.numpy().tobytes() == model.table.numpy().tobytes()
    assert loaded.recommend(ids_of(rows), 7) == model.recommend(ids_of(rows), 7)
    assert (loaded.reads, loaded.data, list(loaded.item_ids)) == (READS, DATA, model.item_ids)
    assert (loaded.backbone.config, loaded.backbone.history) == (model.backbone.config, HISTORY)
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is(name: str, tmp_path: Path) -> None:
    """By the safetensors specification alone: no library of ours or theirs reads it here."""
    model = make_model(name, item_ids=[f"é{item}" for item in range(ITEMS)])
    model.save(tmp_path / "model")
    raw = RawFile.read(tmp_path / "model")
    assert raw.metadata["format"] == "td3-model-1"
    description = raw.description
    assert description["backbone"]["name"] == name
    assert description["backbone"]["hidden"] == WIDTH
    assert (description["history"], description["reads"]) == (HISTORY, READS)
    assert description["data"] == json.loads(DATA.model_dump_json())
    dtype, shape, content = raw.tensors["items"]
    assert (dtype, shape) == ("F32", [ITEMS, WIDTH])
    assert content == model.table[:, :WIDTH].numpy().tobytes()
    assert ("item_bias" in raw.tensors) == model.backbone.biased
    if model.backbone.biased:
        assert raw.tensors["item_bias"][2] == model.table[:, WIDTH].numpy().tobytes()
    ends = np.frombuffer(raw.tensors["item_id_ends"][2], "<i8").tolist()
    text = raw.tensors["item_ids"][2]
    starts = [0, *ends[:-1]]
    ids = [text[a:b].decode() for a, b in zip(starts, ends, strict=True)]
    assert ids == model.item_ids
    weights = b"".join(
        raw.tensors[f"encoder.{part}"][2] for part in model.backbone.named(model.parameters)
    )
    assert weights == model.parameters.numpy().tobytes()


def test_ids_of_any_text_come_back(tmp_path: Path) -> None:
    ids = ["", " ", "é漢🙂", "a\0b", "two\nlines", "a", "A", "ａ", "e\u0301", "\u00e9", '"', "../x"]
    model = make_model("gru4rec", n_items=len(ids), item_ids=ids)
    model.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    assert list(loaded.item_ids) == ids
    assert loaded.recommend([["é漢🙂"]], 3) == model.recommend([["é漢🙂"]], 3)
    only = make_model("gru4rec", n_items=1, item_ids=[""])
    only.save(tmp_path / "only")
    assert list(TrainedModel.load(tmp_path / "only").item_ids) == [""]


def test_a_hundred_thousand_items_take_a_moment(tmp_path: Path) -> None:
    ids = [f"item-{item:,}" for item in range(100_000)]
    model = make_model("gru4rec", n_items=len(ids), item_ids=ids)
    began = time.process_time()
    model.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    best = loaded.recommend([[ids[3], ids[99_999]]], 5)
    assert time.process_time() - began < 5  # a fifth of a second where nothing else runs
    assert list(loaded.item_ids) == ids
    assert best == model.recommend([[ids[3], ids[99_999]]], 5)


def test_saving_replaces_a_file_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    old, new = make_model("sasrec"), make_model("bert4rec")
    old.save(path)
    before = path.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            new.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    reader = TrainedModel.load(path)  # an open model does not mind that its file is replaced
    new.save(path)
    assert TrainedModel.load(path).backbone.config.name == "bert4rec"
    assert reader.recommend([["i1"]]) == old.recommend([["i1"]])


def test_nothing_is_saved_that_could_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for value in (float("nan"), float("inf")):
        model = make_model("bert4rec")
        model.table[0, WIDTH] = value
        with pytest.raises(UnusableError, match=r"item_bias .*finite"):
            model.save(path)
    double = make_model("sasrec")
    with pytest.raises(UnusableError, match="float32"):
        TrainedModel(
            double.backbone, double.parameters.double(), double.table, READS, double.item_ids
        ).save(path)
    with pytest.raises(UnusableError, match="Unicode"):
        make_model("sasrec", n_items=2, item_ids=["a", "\ud800"]).save(path)
    with pytest.raises(ValueError, match="reads 8 events and has positions for 7"):
        make_model("sasrec", reads=HISTORY + 1).save(path)
    with pytest.raises(UnusableError, match="no folder"):
        double.save(tmp_path / "absent" / "model")
    assert not list(tmp_path.iterdir())


def test_a_model_says_what_it_is() -> None:
    said = repr(make_model("bert4rec"))
    assert said.startswith("TrainedModel(bert4rec, 30 items, width 8, reads 5 events")
    assert "i17" not in said


def test_the_filter_of_an_earlier_file_counts_every_row(tmp_path: Path) -> None:
    """Releases that knew nothing of duplicates kept them, and today's default looks at the log."""
    path = tmp_path / "model"
    make_model("sasrec").save(path)
    raw = RawFile.read(path)
    description = raw.description
    assert description["data"].pop("duplicates") == "auto"
    del description["data"]["validate_by"]
    raw.description = description
    data = TrainedModel.load(raw.write(path)).data
    assert data is not None
    assert data.duplicates == "keep"
    assert data.model_copy(update={"duplicates": "auto", "validate_by": "auto"}) == DATA
