"""Pruned checkpoints, as a fit leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import VOCABULARY, quiet_trainer

from pgb_lightning import PruningConfig, PruningPlan, prune
from pgb_lightning.modules import QuestionAnswering, TextClassification
from pgb_lightning.modules.finetuning import FineTuning


def save(module: FineTuning, path: Path, plan: PruningPlan | None = None, score: float | None = None) -> Path:
    """Write a module as a Trainer does, with what callbacks would have stored."""
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    states: dict[str, Any] = {"PGBCallback": {"plan": plan.to_dict() if plan else None}}
    if score is not None:
        states["BestCheckpoint"] = {"monitor": "val_accuracy", "current_score": torch.tensor(score)}
    torch.save({**checkpoint, "callbacks": states}, path)
    return path


@pytest.fixture
def pruned_checkpoint(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a checkpoint: `pruned_checkpoint("classifier")`, "reader" or "dense"."""

    def make(
        what: str = "classifier", model_type: str = "bert", name: str | None = None, preset: str = "balanced"
    ) -> Path:
        folder = str(tiny_model_folder(model_type))
        tokens = torch.randint(5, len(VOCABULARY), (8, 9), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        module: FineTuning
        if what == "reader":
            module = QuestionAnswering(folder)
            batch |= {"start_positions": tokens[:, 0] % 9, "end_positions": tokens[:, 1] % 9}
        else:
            module = TextClassification(folder, task="sst2")
            batch["labels"] = tokens[:, 0] % 2
        plan = None if what == "dense" else prune(module.model, [batch], PruningConfig.from_preset(preset))
        if name is not None:
            module.hparams["model_name_or_path"] = name
        return save(module, tmp_path / f"{what}.ckpt", plan, score=0.875)

    return make
