"""`baselines` against the rows that a run with the same settings puts into its manifest."""

import pytest
import torch
from pydantic import ValidationError

import td3engine as td3
from td3engine.data.split import split_log
from td3engine.data.types import LogError
from td3engine.evaluation.table import COUNTING_MIXED
from tests.td3engine.api.conftest import Made
from tests.td3engine.small import LOG_ROWS, SMALL, as_written


def test_rows_are_those_of_a_run(made: Made) -> None:
    epochs: list[tuple[int, float]] = []
    rows = td3.baselines(
        made.log, config={**SMALL, "seed": 5}, on_epoch=lambda *each: epochs.append(each)
    )
    of_run = [row for row in made.summary.manifest.results if row["name"] in LOG_ROWS]
    assert [as_written(row) for row in rows] == of_run
    assert [row["name"] for row in rows if row["protocol"] == "all"] == list(LOG_ROWS)
    assert [epoch for epoch, _ in epochs] == [1, 2, 3, 4]
    assert max(best for _, best in epochs) == made.summary.manifest.validation["teacher_ndcg@10"]


def test_counting_alone_takes_no_network(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "td3engine.api.baselines.network_training", lambda *_: pytest.fail("it trains")
    )
    rows = td3.baselines(str(made.log_path), config=SMALL, network=False)
    assert [row["name"] for row in rows if row["protocol"] == "all"] == [
        COUNTING_MIXED,
        *LOG_ROWS[2:],
    ]
    assert {row["train_seconds"] > 0 for row in rows} == {True}


def test_a_table_in_memory_is_measured_as_its_file(made: Made) -> None:
    split = split_log(made.log, made.summary.config.data)
    frame = {
        "user_id": [split.user_ids[u] for u in range(split.n_users) for _ in split.history(u)],
        "item_id": [split.item_ids[item] for item in split.histories],
        "timestamp": split.times.tolist(),
    }
    pandas = pytest.importorskip("pandas")
    one = td3.baselines(pandas.DataFrame(frame), config=SMALL, network=False)
    other = td3.baselines(made.log, config=SMALL, network=False)
    assert [row["ndcg@10"] for row in one] == [row["ndcg@10"] for row in other]


def test_ease_has_a_limit(made: Made) -> None:
    few = {**SMALL, "teacher": {**SMALL["teacher"], "ease_items": 20}}
    rows = td3.baselines(made.log, config=few, network=False)
    assert {row["name"] for row in rows} == {COUNTING_MIXED, *LOG_ROWS[2:]} - {"EASE"}


def test_threads_are_those_asked_for(made: Made) -> None:
    td3.baselines(made.log, config={**SMALL, "threads": 1}, network=False)
    assert torch.get_num_threads() == 1


def test_what_cannot_work_is_named(made: Made) -> None:
    with pytest.raises(ValidationError, match=r"outer\.stepps"):
        td3.baselines(made.log, config={"outer": {"stepps": 3}})
    with pytest.raises(FileNotFoundError, match="absent"):
        td3.baselines("absent.csv", config=SMALL)
    with pytest.raises(LogError) as refused:
        td3.baselines(made.log, config={"data": {"min_user_interactions": 999}})
    assert refused.value.code == "too_little_data"
