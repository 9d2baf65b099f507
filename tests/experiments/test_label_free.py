"""Pruning with and without labels: a result for each kind of gradients, ratio and draw, and a table of their means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pgb_lightning.experiments import label_free
from pgb_lightning.experiments.dense_reference import DenseReference, average

pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def loads(sst2: dict[str, str], reference: DenseReference, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the shared calibration in place of others, and list what was asked for."""
    asked: list[dict[str, Any]] = []

    def load(**settings: Any) -> DenseReference:
        asked.append(settings)
        return reference

    monkeypatch.setattr(DenseReference, "load", load)
    return asked


def test_results_are_measured_once(
    sst2: dict[str, str], loads: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"ratios": (0.5,), "seeds": (0, 1), "out": str(tmp_path / "out.jsonl")}
    first = label_free.run(**sst2, kinds=("labels", "outputs"), **settings)
    assert [(each["kind"], each["seed"]) for each in first] == [
        ("labels", 0),
        ("outputs", 0),
        ("labels", 1),
        ("outputs", 1),
    ]
    assert [each["seed"] for each in loads] == [0, 1]
    assert all(each["removed"] == pytest.approx(0.5, abs=0.02) for each in first)
    loads.clear()
    more = label_free.run(**sst2, kinds=("labels", "predictions", "outputs"), **settings)
    assert {each["kind"] for each in more} == {"labels", "predictions", "outputs"}
    assert [each for each in more if each["kind"] != "predictions"] == first
    assert label_free.run(**sst2, kinds=("predictions",), **settings) == [
        each for each in more if each["kind"] == "predictions"
    ]
    assert len(loads) == 2
    assert "±" in capsys.readouterr().out


def test_results_of_other_models_and_rows_are_not_reused(
    sst2: dict[str, str], loads: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"kinds": ("labels",), "ratios": (0.5,), "out": str(tmp_path / "out.jsonl")}
    label_free.run(**sst2, **settings, seeds=(0,))
    moved, other = tmp_path / "moved.ckpt", tmp_path / "other.ckpt"
    moved.write_bytes(Path(sst2["ckpt_path"]).read_bytes())
    other.write_bytes(Path(sst2["ckpt_path"]).read_bytes() + b"other weights")
    label_free.run(**{**sst2, "ckpt_path": str(moved)}, **settings, seeds=(0,))
    assert len(loads) == 1
    label_free.run(**{**sst2, "ckpt_path": str(other)}, **settings, seeds=(0,))
    label_free.run(**sst2, **settings, seeds=(0,), max_train_samples=64)
    label_free.run(**sst2, **settings, seeds=(0,), max_validation_samples=8)
    assert len(loads) == 4


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"ckpt_path": "none.ckpt"}, r"ckpt_path='none\.ckpt'"), ({"ratios": (1.0,)}, r"ratio=1\.0")],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], match: str, sst2: dict[str, str], loads: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=match):
        label_free.run(**{**sst2, **settings})
    assert not loads


def test_kinds_are_checked_before_anything_is_loaded(sst2: dict[str, str], loads: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="kinds='prediction'"):
        label_free.run(**sst2, kinds=("prediction",))
    assert not loads


def test_statistics_of_several_draws_are_averaged(reference: DenseReference) -> None:
    one, two = (reference.calibrate("predictions", seed=seed) for seed in (0, 1))
    both = reference.calibrate("predictions", draws=2)
    key = (0, "W2")
    torch.testing.assert_close(both.fisher[key], (one.fisher[key] + two.fisher[key]) / 2)
    assert both.moments is not None
    assert one.moments is not None
    assert not torch.equal(both.moments.gradients[key], one.moments.gradients[key])
    assert torch.equal(average([one]).moments.inputs[key], one.moments.inputs[key])  # type: ignore[union-attr]
    assert reference.calibrate("labels") is reference.statistics


def test_values_of_regression_have_two_kinds(dense_inputs: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    results = label_free.run(**dense_inputs("stsb"), ratios=(0.5,), seeds=(0,), max_validation_samples=8)
    assert [each["kind"] for each in results] == ["labels", "outputs"]
