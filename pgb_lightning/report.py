"""Tables of a pruned model, for people."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from pgb_lightning.architectures import MATRICES
from pgb_lightning.plan import MatrixPlan, PruningPlan


def plan_table(plan: PruningPlan) -> Table:
    """Tabulate the group number (or size) of every matrix, and the share of its importance that the groups keep.

    Args:
        plan: The plan.

    Returns:
        A table with a row per layer.
    """
    table = Table(title=f"PGB plan: {plan.pruning_ratio:.1%} of the encoder removed")
    table.add_column("layer", justify="right")
    for kind in MATRICES:
        table.add_column(kind, justify="right")
    table.add_column("kept", justify="right")
    for layer in range(plan.num_layers):
        row = [plan.matrix(layer, kind) for kind in MATRICES]
        kept = sum(m.kept_parameters for m in row) / sum(m.total_parameters for m in row)
        table.add_row(str(layer), *map(_cell, row), f"{kept:.0%}")
    table.caption = "G groups, or inputs x outputs kept (share of importance kept); - pruned whole"
    return table


def render(table: Table, width: int = 100) -> str:
    """Return a table as plain text, for log files and loggers."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]


def _cell(matrix: MatrixPlan) -> str:
    if matrix.num_groups == 0:
        return "-"
    if matrix.input_index is None or matrix.output_index is None:
        return "1"
    if matrix.num_groups == 1:
        return f"{len(matrix.input_index[0])}x{len(matrix.output_index[0])} ({matrix.importance_kept:.0%})"
    return f"{matrix.num_groups} ({matrix.importance_kept:.0%})"
