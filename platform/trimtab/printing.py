"""What commands print on stdout: text and tables, wide where no terminal says how wide."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def say(text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)


def table(rows: list[list[str]]) -> None:
    """The first row is the head."""
    if not rows:
        return
    made = Table(*rows[0], box=None, header_style="bold")
    for row in rows[1:]:
        made.add_row(*map(Text, row))
    console.print(made)
