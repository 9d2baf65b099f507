"""Score a model, and measure its agreement with the dense model."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.regression import spearman_corrcoef

from pgb_lightning.heads import ProblemType


def score(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Return the metrics that a module logs on the validation rows.

    Args:
        trainer: The Trainer.
        module: The module.
        data: Rows with labels.
    """
    [logged] = trainer.validate(module, datamodule=data, verbose=False)
    return dict(logged)


def predict(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> list[Tensor]:
    """Return a module's predictions on the validation rows, by batch.

    Args:
        trainer: The Trainer.
        module: The module.
        data: The rows; labels are not used.
    """
    loader = data.val_dataloader()
    batches: Any = trainer.predict(module, dataloaders=loader)
    return [batch["embeddings" if "embeddings" in batch else "predictions"].cpu() for batch in batches]


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
