"""Tables of rich as Markdown."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table


def use_markdown(table: Table) -> None:
    """Let a table be printed as Markdown, which has no title.

    Args:
        table: The table.
    """
    table.box, table.title, table.caption = box.MARKDOWN, None, None


def as_markdown(table: Table, width: int = 300) -> str:
    """Return a table as Markdown.

    Args:
        table: The table. Its style is changed.
        width: Maximum width in characters. Wider cells would be wrapped, which Markdown does not allow.

    Example:
        >>> table = Table("model", "ms")
        >>> table.add_row("dense", "12.0")
        >>> print(as_markdown(table))
        | model | ms   |
        |-------|------|
        | dense | 12.0 |
    """
    use_markdown(table)
    text = StringIO()
    Console(file=text, width=width).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
