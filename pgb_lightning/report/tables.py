"""Tables of a pruned model for the terminal."""

from __future__ import annotations

import io
import statistics

from rich.console import Console
from rich.table import Table

from pgb_lightning.encoders.base import MATRICES, SUBLAYERS
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report.facts import STAGES, Facts
from pgb_lightning.report.summary import predicted_error, split_cut, sublayer_weights


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


def error_table(plan: PruningPlan, facts: Facts) -> Table:
    """Tabulate what attention and feed-forward networks keep, and what that costs, predicted and measured.

    Args:
        plan: The plan.
        facts: What else is known.

    Returns:
        A table with a row per layer, and the split of the cut below.
    """
    table = Table(title="PGB: kept share, predicted rise of the loss, measured error")
    table.add_column("layer", justify="right")
    for sublayer in SUBLAYERS:
        for column in ("kept", "predicted", "measured"):
            table.add_column(f"{sublayer}\n{column}", justify="right")
    for layer in range(plan.num_layers):
        cells = []
        for sublayer in SUBLAYERS:
            kept, total = sublayer_weights(plan, layer, sublayer)
            measured = facts.sublayer_errors.get(f"{layer}.{sublayer}")
            cells += [f"{kept / total:.0%}", number(predicted_error(plan, layer, sublayer), 3), number(measured, 3)]
        table.add_row(str(layer), *cells)
    table.add_section()
    split = split_cut(plan)
    table.add_row("all", *(cell for part in split.values() for cell in (f"{part.kept_share:.0%}", "", "")))
    parts = " and ".join(f"{part.points:.1f} on {sublayer}" for sublayer, part in split.items())
    table.caption = (
        f"of {100 * plan.pruning_ratio:.1f} points cut, {parts}; measured: hidden states behind the sublayer"
    )
    return table


def outcome_table(plan: PruningPlan, facts: Facts) -> Table:
    """Tabulate scores, size and latency: dense, pruned and re-finetuned.

    Args:
        plan: The plan.
        facts: What is known.

    Returns:
        A table with a row per number; ``-`` stands for what was not measured.
    """
    table = Table(title=f"PGB: {plan.pruning_ratio:.1%} of the encoder removed")
    for column in ("", *STAGES, "of dense"):
        table.add_column(column, justify="right" if column else "left")
    for metric in metrics(facts):
        found = [facts.scores.get(stage, {}).get(metric) for stage in STAGES]
        table.add_row(metric, *map(number, found), "")
    kept, total = plan.kept_parameters, plan.total_parameters
    table.add_row("encoder weights", f"{total:,}", f"{kept:,}", f"{kept:,}", f"{kept / total:.0%}")
    if facts.flops:
        dense, pruned = facts.flops["dense"], facts.flops["pruned"]
        cells = (f"{flops / 1e9:.3g}" for flops in (dense, pruned, pruned))
        table.add_row("encoder GFLOPs, 128 tokens", *cells, f"{pruned / dense:.0%}")
    for each in facts.latency:
        dense_ms, pruned_ms = (1000 * statistics.median(seconds) for seconds in (each.dense, each.pruned))
        cells = (f"{ms:.3g}" for ms in (dense_ms, pruned_ms, pruned_ms))
        label = f"encoder ms, {each.batch_size} x {each.length} tokens"
        table.add_row(label, *cells, f"{pruned_ms / dense_ms:.0%}")
    return table


def metrics(facts: Facts) -> list[str]:
    """List the metrics of any stage: scores before losses, those of the last stage first, in their order."""
    names = [name for stage in reversed(STAGES) for name in facts.scores.get(stage, {})]
    return sorted(dict.fromkeys(names), key=lambda name: "loss" in name)


def number(value: float | None, digits: int = 4) -> str:
    """Write a number in a few digits, and ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}g}" if value >= 1e-3 or value <= 0 else f"{value:.1e}"


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
