"""The table of a plan."""

from __future__ import annotations

from tiny import batches, classifier

from pgb_lightning import PruningConfig, prune
from pgb_lightning.report import plan_table, render


def test_the_table_shows_every_matrix() -> None:
    plan = prune(classifier(), batches(4), PruningConfig(pruning_ratio=0.88))
    text = render(plan_table(plan))
    assert "88." in text
    for layer in range(plan.num_layers):
        [row] = [line for line in text.splitlines() if line.strip("│| ").startswith(f"{layer} ")]
        cells = [cell.strip() for cell in row.strip("│").split("│")][1:-1]
        shown = [0 if cell == "-" else int(cell.split()[0]) for cell in cells]
        assert shown == [plan.matrix(layer, kind).num_groups for kind in ("Q", "K", "V", "O", "W1", "W2")]
