#!/usr/bin/env bash
# DuckDB: a HUGEINT column becomes floats in Parquet, and two ids become one.
#
# Parquet has no 128-bit integer, and DuckDB's COPY writes HUGEINT as DOUBLE without a word. HUGEINT is not
# exotic: `sum()` of a BIGINT column gives one, and so do numbers beyond 64 bits in a query. Above 2^53 neighbours
# fall together, so ids, keys and hashes that went through such a column are not what they were.
# Whom it hurts: everybody who hands ids from DuckDB to another tool by Parquet; also readers that take whole
# numbers only and find floats.
# What helps: `CAST(... AS BIGINT)`, `AS VARCHAR` or `AS DECIMAL(38, 0)` in the query.
#
# Versions: duckdb 2.0.1, pyarrow 26.0.1 (to look at the file), Python 3.11.
# Seen: a sum of BIGINT is written as DOUBLE; 9007199254740992 and ...993 are one number afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cd "$work"
"$work/env/bin/python" - <<'PY'
import duckdb
import pyarrow.parquet as pq

ids = "(VALUES (9007199254740992::BIGINT), (9007199254740993::BIGINT)) t(id)"
duckdb.sql(f"COPY (SELECT sum(id) AS id FROM {ids} GROUP BY id) TO 'sum.parquet' (FORMAT parquet)")
duckdb.sql(
    f"COPY (SELECT sum(id)::DECIMAL(38, 0) AS id FROM {ids} GROUP BY id) TO 'cast.parquet' "
    "(FORMAT parquet)"
)
kind = str(pq.read_schema("sum.parquet").field("id").type)
left = {
    name: duckdb.sql(f"SELECT count(DISTINCT id) FROM '{name}.parquet'").fetchall()[0][0]
    for name in ("sum", "cast")
}
print(f"sum(BIGINT) is written as {kind}; different ids of 2: {left}")
assert kind == "double", "HUGEINT is written as DOUBLE"
assert left == {"sum": 1, "cast": 2}, "two ids became one"
PY
