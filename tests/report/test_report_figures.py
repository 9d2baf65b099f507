"""The figures for loggers show the plan's numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pgb_lightning.encoders.base import MATRICES
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts
from pgb_lightning.report.figures import draw_all, draw_groups, draw_kept, draw_matrices, has_matplotlib

Make = Callable[..., tuple[PruningPlan, Facts]]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_heat_map_has_every_group_number(preset: str, made: Make) -> None:
    plan, _ = made(preset)
    axes: Axes = draw_groups(plan).axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{matrix.num_groups} ({matrix.kept_share:.0%})" for matrix in plan.matrices]
    [image] = axes.images
    shares = [matrix.kept_share for matrix in plan.matrices]
    assert image.get_array().flatten().tolist() == pytest.approx(shares)  # type: ignore[union-attr]


def test_bars_are_as_high_as_what_is_kept(made: Make) -> None:
    plan, _ = made()
    axes: Axes = draw_kept(plan).axes[0]
    heights = {bars.get_label(): sum(bar.get_height() for bar in bars) for bars in axes.containers}
    assert heights["attention"] + heights["ffn"] == pytest.approx(plan.kept_parameters / 1e6)
    assert heights["dense"] == pytest.approx(plan.total_parameters / 1e6)


@pytest.mark.parametrize("known", [True, False])
def test_every_matrix_has_its_blocks(made: Make, known: bool) -> None:
    plan, facts = made()
    panels = draw_matrices(plan, facts if known else Facts()).axes
    assert len(panels) == len(plan.matrices)
    for axes, matrix in zip(panels, plan.matrices, strict=True):
        outlines = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        assert len(outlines) == matrix.num_groups
        area = sum(outline.get_width() * outline.get_height() for outline in outlines)
        assert area == pytest.approx(matrix.kept_share)
        assert len(axes.images) == known
    assert panels[1].get_title().startswith(f"{MATRICES[1]}: ")


def test_all_figures_have_names(made: Make) -> None:
    assert list(draw_all(*made())) == ["groups", "kept", "matrices"]


def test_importing_does_not_import_matplotlib() -> None:
    program = "import sys, pgb_lightning.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_it_is_known_whether_figures_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not has_matplotlib()
