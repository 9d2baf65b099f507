"""Score a model, and measure its agreement with the dense model."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.regression import spearman_corrcoef

from pgb_lightning.heads import ProblemType


class _Predictions(L.Callback):
    """Collects what the module predicts while it is validated."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append(outputs)


def evaluate(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, is_labeled: bool
) -> tuple[dict[str, float], list[Tensor]]:
    """Run a module on the validation rows once.

    Args:
        trainer: The Trainer.
        module: The module.
        data: The rows.
        is_labeled: Whether the rows have labels.

    Returns:
        The metrics that the module logs, which are empty without labels, and its predictions by batch: embeddings, or
        classes, labels and numbers.
    """
    metrics: dict[str, float] = {}
    if is_labeled:
        collected = _Predictions()
        trainer.callbacks.append(collected)  # type: ignore[attr-defined]
        try:
            [logged] = trainer.validate(module, datamodule=data, verbose=False)
        finally:
            trainer.callbacks.remove(collected)  # type: ignore[attr-defined]
        metrics, batches = dict(logged), collected.batches
    else:
        batches = trainer.predict(module, dataloaders=data.val_dataloader()) or []
    return metrics, [batch["embeddings" if "embeddings" in batch else "predictions"].cpu() for batch in batches]


def agreement(own: list[Tensor], dense: list[Tensor], problem_type: ProblemType | None) -> float:
    """Return the agreement with the dense model's predictions.

    Args:
        own: Predictions by batch.
        dense: The dense model's predictions on the same batches.
        problem_type: The type of the predictions; ``None`` for embeddings.

    Returns:
        For embeddings, the mean cosine similarity. For regression, Spearman's correlation. Otherwise, the fraction of
        rows (of tokens in token classification) with the same class or classes.
    """
    if problem_type is None:
        return float(cosine_similarity(torch.cat(own), torch.cat(dense)).mean())
    if problem_type == "regression":
        return float(spearman_corrcoef(torch.cat(own), torch.cat(dense)))
    if problem_type == "multi_label_classification":
        return float(torch.cat([(a == b).all(-1) for a, b in zip(own, dense, strict=True)]).float().mean())
    same = torch.cat([(a == b)[b >= 0] for a, b in zip(own, dense, strict=True)])
    return float(same.float().mean())
