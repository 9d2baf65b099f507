"""The figures of one pruned matrix and of the shapes of a sublayer."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pgb_lightning.experiments.method_figures import (
    NEURONS,
    SHAPES,
    WIDTH,
    draw,
    draw_shapes,
    example_importance,
    kept_mask,
    main,
)
from pgb_lightning.grouping.permutation import group

IMPORTANCE = example_importance()
GROUPS = group(IMPORTANCE, 3, "balanced", num_permutations=6)
MASK = kept_mask(GROUPS, *IMPORTANCE.shape)


def image(axes: Axes, index: int) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the values of one image of a panel; hidden cells are masked."""
    return np.ma.asarray(axes.images[index].get_array())


def inside(values: NDArray[Any], outline: Rectangle) -> NDArray[Any]:
    """Return the values inside a rectangle."""
    (left, top), (width, height) = outline.get_xy(), (outline.get_width(), outline.get_height())
    assert (left % 1, top % 1) == (0.5, 0.5)
    row, column = round(top + 0.5), round(left + 0.5)
    return values[row : row + round(height), column : column + round(width)]


@pytest.fixture(scope="module")
def panels() -> list[Axes]:
    return draw(IMPORTANCE, GROUPS).axes


def test_the_hidden_groups_are_found() -> None:
    share = float(GROUPS.kept_importance(IMPORTANCE).sum() / IMPORTANCE.sum())
    assert share > 0.6
    assert IMPORTANCE[MASK.any(0)].min() >= 0.3  # the smallest importance within a group


def test_the_first_panel_is_the_matrix(panels: list[Axes]) -> None:
    np.testing.assert_array_equal(image(panels[0], 0), IMPORTANCE.numpy())


def test_outlined_blocks_hold_the_kept_importance(panels: list[Axes]) -> None:
    outlines = [patch for patch in panels[1].patches if isinstance(patch, Rectangle)]
    sums = [inside(image(panels[1], 0).data, outline).sum() for outline in outlines]
    np.testing.assert_allclose(sums, GROUPS.kept_importance(IMPORTANCE).numpy(), rtol=1e-5)
    assert f"{sum(sums) / IMPORTANCE.sum():.0%} of the importance" in panels[1].get_xlabel()


def test_each_color_fills_exactly_its_block(panels: list[Axes]) -> None:
    outlines = [patch for patch in panels[1].patches if isinstance(patch, Rectangle)]
    for g, outline in enumerate(outlines):
        shown = ~np.ma.getmaskarray(image(panels[1], 1 + g))
        assert inside(shown, outline).all()
        assert shown.sum() == inside(shown, outline).size


def test_the_last_panel_shows_each_groups_weights_in_their_original_places(panels: list[Axes]) -> None:
    for g in range(3):
        layer = image(panels[2], g)
        rows, columns = np.nonzero(~np.ma.getmaskarray(layer))
        assert np.unique(rows).tolist() == GROUPS.rows[g].tolist()
        assert np.unique(columns).tolist() == GROUPS.columns[g].tolist()
        assert len(rows) == GROUPS.rows.shape[1] * GROUPS.columns.shape[1]
        np.testing.assert_array_equal(layer.compressed(), IMPORTANCE[MASK[g]].numpy())


def test_groups_of_any_matrix_are_disjoint() -> None:
    importance = torch.rand(12, 8, generator=torch.Generator().manual_seed(1))
    mask = kept_mask(group(importance, 4, "greedy", num_permutations=6), 12, 8)
    assert mask.sum(0).max() == 1
    assert mask.sum() == 12 * 8 / 4


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "folder" / "first.svg", tmp_path / "second.svg"
    main(str(first))
    main(str(second))
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()
    assert first.stat().st_size < 200_000


def test_without_matplotlib_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "pgb-lightning\[figures\]"'):
        draw(IMPORTANCE, GROUPS)


def test_no_module_imports_matplotlib_at_the_top_level() -> None:
    package = Path(__file__).parents[2] / "pgb_lightning"
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("matplotlib") for name in names), path


def test_the_figure_of_the_documentation_exists() -> None:
    figure = Path(__file__).parents[2] / "docs" / "img" / "pgb.svg"
    assert figure.is_file()
    assert figure.stat().st_size < 200_000


def test_shapes_are_drawn_to_scale(tmp_path: Path) -> None:
    panels = draw_shapes().axes
    assert [axes.get_title() for axes in panels[: len(SHAPES)]] == list(SHAPES)
    for column, (neurons, *numbers) in enumerate(SHAPES.values()):
        drawn = [panels[row * len(SHAPES) + column] for row in (0, 1)]
        for axes, number in zip(drawn, numbers, strict=True):
            boxes = [box for box in axes.patches if isinstance(box, Rectangle)]
            assert len(boxes) == number
            assert sum(box.get_width() * box.get_height() for box in boxes) == pytest.approx(
                neurons * WIDTH / number if number else 0
            )
        left = sum(neurons * WIDTH / number for number in numbers if number)
        assert drawn[1].get_xlabel() == f"{left / (2 * WIDTH * NEURONS):.0%} of the weights"
    main(str(tmp_path / "shapes.svg"), drawing="shapes")
    root, made = Path(__file__).parents[2], (tmp_path / "shapes.svg").read_text()
    if f"\nmatplotlib=={matplotlib.__version__};" in (root / "constraints.txt").read_text():
        assert made == (root / "docs/img/shapes.svg").read_text()  # other versions may place text differently
