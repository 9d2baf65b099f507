"""The drawing shows what grouping does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgb_lightning.figures import draw, example_importance, kept_mask, save
from pgb_lightning.grouping import group

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def test_the_panels_show_the_matrix_its_blocks_and_what_is_kept() -> None:
    importance = example_importance()
    groups = group(importance, 3, "balanced", 6)
    figure = draw(num_groups=3)
    original, permuted, pruned = [torch.tensor(axes.images[0].get_array().filled(torch.nan)) for axes in figure.axes]
    torch.testing.assert_close(original, importance)
    mask = kept_mask(importance, groups)
    assert torch.equal(~torch.isnan(pruned), mask)
    assert mask.sum() == importance.numel() // 3
    outlined = sum(
        permuted[
            round(box.get_y() + 0.5) : round(box.get_y() + 0.5 + box.get_height()),
            round(box.get_x() + 0.5) : round(box.get_x() + 0.5 + box.get_width()),
        ].sum()
        for box in figure.axes[1].patches
    )
    torch.testing.assert_close(outlined, groups.kept(importance).sum())
    assert outlined > 0.5 * importance.sum()  # a third of the weights


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        save(str(tmp_path / name))
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert len(first) < 200_000
