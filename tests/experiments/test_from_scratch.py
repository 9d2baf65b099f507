"""Small encoders are trained from scratch, and methods are compared on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import from_scratch
from pgb_lightning.experiments.ablations import check_methods
from pgb_lightning.modules import TextClassification

pytestmark = pytest.mark.usefixtures("restored_threads")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "initializer_range": 0.2}


@pytest.fixture
def inputs(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> dict[str, Any]:
    tokenizer = tiny_model_folder("bert", max_position_embeddings=128)
    data = glue_folder("sst2", train=64, validation=40)
    return {"tokenizer": str(tokenizer), "data_dir": str(data), "settings": TINY, "epochs": 1}


@pytest.mark.parametrize("family", from_scratch.FAMILIES)
def test_a_model_is_trained_once_and_pruned_for_every_draw(
    family: str, inputs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_scratch.run(family, str(tmp_path), **inputs, seeds=()) == []
    module = TextClassification.load_from_checkpoint(tmp_path / "dense.ckpt")
    config = module.model.config
    assert (config.model_type, find_encoder(module).hidden_size, len(find_encoder(module).layers)) == (family, 16, 2)
    given = {name: value for name, value in from_scratch.FAMILIES[family].items() if hasattr(config, name)}
    assert len(given) > 5
    assert {name: getattr(config, name) for name in given} == {**given, "intermediate_size": 32}
    before = (tmp_path / "dense.ckpt").read_bytes()
    methods = ("default", "fisher", "magnitude")
    draws: dict[str, Any] = {"seeds": (0, 1), "calibration_size": 32, "methods": methods}
    results = from_scratch.run(family, str(tmp_path), **inputs, **draws)
    assert (tmp_path / "dense.ckpt").read_bytes() == before
    assert [(result["seed"], result["method"]) for result in results] == [
        (seed, method) for seed in (0, 1) for method in ("dense", *methods)
    ]
    assert all(result["removed"] == pytest.approx(0.5, abs=0.02) for result in results if result["method"] != "dense")
    assert len({result["divergence"] for result in results if result["method"] in ("default", "fisher")}) == 4
    trained = json.loads((tmp_path / "dense.json").read_text())
    assert (trained["family"], trained["epochs"]) == (family, 1)
    assert trained["seconds"] > 0
    assert results[0]["score"] == pytest.approx(100 * trained["metrics"]["val_accuracy"])
    printed = capsys.readouterr().out
    assert all(method in printed for method in methods)
    stored = (tmp_path / "pruned.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in stored] == results


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"family": "bert"}, "family='bert' .*'modernbert'"),
        ({"epochs": 0}, "epochs=0 .*1 or more"),
        ({"learning_rate": 0}, "learning_rate=0 .*above 0"),
        ({"methods": ("best",)}, "methods .*'best'.*'default'"),
        ({"ratios": (1.0,)}, r"pruning_ratio=1\.0"),
    ],
)
def test_invalid_settings_raise_before_training(
    changes: dict[str, Any], match: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        from_scratch.run(**{"family": "modernbert", "out_dir": str(tmp_path / "new"), **inputs, **changes})
    assert not (tmp_path / "new").exists()


def test_the_methods_are_known() -> None:
    check_methods(from_scratch.METHODS)
