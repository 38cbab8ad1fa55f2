"""Facts of a log against a plain count of them, and the notes that they give."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from td3engine.config import DataConfig
from td3engine.data.facts import NOTES, facts_of, notes_of
from td3engine.data.reading import read_log
from td3engine.data.split import split_log
from td3engine.data.types import Interactions
from tests.effort import effort
from tests.td3engine.data.kit import read_bytes

Row = tuple[str, str, int]
USERS = ["u", "v", "NA", "12.0", "Null"]
ITEMS = ["i", "j", "k", "nan", "3.0"]
logs = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


def log_of(rows: list[Row]) -> Interactions:
    import pyarrow as pa

    users, items, times = zip(*rows, strict=True)
    return read_log(pa.table({"user": users, "item": items, "time": times}))


def counted(rows: list[Row]) -> dict[str, float]:
    """Word by word as `LogFacts` has them."""
    of_user = {user: sorted([row for row in rows if row[0] == user], key=lambda row: row[2])
               for user in {row[0] for row in rows}}  # fmt: skip
    equal = sum(count - 1 for count in Counter(rows).values())
    ties = sum(
        any((u, t) == (user, time) and i != item for u, i, t in rows) for user, item, time in rows
    )
    repeats = sum(
        row[1] in [earlier[1] for earlier in own[:nth]]
        for own in of_user.values()
        for nth, row in enumerate(own)
    )
    several = [own for own in of_user.values() if len(own) > 1]
    last = [own[-1] for own in of_user.values() if len(own) > 2]
    others = Counter(row[1] for row in rows)
    others.subtract(row[1] for row in last)
    largest = max(map(len, of_user.values()))
    later = len(rows) - len(of_user)
    return {
        "equal_rows": equal,
        "equal_share": equal / len(rows),
        "tie_share": ties / len(rows),
        "repeat_share": (repeats - equal) / (later - equal) if later > equal else 0,
        "largest_user_share": largest / len(rows),
        "largest_user_excess": largest / len(rows) * len(of_user),
        "one_item_share": sum(len({row[1] for row in own}) == 1 for own in several)
        / max(1, len(several)),
        "test_only_share": sum(others[row[1]] == 0 for row in last) / max(1, len(last)),
        "missing_user_share": sum(row[0] in ("NA", "Null") for row in rows) / len(rows),
        "missing_item_share": sum(row[1] == "nan" for row in rows) / len(rows),
        "fraction_user_share": ("12.0" in of_user) / len(of_user),
        "fraction_item_share": ("3.0" in {row[1] for row in rows}) / len({row[1] for row in rows}),
    }


@given(rows=logs, part=st.integers(1, 9))
@effort(150)
def test_facts_are_as_counted_by_hand(rows: list[Row], part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("facts", "repeats", "filtering"):
            patch.setattr(f"td3engine.data.{module}.ROWS_AT_ONCE", part)
        found = facts_of(log_of(rows)).model_dump()
    assert found == pytest.approx(counted(rows))


def test_each_note_is_given_from_its_threshold_on() -> None:
    quiet = {note.fact: 0.0 for note in NOTES} | {"removed_item_share": 0.0}
    quiet |= {"catalogue": 1000.0, "largest_user_excess": 9.0}
    assert notes_of(quiet) == []
    for note in NOTES:
        at = note.least if note.fact != "catalogue" else 20.0
        assert len(notes_of(quiet | {note.fact: at})) == 1, note.fact
        short = at - 1e-12 if note.fact != "catalogue" else 21.0
        assert notes_of(quiet | {note.fact: short}) == [], note.fact
    assert notes_of({}) == []


def test_a_plain_log_has_no_note(tmp_path: Path) -> None:
    rows = "".join(
        f"u{user},i{(user + 3 * nth) % 40},{nth}\n" for user in range(40) for nth in range(8)
    )
    log = read_bytes(tmp_path, f"user,item,time\n{rows}".encode())
    assert split_log(log, DataConfig()).notes() == []


def test_the_cases_that_were_silent_are_said(tmp_path: Path) -> None:
    twice = "".join(f"u{user},i{nth % 5},{nth}\n" * 2 for user in range(9) for nth in range(9))
    log = read_bytes(tmp_path, f"user,item,time\n{twice}".encode())
    assert any("50.0% of rows have the user, item and time" in each for each in _notes(log))
    anonymous = "user,item,time\n" + "".join(f"NA,i{n},{n}\n" for n in range(20))
    anonymous += "".join(f"{u},i{n},{n}\n" for u in ("900", "901") for n in range(5))
    said = _notes(read_bytes(tmp_path, anonymous.encode()))
    assert any("66.7% of rows have a user id such as NA" in each for each in said)
    assert any("one user has 67% of the rows" in each for each in said)
    days = b"user,item,date,time_ms\n7,a,20220408,1649423000000\n7,b,20220408,1649423000001\n"
    assert any(
        "'time_ms'" in each and "'date'" in each for each in _notes(read_bytes(tmp_path, days))
    )
    whole = b"user,item,time\n1.0,a,1\n2.0,b,2\n"
    assert any(
        "user ids are written like 123.0" in each for each in _notes(read_bytes(tmp_path, whole))
    )


def _notes(log: Interactions) -> list[str]:
    return notes_of(facts_of(log).model_dump(), log.reading)


LOG = b"user,item,time\n" + b"".join(
    b"%s,%s,%d\n" % row
    for row in [(b"u", b"b", 1), (b"u", b"a", 1), (b"u", b"c", 1), (b"u", b"b", 2),
                (b"NA", b"a", 1), (b"v", b"null", 1), (b"v", b"a", 2), (b"v", b"a", 3),
                (b"v", b"b", 4)]
)  # fmt: skip
ALL = DataConfig(min_user_interactions=1, min_item_interactions=1)


def histories(log: Interactions, **settings: object) -> dict[str, list[str]]:
    split = split_log(log, ALL.model_copy(update=settings))
    return {
        user: [split.item_ids[item] for item in split.history(nth)]
        for nth, user in enumerate(split.user_ids)
    }


def test_rows_without_a_user_or_an_item_can_be_left_out(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, LOG)
    assert histories(log) == {"NA": ["a"], "u": ["b", "a", "c", "b"], "v": ["null", "a", "a", "b"]}
    assert histories(log, missing_ids="drop") == {"u": ["b", "a", "c", "b"], "v": ["a", "a", "b"]}
    split = split_log(log, ALL.model_copy(update={"missing_ids": "drop"}))
    assert split.dropped_missing == split.statistics().dropped_missing == 2


def test_repeats_can_be_left_out(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, LOG)
    assert histories(log, repeats="first") == {
        "NA": ["a"], "u": ["b", "a", "c"], "v": ["null", "a", "b"],
    }  # fmt: skip
    split = split_log(log, ALL.model_copy(update={"repeats": "first"}))
    assert (split.dropped_repeats, split.repeat_share) == (2, 0.0)
    # They go before the filter counts: u has three events left, v too.
    few = DataConfig(min_user_interactions=4, min_item_interactions=1, repeats="first")
    with pytest.raises(ValueError, match="0 of 9 interactions are left"):
        split_log(log, few)


def test_ties_are_ordered_as_asked(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, LOG)
    assert histories(log, ties="item")["u"] == ["a", "b", "c", "b"]
    assert histories(log, ties="item")["v"] == ["null", "a", "a", "b"]
    many = b"user,item,time\n" + b"".join(b"u,%d,1\n" % n for n in range(99)) + b"u,last,2\n"
    tied = read_bytes(tmp_path, many)
    found = histories(tied, ties="random")["u"]
    assert found == histories(tied, ties="random")["u"]
    assert found[-1] == "last"
    assert found != histories(tied)["u"]
    assert sorted(found) == sorted(histories(tied)["u"])
    assert tied.fingerprint() == tied.fingerprint()


def test_a_splits_statistics_have_the_facts(tmp_path: Path) -> None:
    log = read_bytes(tmp_path, LOG)
    found = split_log(
        log, DataConfig(min_user_interactions=2, min_item_interactions=1)
    ).statistics()
    assert (found.columns, found.other_times) == ("user, item, time", None)
    assert found.removed_user_share == pytest.approx(1 / 3)
    assert found.removed_share == pytest.approx(1 / 9)
    assert found.removed_item_share == 0
    assert found.tie_share == pytest.approx(3 / 9)
    assert found.missing_user_share == found.missing_item_share == pytest.approx(1 / 9)
    assert found.equal_rows == 0


def test_a_split_with_other_numbers_is_the_same(tmp_path: Path) -> None:
    split = split_log(read_bytes(tmp_path, LOG), ALL)
    order = sorted(split.item_ids, reverse=True)
    other = split.with_items(order)
    before = [split.item_ids[item] for item in split.histories]
    assert [other.item_ids[item] for item in other.histories] == before
    assert other.item_ids == order
    assert other.histories.dtype == np.int32
