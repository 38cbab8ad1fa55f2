"""JSON lines: what they are read as, and what they are refused with."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.data.reading import format_of_name, read_log
from td3engine.data.types import ColumnNames, Limits, LogError
from tests.td3engine.data.kit import read_bytes, refusal, rows

GOOD = b'{"user_id": "u", "item_id": "i", "timestamp": 1}\n'
THREE = GOOD + (
    b'{"timestamp": 2, "user_id": "v", "item_id": "j", "note": {"user_id": [1, {}]}}\n'
    b'{"item_id": "k", "user_id": "u", "timestamp": 0}\n'
)
PARSED = [("u", "k", 0), ("u", "i", 1), ("v", "j", 2)]
MIB = 2**20


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.jsonl", THREE),
        ("log.ndjson", THREE.rstrip()),
        ("reviews.json", THREE.replace(b"\n", b"\r\n")),
        ("log.jsonl", b"\xef\xbb\xbf" + THREE),
        ("log.jsonl", b"\n" + THREE.replace(b"\n", b"\n \t\r\n\n")),
        ("log.JSONL.gz", gzip.compress(THREE, mtime=0)),
        ("log.ndjson.zst", zstandard.compress(THREE)),
        ("upload", THREE),
        ("upload", gzip.compress(b" \n" + THREE, mtime=0)),
        ("log.jsonl", THREE.replace(b"user_id", b"reviewerID").replace(b"item_id", b"asin")),
        ("log.jsonl", THREE.replace(b'"u"', rb'"\u0075"')),
    ],
)
def test_json_lines_in_every_dress_give_the_same_rows(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert rows(read_bytes(tmp_path, content, name)) == PARSED


def test_the_format_goes_by_the_name() -> None:
    assert [format_of_name(name) for name in ("a.JSONL.gz", "a.ndjson", "a.json.zst")] == [
        "jsonl"
    ] * 3


def test_ids_and_numbers_are_what_is_written(tmp_path: Path) -> None:
    lines = [
        '{"user_id": 7, "item_id": "07", "timestamp": "3"}',
        '{"user_id": "7", "item_id": %s, "timestamp": 9007199254740993}' % ("9" * 900),
        '{"user_id": -7, "item_id": "é\\n", "timestamp": 4e0}',
    ]
    log = read_bytes(tmp_path, "\n".join(lines).encode(), "log.jsonl")
    assert rows(log) == [
        ("-7", "é\n", 4), ("7", "07", 3), ("7", "9" * 900, 9007199254740993),
    ]  # fmt: skip


def test_times_may_be_dates(tmp_path: Path) -> None:
    content = GOOD.replace(b"1}", b'"1970-01-01T00:00:01Z"}') * 2
    assert read_bytes(tmp_path, content, "log.jsonl").times.tolist() == [1, 1]


def test_columns_can_be_named(tmp_path: Path) -> None:
    content = b'{"a": 1, "b": 2, "c": 3}\n'
    names = ColumnNames(user="b", item="a", time="c")
    assert rows(read_bytes(tmp_path, content, "x.jsonl", columns=names)) == [("2", "1", 3)]


def bad(**fields: Any) -> bytes:
    return json.dumps({"user_id": "u", "item_id": "i", "timestamp": 2} | fields).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "code", "line", "column"),
    [
        (b"\n \n", "empty_file", None, None),
        (b"\n" + b'{"user_id": 1, "item_id": 2}\n', "missing_column", 2, "time"),
        (b"{}\n", "missing_column", 1, "user"),
        (b"[" + GOOD, "bad_format", 1, None),
        (GOOD + b"[1]\n", "bad_format", 2, None),
        (GOOD + b'"user_id"\n', "bad_format", 2, None),
        (GOOD + b"null\n", "bad_format", 2, None),
        (GOOD + b"user_id,item_id,timestamp\n", "bad_format", 2, None),
        (GOOD + b"\n" + GOOD[:-3], "bad_format", 3, None),
        (GOOD + GOOD.strip() + GOOD, "bad_format", 2, None),
        (GOOD.replace(b"1}", b"NaN}"), "bad_format", 1, None),
        (GOOD + bad(other=float("-inf")), "bad_format", 2, None),
        (GOOD + b'{"x": "a\tb"}\n', "bad_format", 2, None),
        (GOOD + b'{"user_id": "u", "item_id": "i", "timestamp": 01}\n', "bad_format", 2, None),
        (GOOD + b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}\n", "bad_format", 2, None),
        (GOOD + b"[" * 200_000, "bad_format", 2, None),
        (GOOD + b'{"a":' * 50_000, "bad_format", 2, None),
        (GOOD + rb'{"a": "' + rb"\"[" * 80_000, "bad_format", 2, None),
        (GOOD + bad(user_id=None), "bad_value", 2, "user_id"),
        (GOOD + b'{"user_id": "u", "timestamp": 2}\n', "bad_value", 2, "item_id"),
        (GOOD + bad(user_id=1.0), "bad_value", 2, "user_id"),
        (GOOD + bad(user_id=True), "bad_value", 2, "user_id"),
        (GOOD + bad(item_id=["i"]), "bad_value", 2, "item_id"),
        (GOOD + bad(item_id={"id": "i"}), "bad_value", 2, "item_id"),
        (GOOD + bad(item_id=" "), "bad_value", 2, "item_id"),
        (GOOD + bad(item_id="\0"), "bad_value", 2, "item_id"),
        (GOOD + b"\n" + bad(item_id="\ud800"), "bad_value", 3, "item_id"),
        (GOOD + bad(timestamp=False), "bad_value", 2, "timestamp"),
        (GOOD + bad(timestamp="soon"), "bad_value", 2, "timestamp"),
        (GOOD + GOOD.replace(b"1}", b"1e999}"), "bad_value", 2, "timestamp"),
        (GOOD + GOOD.replace(b"1}", b"9" * 5000 + b"}"), "field_too_long", 2, "timestamp"),
        (GOOD + bad(user_id="u" * 2000), "field_too_long", 2, "user_id"),
        (GOOD + bad(note="x" * 300_000), "field_too_long", 2, None),
        (GOOD + bad(note="x" * 5 * MIB), "field_too_long", 2, None),
        (GOOD + b'{"item_id": 1, "item_id": 1, "user_id": 1, "timestamp": 1}\n', "duplicate_column", 2, "item_id"),  # noqa: E501
        (GOOD.replace(b"{", b'{"UserID": 1, '), "duplicate_column", 1, "UserID"),
        (GOOD + bad(**{f"c{n}": n for n in range(1000)}), "too_many_columns", 2, None),
        (GOOD + b'{"user_id": "\xfc"}\n', "bad_encoding", 2, None),
        (GOOD + b'{"user_id": "\0"}\n', "bad_encoding", 2, None),
        (GOOD.decode().encode("utf-16"), "bad_encoding", 1, None),
    ],
)  # fmt: skip
def test_bad_lines_are_refused_with_their_place(
    tmp_path: Path, content: bytes, code: str, line: int | None, column: str | None
) -> None:
    error = refusal(tmp_path, content, "log.jsonl")
    assert (error.code, error.line, error.column) == (code, line, column)
    if line and code != "missing_column" and line > 1:
        assert f"line {line}" in error.message
    error.message.encode()  # can be sent and stored


def test_depth_counts_brackets_outside_of_strings_only(tmp_path: Path) -> None:
    text = bad(note='["' * 500, other=[[[[]]]] * 100, last="\\")
    assert rows(read_bytes(tmp_path, text, "log.jsonl")) == [("u", "i", 2)]
    nested = b'{"a": ' + b"[" * 99 + b"]" * 99 + b", " + GOOD[1:]
    assert rows(read_bytes(tmp_path, nested, "log.jsonl")) == [("u", "i", 1)]


@pytest.mark.parametrize("keys", [(r"\ud800", r"\u0000"), (r"a\ud800", r"a\ud800")])
def test_keys_that_are_no_text_can_be_told(tmp_path: Path, keys: tuple[str, str]) -> None:
    content = '{{"{}": 1, "{}": 2}}\n'.format(*keys)
    error = refusal(tmp_path, content.encode(), "log.jsonl")
    told = error.message + (error.column or "")
    told.encode()
    assert "\0" not in told


def test_a_fault_deep_in_a_large_packed_file_has_its_line(tmp_path: Path) -> None:
    lines = [
        b'{"user": "user %d", "item": %d, "time": %d}\n' % (n, n % 7, n) for n in range(60_000)
    ]
    for position, wrong, code in [
        (59_000, b'{"user": 1, "item": 2}\n', "bad_value"),
        (40_001, b"{]\n", "bad_format"),
        (59_999, b'{"user": 1, "item": 2, "time": "soon"}\n', "bad_value"),
    ]:
        broken = [*lines[:position], wrong, *lines[position + 1 :]]
        packed = zstandard.compress(b"".join(broken))
        error = refusal(tmp_path, packed, "log.jsonl.zst")
        assert (error.code, error.line) == (code, position + 1)


def test_limits(tmp_path: Path) -> None:
    many = GOOD * 2000

    def code(content: bytes = many, **limits: int) -> str:
        return refusal(tmp_path, content, "log.jsonl", limits=Limits(**limits)).code

    assert code(max_bytes=100) == "too_large"
    assert code(max_unpacked_bytes=100) == "too_large"
    assert code(gzip.compress(many, mtime=0), max_unpacked_bytes=9000) == "too_large"
    assert code(max_rows=1999) == "too_many_rows"
    assert code(max_columns=2) == "too_many_columns"
    path = tmp_path / "log.jsonl"
    path.write_bytes(many)
    exact = Limits(max_bytes=len(many), max_unpacked_bytes=len(many), max_rows=2000, max_columns=3)
    assert len(read_log(path, limits=exact).times) == 2000


def test_a_bomb_is_refused_early_and_in_little_memory(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    error = refusal(tmp_path, gzip.compress(bad(note="x" * 100_000) * 1000), "log.jsonl")
    assert (error.code, "times its size" in error.message) == ("too_large", True)
    assert pa.total_allocated_bytes() - before < 64 * MIB


ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: bool(text.strip())
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ids,  # noqa: E501
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ids, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def objects(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Objects whose keys come in any order, among others."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        fields = {
            "user": draw(ids | st.integers()),
            "item": draw(ids | st.integers()),
            "time": draw(st.integers(-(2**62), 2**62)),
            "note": draw(values),
        }
        found.append({key: fields[key] for key in draw(st.permutations(sorted(fields)))})
    return found


@given(log=objects(), ascii_only=st.booleans(), block=st.sampled_from([7, 60, 2**20]))
@settings(max_examples=120, deadline=None)
def test_any_objects_are_read_as_json_has_them(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[dict[str, Any]],
    ascii_only: bool,
    block: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(
        "\n".join(json.dumps(fields, ensure_ascii=ascii_only) for fields in log), "utf-8"
    )
    expected = [(str(each["user"]), str(each["item"]), each["time"]) for each in log]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("td3engine.data.readers.blocks.BLOCK_BYTES", block)
        found = rows(read_log(path))
    assert found == sorted(expected, key=lambda row: (row[0].encode(), row[2]))


def damaged(content: bytes, edits: list[tuple[int, bytes]]) -> Iterator[bytes]:
    for position, piece in edits:
        start = position % (len(content) + 1)
        content = content[:start] + piece + content[start + len(piece) :]
        yield content


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.binary(max_size=4) | st.text('{}[]",:\\u0d8\n 1e', max_size=6).map(str.encode),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_no_damage_leads_to_anything_but_rows_or_a_log_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    for content in damaged(THREE * 3, edits):
        path.write_bytes(content)
        try:
            log = read_log(path)
        except LogError as error:
            error.message.encode()
            assert error.line or error.code == "empty_file"
        else:
            assert len(log.times) == len(log.user_codes) == len(log.item_codes) > 0
