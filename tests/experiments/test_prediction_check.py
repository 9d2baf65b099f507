"""The rank correlation of predicted and measured loss increases."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from pgb_lightning.experiments import prediction_check

pytestmark = pytest.mark.usefixtures("restored_threads")


def test_predictions_correlate_with_measured_values(
    sst2: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prediction_check.run(**sst2, candidates=5, out=str(tmp_path / "out.csv"))
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 4 * 5
    assert [int(row["layer"]) for row in rows] == [0] * 10 + [1] * 10
    assert found["all_divergence"] > 0.5
    assert f"{found['all_divergence']:.3f}" in capsys.readouterr().out
    narrow = [row for row in rows if row["sublayer"] == "ffn" and "groups" not in row["shape"]]
    columns = ([float(row[name]) for row in narrow] for name in ("predicted", "divergence"))
    expected = spearmanr(*columns).statistic
    assert found["fewer neurons_divergence"] == pytest.approx(expected, abs=1e-3)
    kinds = {name.removesuffix("_loss") for name in found if name.endswith("_loss")}
    assert kinds >= {"attention", "ffn", "all", "fewer heads", "fewer neurons", "ffn groups", "attention groups"}
