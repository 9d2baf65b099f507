"""Plans of many ratios, predictions and methods on families whose layers are unlike BERT's."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import ablations, prediction_check, ratio_sweep
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.methods import METHODS

pytestmark = pytest.mark.usefixtures("restored_threads")

KINDS = ("modernbert", "eurobert", "albert", "deberta-v2")


@pytest.fixture(scope="module", params=KINDS)
def inputs(request: pytest.FixtureRequest, dense_inputs: Callable[..., dict[str, str]]) -> dict[str, str]:
    return dense_inputs("sst2", request.param)


@pytest.fixture(scope="module")
def loaded(inputs: dict[str, str]) -> DenseReference:
    return DenseReference.load(**inputs)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def once(loaded: DenseReference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate once for all experiments."""
    monkeypatch.setattr(DenseReference, "load", lambda **_: loaded)


def test_plans_of_many_ratios(inputs: dict[str, str], loaded: DenseReference) -> None:
    for preset in ("default", "paper"):
        plans = ratio_sweep.run(**inputs, ratios=(0.3, 0.7), preset=preset, measure=preset == "default")
        assert [plan.pruning_ratio for plan in plans] == pytest.approx([0.3, 0.7], abs=0.02)
        assert plans[0].kinds == loaded.encoder.matrices
        fractions = [ratio_sweep.kept_fraction(plans[1], 0, name) for name in loaded.encoder.sublayers]
        assert min(fractions) < 1


def test_predictions_correlate_with_measured_values(
    inputs: dict[str, str], loaded: DenseReference, tmp_path: Path
) -> None:
    found = prediction_check.run(**inputs, candidates=6, out=str(tmp_path / "out.csv"))
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    places = {(int(row["layer"]), row["sublayer"]) for row in rows}
    assert places == {(n, name) for n in range(len(loaded.encoder.layers)) for name in loaded.encoder.sublayers}
    assert len(rows) >= 5 * len(places)  # two groups of query heads leave fewer than six shapes
    assert all(float(row["divergence"]) >= 0 for row in rows)
    assert found["all_divergence"] > 0.4


def test_methods_and_baselines(inputs: dict[str, str], loaded: DenseReference, tmp_path: Path) -> None:
    names = ("default", "default, no compensation", "paper, unstructured", "paper, magnitude", "magnitude", "kwon")
    assert {*names} - {*METHODS} == {"magnitude", "kwon"}
    settings: dict[str, Any] = {"ratios": (0.4,), "methods": names, "out": str(tmp_path / "out.jsonl")}
    dense, *results = ablations.run(**inputs, **settings)
    assert dense["removed"] == 0
    assert [result["removed"] for result in results] == pytest.approx([0.4] * len(names), abs=0.02)
    by_name = {result["method"]: result["divergence"] for result in results}
    assert by_name["default"] < by_name["default, no compensation"]
    assert by_name["default"] > 0
    assert find_encoder(loaded.module).matrices == loaded.encoder.matrices
