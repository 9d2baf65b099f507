"""Plans of many ratios from one calibration: one plan per ratio, in a table and a figure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.kinds import MATRICES

from pgb_lightning import PruningPlan
from pgb_lightning.experiments import ratio_sweep
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.plan import MatrixPlan
from pgb_lightning.plotting import save
from pgb_lightning.report.summary import split_removed

pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def sweep(sst2: dict[str, str], reference: DenseReference, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the sweep on the shared calibration."""

    def load(**settings: object) -> DenseReference:
        assert {name: settings[name] for name in sst2} == sst2
        return reference

    monkeypatch.setattr(DenseReference, "load", load)
    return lambda **settings: ratio_sweep.run(**sst2, **settings)


def plan_of(**indices: tuple[tuple[tuple[int, ...], ...], ...] | None) -> PruningPlan:
    """Make a plan of one layer of width 4, with the given (inputs, outputs) of the named matrices."""
    matrices = [MatrixPlan(0, kind, 4, 4, *indices.get(kind, (None, None))) for kind in MATRICES]
    return PruningPlan("bert", tuple(matrices), {}, 8, "0" * 16)


def test_groups_and_kept_fractions_are_recognized_and_drawn() -> None:
    halves, half = (((0, 1), (2, 3)), ((0, 1), (2, 3))), (((0, 1),), ((0, 1, 2, 3),))
    plan = plan_of(V=halves, W1=half, W2=half)
    assert ratio_sweep.has_groups(plan, 0, "attention")
    assert not ratio_sweep.has_groups(plan, 0, "ffn")
    assert ratio_sweep.kept_fraction(plan, 0, "attention") == 3.5 / 4
    assert ratio_sweep.kept_fraction(plan, 0, "ffn") == 0.5
    axes = ratio_sweep.draw([plan_of(), plan], "a title").axes[0]
    blue, orange = axes.images[0].get_array()[[1, 0], [1, 1]]
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    assert [text.get_text() for text in axes.texts] == ["100%", "88%", "100%", "50%"]
    assert axes.get_title().startswith("a title")


@pytest.mark.parametrize("measure", [False, True])
def test_one_calibration_gives_a_plan_for_every_ratio(
    measure: bool, sweep: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = (0.6, 0.3)
    plans = sweep(ratios=ratios, measure=measure, out=str(tmp_path / "family.svg"))
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


def test_the_paper_preset_is_swept_too(sweep: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    [plan] = sweep(ratios=(0.5,), preset="paper")
    assert (plan.config["search"], plan.config["permutation"]) == ("groups", "greedy")
    attention, ffn = (part.points for part in split_removed(plan).values())
    assert f"{attention:.1f} │ {ffn:.1f}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="preset='best'"):
        sweep(preset="best")


def test_a_missing_matplotlib_is_reported_before_anything_is_measured(
    sst2: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(DenseReference, "load", lambda **_: pytest.fail("was measured"))
    with pytest.raises(ImportError, match="pgb-lightning"):
        ratio_sweep.run(**sst2, out="family.svg")


def test_figures_can_be_saved_in_other_formats(tmp_path: Path) -> None:
    save(ratio_sweep.draw([plan_of()], "a title"), tmp_path / "made" / "family.jpg")
    assert (tmp_path / "made" / "family.jpg").stat().st_size > 0
