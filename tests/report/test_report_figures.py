"""The figures show the numbers of the plan."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from helpers.kinds import MATRICES
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts
from pgb_lightning.report.figures import (
    draw_figures,
    draw_group_numbers,
    draw_kept_weights,
    draw_matrices,
    has_matplotlib,
)

Make = Callable[..., tuple[PruningPlan, Facts]]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_heat_map_has_every_group_number(preset: str, plan_and_facts: Make) -> None:
    plan, _ = plan_and_facts(preset)
    axes: Axes = draw_group_numbers(plan).axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{matrix.num_groups} ({matrix.kept_share:.0%})" for matrix in plan.matrices]
    [image] = axes.images
    fractions = [matrix.kept_share for matrix in plan.matrices]
    assert image.get_array().flatten().tolist() == pytest.approx(fractions)  # type: ignore[union-attr]


def test_the_heights_of_the_bars_are_the_kept_weights(plan_and_facts: Make) -> None:
    plan, _ = plan_and_facts()
    axes: Axes = draw_kept_weights(plan).axes[0]
    heights = {bars.get_label(): sum(bar.get_height() for bar in bars) for bars in axes.containers}
    assert heights["attention"] + heights["ffn"] == pytest.approx(plan.kept_parameters / 1e6)
    assert heights["dense"] == pytest.approx(plan.total_parameters / 1e6)


@pytest.mark.parametrize("known", [True, False])
def test_every_matrix_shows_its_blocks(plan_and_facts: Make, known: bool) -> None:
    plan, facts = plan_and_facts()
    panels = draw_matrices(plan, facts if known else Facts()).axes
    assert len(panels) == len(plan.matrices)
    for axes, matrix in zip(panels, plan.matrices, strict=True):
        outlines = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        assert len(outlines) == matrix.num_groups
        area = sum(outline.get_width() * outline.get_height() for outline in outlines)
        assert area == pytest.approx(matrix.kept_share)
        assert len(axes.images) == known
    assert panels[1].get_title().startswith(f"{MATRICES[1]}: ")


def test_all_figures_have_names(plan_and_facts: Make) -> None:
    assert list(draw_figures(*plan_and_facts())) == ["groups", "kept", "matrices"]


def test_has_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not has_matplotlib()
