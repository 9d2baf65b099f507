"""Batches of texts with several labels and of texts with tagged tokens, which are easy to learn."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]

#: The tags of :func:`token_batches`.
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

#: The tokens of special tokens, padding, and the first label.
CLS, SEP, PAD, FIRST = 2, 3, 0, 5


def multi_label_batches(count: int, num_labels: int = 3, size: int = 8, seed: int = 0) -> list[Batch]:
    """Return batches in which a row has a label if one of its tokens is that of the label."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        tokens = torch.randint(FIRST, FIRST + 2 * num_labels, (size, 7), generator=generator)
        labels = torch.stack([(tokens == FIRST + number).any(1) for number in range(num_labels)], 1).float()
        batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    return batches


def token_batches(count: int, num_labels: int = 5, size: int = 8, seed: int = 0) -> list[Batch]:
    """Return batches with special tokens and padding in which the label of a token is its number.

    Every third token is a later piece of a word, which is not scored.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        lengths = torch.randint(4, 10, (size, 1), generator=generator)
        positions = torch.arange(int(lengths.max())).expand(size, -1)
        mask = (positions < lengths).long()
        labels = torch.randint(0, num_labels, positions.shape, generator=generator)
        tokens = labels + FIRST
        tokens[positions == 0], tokens[positions == lengths - 1], tokens[mask == 0] = CLS, SEP, PAD
        scored = (tokens >= FIRST) & (positions % 3 != 0)
        batches.append(
            {"input_ids": tokens, "attention_mask": mask, "labels": labels.masked_fill(~scored, -100)},
        )
    return batches


def loader(batches: list[Batch], labeled: bool = True) -> DataLoader[Any]:
    """Return a loader of batches, with or without labels."""
    rows = [{name: value for name, value in batch.items() if labeled or name != "labels"} for batch in batches]
    return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


class Labeled(L.LightningDataModule):
    """Data with the attributes that modules compare with their own.

    Args:
        batches: The batches of all splits.
        attributes: The attributes, such as ``num_labels``, ``label_names`` and ``problem_type``.
    """

    def __init__(self, batches: list[Batch], **attributes: Any) -> None:
        super().__init__()
        self.batches = batches
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.batches)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.batches)

    def test_dataloader(self) -> DataLoader[Any]:
        return loader(self.batches)
