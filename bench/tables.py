"""Prints the rows of a benchmark as a table on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["show"]


def show(
    console: Console, title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]
) -> None:
    """Prints a table; if a row has NAME and "NAME sd", they are shown as one value ± sd."""
    table = Table(title=title)
    for column in columns:
        left = column in ("case", "method", "best peer", "measure", "peers' order")
        table.add_column(column.replace("_", " "), justify="left" if left else "right")
    for row in rows:
        cells = []
        for column in columns:
            value, spread = row.get(column), row.get(f"{column} sd")
            text = (
                "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            )
            cells.append(text if spread is None else f"{text} ±{spread:.3f}")
        table.add_row(*cells)
    console.print(table)
