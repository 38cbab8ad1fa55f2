"""Good files, damaged in every way: never a 5xx, never a hang, always a code that says why."""

import asyncio
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from app.http.problems import PROBLEM_CODES
from app.http.request_body import SUFFIXES
from tests.app.http.kit import Service, problem, running, settings_for
from tests.effort import effort
from tests.forking_reader import ForkingReader, forking_reader

ROWS = 60
CSV = b"user_id,item_id,timestamp\n" + b"".join(
    b'"u%d",i%d,%d\n' % (row % 5, row % 7, row) for row in range(ROWS)
)
CODES_WITH_A_LINE = {"bad_value", "bad_encoding", "ragged_row"}


def _parquet(**options: object) -> bytes:
    table = pa.table(
        {
            "user": [f"u{row % 5}" for row in range(ROWS)],
            "item": [f"i{row % 7}" for row in range(ROWS)],
            "time": list(range(ROWS)),
            "tags": [["a"]] * ROWS,
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


FILES = {
    "log.csv": CSV,
    "log.tsv": CSV.replace(b",", b"\t"),
    "log.inter": CSV.replace(b",", b"\t").replace(b"_id", b"_id:token").replace(b"mp", b"mp:float"),
    "log.csv.gz": gzip.compress(CSV, mtime=0),
    "log.csv.zst": zstandard.compress(CSV),
    "twice.csv.gz": gzip.compress(zstandard.compress(CSV), mtime=0),
    "log.parquet": _parquet(),
    "small.parquet": _parquet(compression="zstd", row_group_size=20, data_page_version="2.0"),
    "plain.parquet": _parquet(compression="none", use_dictionary=False, store_schema=False),
}
OWN_FORMATS = sorted(name for name in FILES if not name.endswith(".parquet"))
_positions = st.integers(0, 10**6)
_damage = st.one_of(
    st.tuples(st.just("flip"), _positions, st.integers(1, 255)),
    st.tuples(st.just("flip near the end"), st.integers(0, 900), st.integers(1, 255)),
    st.tuples(st.just("write"), _positions, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), _positions, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("cut"), _positions, st.none()),
    st.tuples(st.just("drop"), _positions, st.integers(1, 60)),
    st.tuples(st.just("splice"), _positions, st.sampled_from(OWN_FORMATS)),
    st.tuples(
        st.just("rename"), st.none(), st.sampled_from([b"user", b"x", b"", b"\xff", b"time"])
    ),
)


def _apply(content: bytes, kind: str, position: int | None, by: object) -> bytes:
    if kind == "rename":
        assert isinstance(by, bytes)
        return content.replace(b"item", by)
    assert position is not None
    at = position % (len(content) + 1)
    if kind == "flip near the end":
        at = max(0, len(content) - 1 - position)
    match by:
        case None:
            return content[:at]
        case str():
            return content[:at] + FILES[by][at:]
        case bytes():
            return content[:at] + by + content[at + (len(by) if kind == "write" else 0) :]
        case int():
            if kind == "drop":
                return content[:at] + content[at + by :]
            return (
                content[:at] + bytes(byte ^ by for byte in content[at : at + 1]) + content[at + 1 :]
            )
    raise AssertionError(kind)


@pytest.fixture(scope="module")
def reader() -> Iterator[ForkingReader]:
    with forking_reader() as reader:
        yield reader


@pytest.fixture(scope="module")
def service(
    sqlite_template: Path,
    broker_server: str,
    tmp_path_factory: pytest.TempPathFactory,
    reader: ForkingReader,
) -> Iterator[Service]:
    """The API over SQLite, with the real reader, forked; all examples share it."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
    settings = settings_for(f"sqlite:///{folder / 'td3.sqlite3'}", broker_server, folder)

    async def run(command: Sequence[str], seconds: float) -> tuple[int, str, str]:
        arguments = command[command.index("td3engine.data.normalise") + 1 :]
        return await asyncio.to_thread(reader.run, arguments)

    with pytest.MonkeyPatch.context() as patch, running(settings) as service:
        patch.setattr("app.http.normaliser.run_command", run)
        yield service


def test_the_files_are_good_before_they_are_damaged(service: Service) -> None:
    taken = {
        name: service.http.post("/datasets", files={"file": (name, content)}).status_code
        for name, content in FILES.items()
    }
    assert taken == {name: 422 if name.startswith("twice") else 201 for name in FILES}


@given(
    name=st.sampled_from(sorted(FILES)),
    damage=st.lists(_damage, max_size=3),
    media_type=st.none() | st.sampled_from(sorted(SUFFIXES)),
)
@example(name="log.csv", damage=[("rename", None, b"\xff")], media_type=None)
@effort(150)
def test_no_damage_leads_to_a_5xx_or_a_hang(
    service: Service,
    name: str,
    damage: list[tuple[str, int | None, object]],
    media_type: str | None,
) -> None:
    """As a form, or as the body itself, which may claim to be something else.

    Our own parsers are tried, not others': Parquet is cut only. What a parser's death costs is
    tested by a reader that ends itself (test_hostile_uploads.py).
    """
    content = FILES[name]
    for kind, position, by in damage:
        if name.endswith(".parquet") and kind != "cut":
            continue
        content = _apply(content, kind, position, by)
    if media_type is None:
        answer = service.http.post("/datasets", files={"file": (name, content)})
    else:
        headers = {"content-type": media_type}
        answer = service.http.post("/datasets", content=content, headers=headers)
    if answer.status_code == 201:
        assert answer.json()["statistics"]["interactions"] > 0
        return
    body = problem(answer, 422, answer.json()["code"])
    assert body["code"] in PROBLEM_CODES
    assert "reader" not in body["detail"]
    if body["code"] in CODES_WITH_A_LINE:
        assert body["line"] >= 1
    if body["code"] == "bad_value":
        assert body["column"]


@given(
    media_type=st.one_of(
        st.sampled_from(sorted(SUFFIXES)),
        st.sampled_from(["multipart/form-data", "multipart/form-data; boundary=x", "text/plain"]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    ),
    body=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    *(b"--x\r\n", b"--x--", b"--x", b"\r\n", b"\r\n\r\n", b"--", b";", b"=", b'"'),
                    b'Content-Disposition: form-data; name="file"; filename="a.csv"',
                    b'Content-Disposition: form-data; name="name"',
                    b"Content-Transfer-Encoding: base64",
                    CSV,
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    query=st.sampled_from(["", "?name=x", "?columns=%7B%7D", "?columns=nonsense", "?name="]),
)
@effort(100)
def test_no_body_leads_to_a_5xx(service: Service, media_type: str, body: bytes, query: str) -> None:
    headers = {"content-type": media_type}
    answer = service.http.post(f"/datasets{query}", content=body, headers=headers)
    if answer.status_code != 201:
        assert problem(answer, answer.status_code, answer.json()["code"])["code"] in PROBLEM_CODES
        assert answer.status_code < 500
    assert service.uploads_in_flight() == []
