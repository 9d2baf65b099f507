"""The measurement of training steps: every variant, model, phase and operation."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from helpers.tiny import batches, classifier

from pgb_lightning.experiments import training_step
from pgb_lightning.experiments.training_step import OPERATIONS, PHASES, VARIANTS, TrainingStep, make_optimizer
from pgb_lightning.layers import Dropout16

TABLE = attrgetter("bert.embeddings.word_embeddings.weight")


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "_load", lambda name, num_layers: classifier("bert", layers=num_layers))


@pytest.mark.usefixtures("restored_threads")
def test_every_model_and_phase_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "step.json"
    results = training_step.run(
        num_layers=1,
        batch_size=2,
        length=8,
        plan="narrow",
        pruning_ratios=(0.5,),
        variants=("default", "both"),
        rounds=2,
        clock="process",
        num_threads=1,
        out=str(out),
    )
    assert list(results) == ["default", "both"]
    for variant, found in results.items():
        assert list(found) == ["dense", "narrow 0.5"]
        for each in found.values():
            assert each["low"] <= each["median"] <= each["high"]
            assert list(each["phases"]) == list(PHASES)
            assert sum(each["phases"].values()) == pytest.approx(1)
            assert list(each["operations"]) == list(OPERATIONS)
            assert (each["operations"]["embedding gradient"] == 0) is (variant == "both")
            assert 0 < each["operations"]["random numbers"] < 1
    assert json.loads(out.read_text()) == results
    assert "narrow 0.5" in capsys.readouterr().out


def test_a_step_updates_what_its_variant_trains() -> None:
    for variant in VARIANTS.values():
        model = classifier("bert", layers=1).train()
        head, table = (each.detach().clone() for each in (model.classifier.weight, TABLE(model)))
        step = TrainingStep(model, batches(1)[0], make_optimizer(model), variant)
        assert list(step()) == list(PHASES)
        assert not torch.equal(model.classifier.weight, head)
        assert torch.equal(TABLE(model), table) is variant.frozen_embeddings
        assert step.optimizer.defaults["fused"]
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert not any(isinstance(module, Dropout16) for module in model.modules())


def test_products_of_mixed_precision_are_in_bf16() -> None:
    model = classifier("bert", layers=1).train()
    types = []
    model.classifier.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    for name in ("default", "bf16", "bf16 and both"):
        TrainingStep(model, batches(1)[0], make_optimizer(model), VARIANTS[name])()
    assert types == [torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("setting", [{"rounds": 0}, {"batch_size": 0}, {"length": -1}, {"pruning_ratios": (1.5,)}])
def test_invalid_settings_are_refused_first(setting: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(training_step, "_load")
    name = next(iter(setting)).removesuffix("s") if "pruning_ratios" in setting else next(iter(setting))
    with pytest.raises(ValueError, match=f"{name}="):
        training_step.run(**setting)  # type: ignore[arg-type]
