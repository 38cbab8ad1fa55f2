"""What a row holds, and that its table shows all of it."""

import io

import pytest
from rich.console import Console

from td3engine.evaluation.table import Cost, Row, make_row, make_rows, results_table
from td3engine.evaluation.table import without_wall_times as without
from td3engine.ranking.protocols import Protocol
from tests.td3engine.evaluation.rows import made_up_row
from tests.td3engine.small import LEARNER_ROWS, LOG_ROWS

METRICS = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)]


def printed(rows: list[Row], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(results_table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(rows: list[Row]) -> dict[str, list[str]]:
    """The words after each row's name, in a table without limits."""
    lines = printed(rows, 200).splitlines()
    return {
        row["name"]: next(line for line in lines if line.startswith(f"{row['name']} "))
        .removeprefix(row["name"])
        .split()
        for row in rows
    }


def test_a_row_has_means_deviations_and_all_costs() -> None:
    results = [dict.fromkeys(METRICS, value) | {"questions": 7} for value in (0.1, 0.2, 0.6)]
    row = make_row("x", "shared-items", "unseen", results, Cost(1.5, 10, 40, 3, 2.5))
    assert set(row) == set(made_up_row("x"))
    assert row["questions"] == 7
    assert row["seeds"] == 3
    figures = dict(row)
    for metric in ("hr@5", "ndcg@10", "mrr@20"):
        assert figures[metric] == pytest.approx(0.3)
        # Of the sample: (0.04 + 0.01 + 0.09) / 2.
        assert figures[f"{metric}_std"] == pytest.approx(0.07**0.5)
    costs = ("train_seconds", "numbers_stored", "bytes", "sequences", "making_seconds")
    assert [figures[cost] for cost in costs] == [1.5, 10, 40, 3, 2.5]
    one = make_row("x", "shared-items", "all", results[:1], Cost(0.0, 1, 4))
    assert (one["ndcg@10"], one["ndcg@10_std"], one["making_seconds"]) == (0.1, 0.0, 0.0)


def test_there_is_a_row_for_each_protocol() -> None:
    result = dict.fromkeys(METRICS, 0.1)
    counts: dict[Protocol, int] = {"all": 9, "unseen": 5}
    asked = {protocol: result | {"questions": count} for protocol, count in counts.items()}
    rows = make_rows("x", "from-scratch", [asked, asked], Cost(0.0, 1, 4))
    assert [(row["protocol"], row["questions"], row["seeds"]) for row in rows] == [
        ("all", 9, 2),
        ("unseen", 5, 2),
    ]


def test_a_manifest_has_the_rows_without_wall_times() -> None:
    row = made_up_row("x")
    (kept,) = without([row])
    assert set(row) - set(kept) == {"train_seconds", "making_seconds"}
    assert kept.items() <= row.items()


@pytest.mark.parametrize(
    ("seconds", "stored", "size"),
    [(0.04, 500, "0.5"), (999.94, 10**9, "976,562"), (123_456.0, 10**11, "97,656,250")],
)
def test_nothing_is_cut_at_80_columns(seconds: float, stored: int, size: str) -> None:
    names = [*LOG_ROWS, *LEARNER_ROWS]
    costs = {"train_seconds": seconds, "making_seconds": seconds, "bytes": stored}
    rows = [
        made_up_row(name, protocol=each, **costs) for each in ("all", "unseen") for name in names
    ]
    rows += [made_up_row("zero steps", mode="shared-items", **costs)]
    shown = printed(rows)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.split()
    for name in names:  # which go on in the next line where there is no room
        assert set(name.split()) <= set(words), name
    assert shown.count("0.1234 ±0.0123") == len(rows)
    assert words.count(size) == len(rows)
    assert shown.count("made s") == shown.count("train s") == 2


def test_names_stay_on_one_line_where_figures_are_of_usual_size() -> None:
    shown = printed([made_up_row(name, bytes=10**8) for name in (*LOG_ROWS, *LEARNER_ROWS)])
    for name in (*LOG_ROWS, *LEARNER_ROWS):
        assert f"\n{name} " in shown


def test_shares_are_of_the_teacher_under_the_same_protocol() -> None:
    rows = [
        made_up_row("teacher", 0.2),
        made_up_row("full data", 0.1),
        made_up_row("TD3 summary", 0.15),
    ]
    of_all = cells(rows)
    assert [of_all[name][4] for name in of_all] == ["100%", "50%", "75%"]
    others = [
        made_up_row("teacher", 0.5, protocol="unseen"),
        made_up_row("TD3 summary", 0.1, protocol="unseen"),
    ]
    both = printed([*rows, *others], 200).split("protocol `unseen`")
    assert [("75%" in part, "20%" in part) for part in both] == [(True, False), (False, True)]


def test_without_a_teacher_shares_are_of_the_network_and_without_both_there_are_none() -> None:
    rows = [made_up_row("full data", 0.1), made_up_row("TD3 summary", 0.05)]
    assert [each[4] for each in cells(rows).values()] == ["100%", "50%"]
    assert cells(rows[1:])["TD3 summary"][4] == "-"
    nothing = [made_up_row("teacher", 0.0), made_up_row("TD3 summary", 0.05)]
    assert [each[4] for each in cells(nothing).values()] == ["-", "-"]


def test_modes_seconds_and_sizes_are_shown() -> None:
    rows = [
        made_up_row("a", mode="shared-items", train_seconds=1.26, making_seconds=1234.5),
        made_up_row("b", seeds=1, bytes=2048),
    ]
    shown = cells(rows)
    assert shown["a"] == ["shared", "0.1234", "0.1234", "±0.0123", "-", "1,234", "1.3", "10"]
    assert shown["b"] == ["scratch", "0.1234", "0.1234", "-", "45.6", "12.3", "2.0"]


def test_what_a_manifest_does_not_have_is_left_empty() -> None:
    row = made_up_row("TD3 summary", seeds=1)
    del row["train_seconds"], row["making_seconds"]
    assert cells([row])["TD3 summary"] == ["scratch", "0.1234", "0.1234", "-", "10"]
