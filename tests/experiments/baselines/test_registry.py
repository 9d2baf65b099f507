"""All baselines through their common interface."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch
from helpers.tiny import batches, classifier, logits

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import BASELINES, Calibrated, registry
from pgb_lightning.experiments.baselines.masks import kept_weights

INSTALLED = [name for name, baseline in BASELINES.items() if not baseline.package or find_spec("torch_pruning")]


@pytest.mark.parametrize("name", INSTALLED)
def test_a_baseline_removes_about_the_requested_fraction_and_can_be_trained(name: str) -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    calibrated = Calibrated(model, batches())
    copied = copy.deepcopy(model).train()
    total = kept_weights(find_encoder(model))
    removed = calibrated.prune(name, copied, 0.6)
    assert removed == pytest.approx(0.6, abs=0.07)  # one layer is a third
    assert 1 - kept_weights(find_encoder(copied)) / total == removed
    assert copied.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(logits(copied), logits(model))
    loss = copied.train()(**batches(1)[0]).loss
    loss.backward()
    assert loss.isfinite()


def test_statistics_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    calibrated = Calibrated(model, batches())
    calibrated.prune("kwon", copy.deepcopy(model), 0.5)
    monkeypatch.setattr(model, "forward", None)  # calling it would fail
    for name, ratio in (("kwon", 0.8), ("kwon-untuned", 0.5), ("magnitude", 0.5)):
        assert calibrated.prune(name, classifier(), ratio) == pytest.approx(ratio, abs=0.01)


def test_unknown_or_missing_baselines_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"'best'.*'magnitude', 'model-pruning'"):
        Calibrated(model, []).prune("best", model, 0.5)
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torch-pruning"):
        Calibrated(model, []).prune("torch-pruning", model, 0.5)
