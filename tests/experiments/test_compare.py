"""The command that compares one-shot pruning with methods that train masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import compare
from pgb_lightning.experiments.baselines.trained.registry import TRAINED
from pgb_lightning.experiments.training import make_trainer

pytestmark = pytest.mark.usefixtures("restored_threads")

Inputs = dict[str, str]


def arguments(sst2: Inputs, **settings: Any) -> dict[str, Any]:
    given = {name: value for name, value in sst2.items() if name != "model_name_or_path"}
    shape = {"latency_batch_size": 1, "latency_length": 8}
    return {**given, **shape, "ratios": (0.5,), "data_options": {"batch_size": 8}, **settings}


def test_each_run_is_a_line_and_is_measured_once(
    sst2: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "out.jsonl", tmp_path / "figure.svg"
    given = arguments(
        sst2, methods=("kwon", "cofi", "block movement, not filled"), total_epochs=1, out=str(out), figure=str(figure)
    )
    results = compare.run(**given)
    assert "kwon, finetune" in capsys.readouterr().out
    assert [json.loads(line) for line in out.read_text().splitlines()] == results
    assert [result["epochs"] for result in results] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    for result in results:
        assert result["removed"] == pytest.approx(0.5, abs=0.01)
        assert result["latency_ratio"] > 0
        assert result["peak_memory_bytes"] > 0
        assert result["hours"][0] > 0
        assert result["score"] == 100 * result["after"][result["metric"]]
    kwon, cofi, movement = results
    assert cofi["flops"] < movement["flops"]  # zeros are computed like other weights
    assert kwon["hours"][1] > 0
    assert movement["hours"][1] == 0
    assert movement["after"] == movement["before"]
    assert "<svg" in figure.read_text()
    assert kwon["hours"] == [kwon[stage]["seconds"] / 3600 for stage in ("pruning", "refinetuning")]
    monkeypatch.setattr(compare, "train_masks", None)  # calling it would fail
    assert compare.run(**given) == results
    with pytest.raises(TypeError):
        compare.run(**{**given, "total_epochs": 2})


def test_hours_may_be_those_of_the_processor(sst2: Inputs) -> None:
    (result,) = compare.run(**arguments(sst2, methods=("kwon",), total_epochs=1, clock="process"))
    assert result["hours"] == [result[stage]["processor_seconds"] / 3600 for stage in ("pruning", "refinetuning")]
    assert all(hours > 0 for hours in result["hours"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"methods": ("best",)}, r"methods .*'best'.*'default'.*'cofi'"),
        ({"ratios": (1.0,)}, r"pruning_ratio=1\.0"),
        ({"recoveries": ("best",)}, "recoveries .*'best'"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"total_epochs": -1.0}, r"total_epochs=-1\.0"),
        ({"ckpt_path": "missing.ckpt"}, r"ckpt_path=.*missing\.ckpt"),
        ({"seed": (0, 1)}, r"seed=\[0, 1\]"),
        ({"figure": "figure.txt"}, r"figure='figure\.txt'"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], match: str, sst2: Inputs) -> None:
    with pytest.raises(ValueError, match=match):
        compare.run(**arguments(sst2, **settings))


@pytest.mark.parametrize("epochs", [0.25, 1, 1.5, 3])
def test_epochs_may_be_fractions(epochs: float) -> None:
    trainer = make_trainer(epochs, accelerator="cpu")
    assert trainer.max_epochs is not None
    assert trainer.max_epochs * (trainer.limit_train_batches or 1.0) == epochs


@pytest.mark.parametrize("method", TRAINED)
def test_all_methods_divide_their_epochs_alike(method: str) -> None:
    own = compare.share_epochs(method, 1.0, None)
    assert sum(compare.share_epochs(method, 1.0, 3)) == pytest.approx(3, abs=0.001)
    assert compare.share_epochs(method, 0.1, None) == pytest.approx([0.1 * epochs for epochs in own])
