"""A user's module with two encoders, as in retrieval."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor

from helpers.own import make_loader
from helpers.tiny import classifier
from pgb_lightning import follow_state_dict

#: Paths of the encoders.
QUERY, PASSAGE = "query.bert", "passage.distilbert"


class BiEncoder(L.LightningModule):
    """Two encoders of different families, whose scores are multiplied in the loss."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.query = classifier("bert", layers=2, seed=seed).train()
        self.passage = classifier("distilbert", layers=2, seed=seed + 1).train()
        follow_state_dict(self)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.query(input_ids=tokens).logits * self.passage(input_ids=tokens.flip(1)).logits  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def embeddings(module: BiEncoder) -> Tensor:
    """Return the module's outputs on fixed rows, in eval mode."""
    module.eval()
    with torch.no_grad():
        found = torch.cat([module(batch[0]) for batch in make_loader(16)])
    module.train()
    return found
