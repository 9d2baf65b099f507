"""Tables of a report for the terminal."""

from __future__ import annotations

import io
import math
import statistics

from rich.console import Console
from rich.table import Table

from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report.facts import STAGES, Facts
from pgb_lightning.report.summary import predicted_error, split_removed, sublayer_weights


def plan_table(plan: PruningPlan) -> Table:
    """Return a table of the group number (or size) and the kept importance of every matrix.

    Args:
        plan: The plan.

    Returns:
        A table with one row per layer.
    """
    table = Table(title=f"PGB plan: {plan.pruning_ratio:.1%} of the encoder removed")
    table.add_column("layer", justify="right")
    for kind in plan.kinds:
        table.add_column(kind, justify="right")
    table.add_column("kept", justify="right")
    for layer in range(plan.num_layers):
        row = [plan.matrix(layer, kind) for kind in plan.kinds]
        kept = sum(m.kept_parameters for m in row) / sum(map(plan.dense_parameters, row))
        table.add_row(str(layer), *map(_cell, row), f"{kept:.0%}")
    table.caption = "number of groups, or inputs x outputs kept (importance kept); -: matrix removed"
    return table


def error_table(plan: PruningPlan, facts: Facts) -> Table:
    """Return a table of the kept weights, predicted errors and measured errors of the sublayers.

    Args:
        plan: The plan.
        facts: The measurements.

    Returns:
        A table with one row per layer. Its caption is the split of the removed weights.
    """
    table = Table(title="PGB: weights kept, predicted increase of the loss, measured relative error")
    table.add_column("layer", justify="right")
    for sublayer in SUBLAYERS:
        for column in ("kept", "predicted", "measured"):
            table.add_column(f"{sublayer}\n{column}", justify="right")
    for layer in range(plan.num_layers):
        cells = []
        for sublayer in SUBLAYERS:
            kept, total = sublayer_weights(plan, layer, sublayer)
            measured = facts.sublayer_errors.get(f"{layer}.{sublayer}")
            cells += [f"{kept / total:.0%}", format_number(predicted_error(plan, layer, sublayer), 3)]
            cells.append(format_number(measured, 3))
        table.add_row(str(layer), *cells)
    table.add_section()
    split = split_removed(plan)
    cells = []
    for part in split.values():
        cells += [f"{part.kept_share:.0%}", "", ""]
    table.add_row("all", *cells)
    parts = " + ".join(f"{part.points:.1f} % {sublayer}" for sublayer, part in split.items())
    table.caption = (
        f"removed: {100 * plan.pruning_ratio:.1f} % of the encoder = {parts}; "
        "measured: relative error of the hidden states after the sublayer"
    )
    return table


def results_table(plan: PruningPlan, facts: Facts) -> Table:
    """Return a table of scores, size and latency of the dense, the pruned and the re-finetuned model.

    Args:
        plan: The plan.
        facts: The measurements.

    Returns:
        A table with one row per quantity, and ``-`` for what was not measured.
    """
    table = Table(title=f"PGB: {plan.pruning_ratio:.1%} of the encoder removed")
    for column in ("", *STAGES, "of dense"):
        table.add_column(column, justify="right" if column else "left")
    for metric in metric_names(facts):
        scores = [facts.scores.get(stage, {}).get(metric) for stage in STAGES]
        table.add_row(metric, *map(format_number, scores), "")
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


def metric_names(facts: Facts) -> list[str]:
    """Return the metrics of all stages: scores before losses, and metrics of the last stage first."""
    names = [name for stage in reversed(STAGES) for name in facts.scores.get(stage, {})]
    return sorted(dict.fromkeys(names), key=lambda name: "loss" in name)


def format_number(value: float | None, digits: int = 4) -> str:
    """Format a number with a few significant digits, ``None`` as ``-``, and NaN as ``NaN``."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.{digits}g}"


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
