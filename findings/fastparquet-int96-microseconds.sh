#!/usr/bin/env bash
# fastparquet: `times="int96"` writes the times of pandas 3 a thousand times too small: 2020 becomes 1970.
#
# pandas 3 gives moments microseconds (`datetime64[us]`), where pandas 2 gave them nanoseconds. With
# `times="int96"`, which Spark, Hive and Impala of older days want, fastparquet takes the numbers for
# nanoseconds. The file is valid, every reader agrees on it, and all times lie in January 1970. The default
# (`times="int64"`) writes the right times.
# Whom it hurts: everybody who writes Parquet for Hive or old Spark from pandas 3. The order of events stays, so
# nothing looks broken; joins by day, splits by date and "days since" are wrong.
# What helps: `frame["t"].astype("datetime64[ns]")` before writing, or times="int64".
#
# Versions: fastparquet 2026.9.0, pandas 3.1.1, pyarrow 26.0.1 (a second reader), numpy 2.4.6, Python 3.11.
# Seen: 2020-01-01 00:00 is written as 1970-01-19 06:17:16.8; with nanoseconds it is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    fastparquet==2026.9.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
"$work/env/bin/python" -W ignore - <<'PY'
import fastparquet
import pandas as pd
import pyarrow.parquet as pq

frame = pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])})
assert str(frame["t"].dtype) == "datetime64[us]"


def read_back(frame: pd.DataFrame, times: str) -> tuple[str, str]:
    """What fastparquet and pyarrow read of what fastparquet wrote."""
    fastparquet.write("t.parquet", frame, times=times)
    own = fastparquet.ParquetFile("t.parquet").to_pandas()["t"][0]
    other = pq.read_table("t.parquet", coerce_int96_timestamp_unit="us").column("t")[0].as_py()
    return str(own), str(other)


wrong, right = read_back(frame, "int96"), read_back(frame, "int64")
helped = read_back(frame.astype({"t": "datetime64[ns]"}), "int96")
print(f"int96: {wrong}\nint64: {right}\nint96 of nanoseconds: {helped}")
assert all(each.startswith("1970-01-19") for each in wrong), "int96 of microseconds: the year 1970"
assert all(each.startswith("2020-01-01") for each in (*right, *helped)), "the others: the year 2020"
PY
