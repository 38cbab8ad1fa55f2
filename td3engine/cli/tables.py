"""Printing tables of results."""

from collections.abc import Sequence

from rich.console import Console

from td3engine.evaluation.table import Row, results_tables


def print_results(rows: Sequence[Row], console: Console) -> None:
    """One table a protocol."""
    for table in results_tables(rows):
        console.print(table)
