"""All metrics of a model on the validation set, and its divergence from the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pgb_lightning.datamodules import GLUEDataModule, SQuADDataModule
from pgb_lightning.distillation import logits_loss
from pgb_lightning.experiments.training import make_trainer
from pgb_lightning.model_calls import Call
from pgb_lightning.modules import QuestionAnswering, TextClassification


@dataclass(frozen=True)
class Validated:
    """A model's predictions on the validation set.

    Args:
        scores: All metrics that the module logs.
        calls: The logits of each batch.
    """

    scores: dict[str, float]
    calls: list[Call]

    def divergence(self, dense: Validated, exclusive: bool = True) -> float:
        """Return the mean divergence from the dense model's predictions.

        Args:
            dense: The dense model's predictions on the same batches.
            exclusive: Whether the logits are those of classes or answer positions, whose divergence is that of Kullback
                and Leibler, averaged over starts and ends of answers. Otherwise it is half the mean squared difference.
        """
        rows = [len(next(iter(call.logits().values()))) for call in dense.calls]
        losses = [
            float(logits_loss(call, target, temperature=1.0, exclusive=exclusive)) / (1 if exclusive else 2)
            for call, target in zip(self.calls, dense.calls, strict=True)
        ]
        return sum(loss * count for loss, count in zip(losses, rows, strict=True)) / sum(rows)


def validate(module: TextClassification | QuestionAnswering, data: GLUEDataModule | SQuADDataModule) -> Validated:
    """Run a module on the validation set, in single precision.

    Args:
        module: The module.
        data: Its data module.
    """
    calls: list[Call] = []

    def keep(model: nn.Module, args: Any, output: Any) -> None:
        calls.append(Call(output=Call(output=output).logits()))

    handle = module.model.register_forward_hook(keep)
    try:
        sets = make_trainer(1, enable_progress_bar=False).validate(module, datamodule=data, verbose=False)
    finally:
        handle.remove()
    return Validated({name: float(value) for scores in sets for name, value in scores.items()}, calls)
