"""Readers of logs: one module a format, listed in `registry.py`.

Source: a path. `text.py`, `jsonl.py` and `parquet.py` each declare their formats and read them;
`tables.py` reads tables that are in memory already. Result: batches of three arrow columns, each
with the line or row that it came from (`batches.py`), which `collect.py` checks, numbers and sorts.
"""
