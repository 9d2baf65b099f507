"""An estimate of the time that a run takes, from a few batches of the dense model."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from lightning.fabric.utilities import move_data_to_device
from torch import nn

from pgb_lightning.datamodules import TokenizedDataModule
from pgb_lightning.modes import eval_mode

#: Batches that are timed, after one that is not.
TIMED = 3

#: Time of calibration for each batch, relative to the gradients of the model, with the plan and the compensation.
CALIBRATION = 2.0

#: Time of a forward pass, relative to that of gradients.
FORWARD = 0.4

#: Time of a re-finetuning step that pruning does not save: embeddings, optimizer, data.
FIXED = 0.2


@dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of a run.

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
    """Estimate the time of a run. The model's gradients are removed afterwards.

    Args:
        model: The dense transformers model, on the device that is used.
        data: The data.
        ratio: Fraction of the encoder that will be removed.
        epochs: Number of epochs; 0 without recovery.
        has_teacher: Whether the dense model is run in the first epoch.
        dense_epochs: Number of epochs of fine-tuning before the model is pruned.
    """
    calibration = data.calibration_dataloader()
    device = next(model.parameters()).device
    seconds: list[float] = []
    with eval_mode(model):
        for number, batch in enumerate(calibration):
            inputs = {name: value for name, value in move_data_to_device(batch, device).items() if name != "labels"}
            start = time.perf_counter()
            model(**inputs)[0].square().mean().backward()  # the logits, or the last hidden states
            if number:
                seconds.append((time.perf_counter() - start) / len(next(iter(inputs.values()))))
            if number == TIMED:
                break
    model.zero_grad(set_to_none=True)
    row = statistics.median(seconds) if seconds else 0.0  # of gradients of one row
    train, validation = len(data.split("train")), len(data.split("validation"))
    teacher = FORWARD * row * train if has_teacher and epochs else 0.0
    return Estimate(
        pruning=CALIBRATION * row * len(calibration) * data.calibration_batch_size,
        recovery=epochs * train * row * (FIXED + 1 - ratio) + teacher,
        scoring=FORWARD * row * validation * (2 + (epochs + 2) * (1 - ratio)),
        fine_tuning=dense_epochs * train * row * (FIXED + 1),
    )


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 2)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
