"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.tiny import batches, classifier

from pgb_lightning import PruningConfig, prune
from pgb_lightning.config import PRESETS
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts, plan_table, render
from pgb_lightning.report.summary import split_removed
from pgb_lightning.report.tables import error_table, format_number, metric_names, results_table

Make = Callable[..., tuple[PruningPlan, Facts]]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_table_shows_every_matrix(preset: str) -> None:
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


def cells(text: str, start: str) -> list[str]:
    """Return the cells of the row that begins with ``start``."""
    [row] = [line for line in text.splitlines() if line.strip("│| ").startswith(start)]
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_the_error_table(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts()
    text = render(error_table(plan, facts))
    for layer in range(plan.num_layers):
        found = cells(text, f"{layer} ")
        assert found[3] == format_number(facts.sublayer_errors[f"{layer}.attention"], 3)
        assert found[6] == format_number(facts.sublayer_errors[f"{layer}.ffn"], 3)
    attention, ffn = split_removed(plan).values()
    assert [cells(text, "all")[1], cells(text, "all")[4]] == [f"{part.kept_share:.0%}" for part in (attention, ffn)]
    caption = text.rpartition("┘")[2]
    assert f"{attention.points:.1f}" in caption
    assert f"{ffn.points:.1f}" in caption
    assert cells(render(error_table(plan, Facts())), "0 ")[3] == "-"


def test_the_results_table(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts()
    text = render(results_table(plan, facts))
    assert cells(text, "val_accuracy")[1:4] == ["0.9125", "-", "0.8875"]
    assert cells(text, "val_loss")[1:4] == ["0.25", "-", "-"]
    assert cells(text, "encoder weights")[1:3] == [f"{plan.total_parameters:,}", f"{plan.kept_parameters:,}"]
    assert cells(text, "encoder ms, 8 x 128 tokens")[1:] == ["110", "55", "55", "50%"]
    assert "GFLOPs" not in render(results_table(plan, Facts()))


def test_metrics_are_ordered_by_the_last_stage_with_losses_last() -> None:
    scores = {
        "dense": {"val_loss": 1.0, "val_accuracy": 0.5},
        "re-finetuned": {"val_loss": 0.1, "val_accuracy": 0.5, "val_f1": 0.4},
    }
    assert metric_names(Facts(scores=scores)) == ["val_accuracy", "val_f1", "val_loss"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (0.91254, "0.9125"), (3e-7, "3.0e-07"), (-0.5, "-0.5"), (1234.5, "1234")],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text
