"""Tables: rich on a terminal, aligned plain text in a pipe or without rich."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?x?")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of text under ``columns``; columns of numbers are right-aligned."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        _print_rich(title, columns, rows)
    else:
        print(plain_table(title, columns, rows), end="\n\n")


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as plain text, two spaces between columns, no trailing blanks."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    right = [_numeric(rows, i) for i in range(len(columns))]
    lines = [title]
    for row in [columns, *rows]:
        cells = zip(row, widths, right, strict=True)
        aligned = [t.rjust(width) if r else t.ljust(width) for t, width, r in cells]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _print_rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if _numeric(rows, i) else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup in user's strings
    Console().print(table)


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = [row[column] for row in rows if row[column]]
    return bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)
