"""The table of a plan."""

from __future__ import annotations

import pytest
from tiny import batches, classifier

from pgb_lightning import PruningConfig, prune
from pgb_lightning.config import PRESETS
from pgb_lightning.report import plan_table, render


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_shows_every_matrix(preset: str) -> None:
    plan = prune(classifier(), batches(4), PruningConfig.from_preset(preset, pruning_ratio=0.88))
    text = render(plan_table(plan))
    assert "88." in text
    for layer in range(plan.num_layers):
        [row] = [line for line in text.splitlines() if line.strip("│| ").startswith(f"{layer} ")]
        cells = [cell.strip() for cell in row.strip("│").split("│")][1:-1]
        for cell, kind in zip(cells, ("Q", "K", "V", "O", "W1", "W2"), strict=False):
            matrix = plan.matrix(layer, kind)
            if matrix.num_groups == 1 and matrix.input_index and matrix.output_index:
                expected = f"{len(matrix.input_index[0])}x{len(matrix.output_index[0])}"
            else:
                expected = str(matrix.num_groups or "-")
            assert cell.split()[0] == expected
