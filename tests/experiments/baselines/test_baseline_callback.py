"""A baseline in a fit: the model is pruned before the optimizer is created, and only in a fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fakes import quiet_trainer

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.experiments.baselines import BaselineCallback
from pgb_lightning.modules import TextClassification


@pytest.mark.filterwarnings("ignore:Calibrating on all")
def test_a_baseline_prunes_before_training_and_keeps_the_order_of_batches(
    tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]
) -> None:
    model = str(tiny_model_folder("bert"))
    folder = str(glue_folder("sst2", train=64, validation=40))
    data = GLUEDataModule("sst2", model, folder, max_length=32)
    orders = []
    for callbacks in ([], [baseline := BaselineCallback("magnitude", 0.5)]):
        torch.manual_seed(0)
        module = TextClassification(model, task="sst2")
        seen: list[torch.Tensor] = []
        step = module.training_step

        def recording_step(batch: dict[str, torch.Tensor], batch_idx: int, step=step, seen=seen) -> torch.Tensor:  # type: ignore[no-untyped-def]
            seen.append(batch["input_ids"])
            return step(batch, batch_idx)  # type: ignore[no-any-return]

        module.training_step = recording_step  # type: ignore[method-assign]
        quiet_trainer(callbacks=callbacks).fit(module, datamodule=data)
        orders.append(seen)
    assert all(map(torch.equal, *orders))
    assert baseline.removed == pytest.approx(0.5, abs=1e-3)
    assert not any("mask" in name for name in module.state_dict())
    quiet_trainer(callbacks=[baseline]).validate(module, datamodule=data, verbose=False)
    zeros = [(p == 0).float().mean() for name, p in module.named_parameters() if ".layer." in name and p.ndim == 2]
    assert sum(zeros) / len(zeros) == pytest.approx(0.5, abs=0.05)
