"""A user's own module and data, deliberately unlike those of this package."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from helpers.tiny import VOCABULARY, classifier

Rows = list[tuple[Tensor, Tensor]]


class OwnModule(L.LightningModule):
    """Take tuple batches, return a dict, and update a metric, a list and a counter in every step."""

    def __init__(self, model_type: str = "bert", seed: int = 0) -> None:
        super().__init__()
        self.net = classifier(model_type, layers=2, seed=seed).train()
        self.accuracy = MulticlassAccuracy(2)
        self.losses: list[Tensor] = []
        self.steps = 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = batch
        output = self.net(input_ids=tokens, labels=labels)
        self.accuracy(output.logits, labels)
        return output.loss  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", self.accuracy, on_epoch=True)
        self.losses.append(loss)
        self.steps += 1
        return {"loss": loss}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.net(input_ids=batch[0], labels=batch[1]).loss, sync_dist=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.net(input_ids=batch[0]).logits  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def make_rows(count: int = 48, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCABULARY, (count, 9), generator=generator)
    return [(row, torch.tensor(int(row[0] > VOCABULARY // 2))) for row in tokens]


def make_loader(count: int = 48, batch_size: int = 8, **settings: Any) -> DataLoader[Any]:
    return DataLoader(make_rows(count), batch_size=batch_size, **settings)  # type: ignore[arg-type]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
