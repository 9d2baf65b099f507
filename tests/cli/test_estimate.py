"""The estimate of a run's time: its parts, and that nothing is left on the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import classifier

from pgb_lightning.cli.prune.estimate import FIXED, PRUNING, Estimate, estimate
from pgb_lightning.datamodules import GLUEDataModule


def test_epochs_of_the_dense_model_are_counted(
    tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]
) -> None:
    folder = str(tiny_model_folder("bert"))
    rows = str(glue_folder("sst2"))
    data = GLUEDataModule("sst2", folder, rows, max_length=16, batch_size=100, calibration_batch_size=100)
    data.setup("fit")
    model = classifier(layers=1, vocab_size=len(data.tokenizer))
    weights, generator = model.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in weights.items()}
    found = estimate(model, data, ratio=0.5, epochs=2, dense_epochs=3)
    assert found.fine_tuning > 0
    # Two epochs of half a model, with the part that pruning does not save, and three of a whole one.
    assert found.fine_tuning / found.recovery == pytest.approx(3 / (2 * (FIXED + (1 - FIXED) * 0.5)))
    assert found.pruning / found.fine_tuning == pytest.approx(PRUNING / 3)  # the same rows in the same batch
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert estimate(model, data, ratio=0.5, epochs=2).fine_tuning == 0


def test_the_total_has_all_parts() -> None:
    assert Estimate(pruning=60, recovery=120, scoring=60, fine_tuning=360).total() == "10 minutes"
    assert Estimate(pruning=10, recovery=20, scoring=5).describe().startswith("This takes about 35 seconds here")
