#!/usr/bin/env bash
# pyarrow and pandas: a 96-bit time of the year 9999 is read as the year 1816, without a word.
#
# Older Spark, Hive and Impala write moments as INT96: nanoseconds of a day, and the day. Such files hold the
# usual "never" of data warehouses, 9999-12-31. pyarrow turns INT96 into 64-bit nanoseconds, which end in 2262,
# and lets the numbers wrap round. pandas and fastparquet read the same. DuckDB reads the year 9999.
# Whom it hurts: everybody who sorts or filters by such a column: an open end becomes the earliest time of all.
# What helps: `coerce_int96_timestamp_unit="us"` (pyarrow), or have Spark write TIMESTAMP_MICROS.
#
# Versions: pyarrow 26.0.1, pandas 3.1.1, duckdb 2.0.1, numpy 2.4.6, Python 3.11.
# Seen: 1816-03-29 05:56:08 from pyarrow and pandas, 9999-12-31 from DuckDB and with the option.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    pyarrow==26.0.1 pandas==3.1.1 duckdb==2.0.1 numpy==2.4.6
cd "$work"
"$work/env/bin/python" -W ignore - <<'PY'
from datetime import datetime

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

moments = pa.array([datetime(2020, 1, 1), datetime(9999, 12, 31)], pa.timestamp("us"))
pq.write_table(pa.table({"t": moments}), "t.parquet", use_deprecated_int96_timestamps=True)
column = pq.read_table("t.parquet").column("t")
years = {
    "pyarrow": [int(str(each)[:4]) for each in column.to_numpy()],
    "pandas": pd.read_parquet("t.parquet")["t"].dt.year.tolist(),
    "duckdb": [row[0].year for row in duckdb.sql("select t from 't.parquet'").fetchall()],
    "pyarrow, microseconds": [
        each.as_py().year
        for each in pq.read_table("t.parquet", coerce_int96_timestamp_unit="us").column("t")
    ],
}
print("\n".join(f"{name}: {found}" for name, found in years.items()))
assert years["pyarrow"] == years["pandas"] == [2020, 1816], "the year 9999 became 1816"
assert years["duckdb"] == years["pyarrow, microseconds"] == [2020, 9999], "and need not"
PY
