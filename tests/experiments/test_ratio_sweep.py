"""The family of plans of one calibration: one for each ratio, counted and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgb_lightning import PruningPlan
from pgb_lightning.encoders.base import MATRICES
from pgb_lightning.experiments import method_figures as figures
from pgb_lightning.experiments import ratio_sweep as family
from pgb_lightning.plan import MatrixPlan
from pgb_lightning.report.summary import split_cut

pytestmark = [pytest.mark.filterwarnings("ignore:Calibrating on all"), pytest.mark.usefixtures("own_threads")]


def plan_of(**indices: tuple[tuple[tuple[int, ...], ...], ...] | None) -> PruningPlan:
    """Make a plan of one layer 4 wide, in which the matrices named have such inputs and outputs."""
    matrices = [MatrixPlan(0, kind, 4, 4, *indices.get(kind, (None, None))) for kind in MATRICES]
    return PruningPlan("bert", tuple(matrices), {}, 8, "0" * 16)


def test_shapes_are_told_apart() -> None:
    halves, half = (((0, 1), (2, 3)), ((0, 1), (2, 3))), (((0, 1),), ((0, 1, 2, 3),))
    plan = plan_of(V=halves, W1=half, W2=half)
    assert family.grouped(plan, 0, "attention")
    assert not family.grouped(plan, 0, "ffn")
    assert family.kept(plan, 0, "attention") == 3.5 / 4
    assert family.kept(plan, 0, "ffn") == 0.5
    axes = family.draw([plan_of(), plan], "a title").axes[0]
    blue, orange = axes.images[0].get_array()[[1, 0], [1, 1]]
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    assert [text.get_text() for text in axes.texts] == ["100%", "88%", "100%", "50%"]
    assert axes.get_title().startswith("a title")


@pytest.mark.parametrize("measure", [False, True])
def test_one_calibration_gives_a_plan_for_every_ratio(
    measure: bool,
    bench_files: Callable[[str], tuple[str, str, str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ratios = (0.6, 0.3)
    plans = family.run(*bench_files("sst2"), ratios=ratios, measure=measure, out=str(tmp_path / "family.svg"))
    assert all(abs(plan.pruning_ratio - ratio) < 0.02 for plan, ratio in zip(plans, sorted(ratios), strict=True))
    assert "<svg" in (tmp_path / "family.svg").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert len(rows) == 2
    for row, plan in zip(rows, plans, strict=True):
        _, removed, attention, ffn, *counts, score, divergence, _ = row.split("│")
        assert removed.strip() == f"{plan.pruning_ratio:.1%}"
        assert float(attention) + float(ffn) == pytest.approx(100 * plan.pruning_ratio, abs=0.15)
        assert sum(map(int, counts)) == 4
        assert (float(score) >= 0 and float(divergence) > 0) if measure else score.strip() == divergence.strip() == "-"


def test_the_paper_s_recipe_has_a_family_too(
    bench_files: Callable[[str], tuple[str, str, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = bench_files("sst2")
    [plan] = family.run(*given, ratios=(0.5,), preset="paper")
    assert (plan.config["search"], plan.config["permutation"]) == ("groups", "greedy")
    attention, ffn = (part.points for part in split_cut(plan).values())
    assert f"{attention:.1f} │ {ffn:.1f}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="preset='best' is unknown"):
        family.run(*given, preset="best")


def test_other_formats_can_be_drawn_too(tmp_path: Path) -> None:
    figures.save(family.draw([plan_of()], "a title"), tmp_path / "made" / "family.jpg")
    assert (tmp_path / "made" / "family.jpg").stat().st_size > 0
