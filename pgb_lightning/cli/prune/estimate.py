"""An estimate of the time that a run takes, from a few training steps of the dense model."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader

from pgb_lightning.datamodules import TokenizedDataModule
from pgb_lightning.layers.fast_dropout import use_fast_dropout
from pgb_lightning.modules.optimizer import FUSED_DEVICES

#: Number of training steps that are timed, after one warm-up step.
TIMED = 4

#: Number of batches of each loader whose tokens are counted.
COUNTED = 50

# Times per token, relative to a training step of the dense model, as measured in the demo with MiniLM-L6 on two cores.
# Larger models spend a smaller part of a step outside the encoder.

#: Calibration, plan and compensation, for each token of the calibration samples.
PRUNING = 2.3

#: A forward pass without gradients.
FORWARD = 0.33

#: The part of a training step that pruning does not save: embeddings, optimizer, data.
FIXED = 0.2


@dataclass(frozen=True)
class Estimate:
    """The estimated time of each part of a run, in seconds.

    Args:
        pruning: Calibration, plan and compensation.
        recovery: All epochs.
        scoring: All passes over the validation rows.
        fine_tuning: All epochs of the dense model before it is pruned.
    """

    pruning: float
    recovery: float
    scoring: float
    fine_tuning: float = 0.0

    def total(self) -> str:
        """Return the time of the whole run in words."""
        return _in_words(self.fine_tuning + self.pruning + self.recovery + self.scoring)

    def describe(self) -> str:
        """Return the estimate as a sentence."""
        parts = f"{_in_words(self.pruning)} to prune, {_in_words(self.recovery)} to recover, {_in_words(self.scoring)}"
        return f"This takes about {self.total()} here ({parts} to score)."


def estimate(
    model: nn.Module,
    data: TokenizedDataModule,
    ratio: float,
    epochs: int,
    has_teacher: bool = False,
    dense_epochs: int = 0,
) -> Estimate:
    """Estimate the time of a run, without changing the model or the state of random number generators.

    Args:
        model: The dense transformers model, on the device that is used.
        data: The data.
        ratio: Fraction of the encoder's weights that will be removed.
        epochs: Number of epochs; 0 without recovery.
        has_teacher: Whether the dense model is run in the first epoch.
        dense_epochs: Number of epochs of fine-tuning before the model is pruned.
    """
    with torch.random.fork_rng():  # loaders and dropout draw random numbers
        loaders = {"train": data.train_dataloader(), "calibration": data.calibration_dataloader()}
        step = _time_steps(copy.deepcopy(model), loaders["train"])
        train, calibration = (step * _count_tokens(loader) for loader in loaders.values())
        validation_loaders = data.val_dataloader()
        if not isinstance(validation_loaders, list):
            validation_loaders = [validation_loaders]
        validation = step * sum(map(_count_tokens, validation_loaders))
    kept = 1 - ratio
    return Estimate(
        pruning=PRUNING * calibration,
        recovery=epochs * train * (FIXED + (1 - FIXED) * kept) + (FORWARD * train if has_teacher and epochs else 0.0),
        # The dense model once; the pruned one before, in and after training.
        scoring=FORWARD * validation * (1 + (epochs + 2) * kept),
        fine_tuning=dense_epochs * train,
    )


def _time_steps(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float:
    """Return the median seconds per token of a training step. The model is modified."""
    device = next(model.parameters()).device
    use_fast_dropout(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.0, fused=device.type in FUSED_DEVICES)
    seconds: list[float] = []
    for batch in islice(batches, 1 + TIMED):
        inputs = {name: value for name, value in move_data_to_device(batch, device).items() if name != "labels"}
        start = time.perf_counter()
        model(**inputs)[0].square().mean().backward()  # the logits, or the last hidden states
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / _num_tokens(batch))
    return statistics.median(seconds[1:] or seconds)


def _count_tokens(loader: DataLoader[Any]) -> float:
    """Estimate the number of tokens in all batches of a loader, including padding, from the first batches."""
    counts = [_num_tokens(batch) for batch in islice(loader, COUNTED)]
    return statistics.mean(counts) * len(loader)


def _num_tokens(batch: Mapping[str, Any]) -> int:
    """Return the number of tokens in a batch, or in both parts of a batch of text pairs."""
    if "input_ids" in batch:
        return int(batch["input_ids"].numel())
    return sum(_num_tokens(part) for part in batch.values() if isinstance(part, Mapping))


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 2)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
