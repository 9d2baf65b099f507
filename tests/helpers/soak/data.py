"""Rows, loaders of every kind, and a data module."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from helpers.soak.settings import Settings
from helpers.tiny import PADDING, VOCABULARY

Row = dict[str, Tensor]
NUM_LABELS = {"sequence": 3, "token": 4, "qa": 2, "regression": 1, "multilabel": 5}


def make_rows(settings: Settings, count: int, seed: int) -> list[Row]:
    """Return rows of tokens and labels."""
    data, task = settings.data, settings.model["task"]
    rng = random.Random(f"{settings.seed} {seed}")
    rows = []
    for _ in range(count):
        length = rng.randint(2, data["length"]) if data["variable"] else data["length"]
        tokens = torch.tensor([rng.randrange(2, VOCABULARY) for _ in range(length)])
        total = NUM_LABELS[task]
        labels = {
            "sequence": tokens[0] % total,
            "token": tokens % total,
            "qa": torch.tensor([rng.randrange(length), rng.randrange(length)]),
            "regression": tokens[:1].float() / VOCABULARY,
            "multilabel": (torch.arange(total) < tokens[0] % (total + 1)).float(),
        }[task]
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


#: A row that training leaves out, so that calibration must not read it either.
HELD_OUT: Row = {"input_ids": torch.tensor([-1])}


def collate(settings: Settings) -> Callable[[list[Row]], Row]:
    """Return a function that pads rows to a batch."""

    def make(rows: list[Row]) -> Row:
        assert not any(row is HELD_OUT for row in rows), "a row was read that training leaves out"
        longest = max(len(row["input_ids"]) for row in rows)

        def pad(values: Tensor, value: int) -> Tensor:
            return torch.nn.functional.pad(values, (0, longest - len(values)), value=value)

        tokens = torch.stack([pad(row["input_ids"], PADDING) for row in rows])
        is_token_task = settings.model["task"] == "token"
        labels = torch.stack([pad(row["labels"], -100) if is_token_task else row["labels"] for row in rows])
        batch = {"input_ids": tokens, "labels": labels}
        if settings.data["mask"]:
            batch["attention_mask"] = torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in rows])
        return batch

    return make


class Rows(IterableDataset[Row]):
    """Rows without random access."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class Batches:
    """An iterable of batches that is no ``DataLoader``."""

    def __init__(self, batches: list[Row]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Row]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class EveryOther(Sampler[int]):
    """Leave out the rows with odd numbers, which are held out."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, self.count, 2))

    def __len__(self) -> int:
        return len(range(0, self.count, 2))


class Buckets(Sampler[list[Any]]):
    """A batch sampler of the user, with keys of any kind and batches of different sizes."""

    def __init__(self, keys: list[Any], size: int) -> None:
        self.batches = [keys[start : start + size] for start in range(0, len(keys), size)]

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def training_loader(settings: Settings) -> Any:
    """Return the training loader."""
    data = settings.data
    rows, size, form = make_rows(settings, data["rows"], seed=0), data["batch_size"], data["loader"]
    common: dict[str, Any] = {"collate_fn": collate(settings)}
    with_held_out = [row for pair in zip(rows, [HELD_OUT] * len(rows), strict=True) for row in pair]

    def plain(own: list[Row] = rows, **more: Any) -> DataLoader[Any]:
        return DataLoader(own, size, **common, **more)  # type: ignore[arg-type]

    if form == "generator":
        return plain(shuffle=True, generator=torch.Generator().manual_seed(settings.seed))
    if form == "sampler":
        return plain(with_held_out, sampler=EveryOther(len(with_held_out)))
    if form == "batch_sampler":
        keys = list(range(0, len(with_held_out), 2))
        return DataLoader(with_held_out, batch_sampler=Buckets(keys, size), **common)  # type: ignore[arg-type]
    if form == "string_keys":
        named: Any = {f"row {number}": row for number, row in enumerate(with_held_out)}
        return DataLoader(named, batch_sampler=Buckets(list(named)[::2], size), **common)
    if form == "single_rows":
        return DataLoader(rows, batch_size=None, collate_fn=lambda row: collate(settings)([row]))  # type: ignore[arg-type]
    if form == "iterable":
        return DataLoader(Rows(rows), size, **common)
    if form in ("iterator", "batches"):
        batches = Batches([collate(settings)(rows[start : start + size]) for start in range(0, len(rows), size)])
        return iter(batches) if form == "iterator" else batches
    if form in ("dict", "list", "max_size", "min_size", "max_size_cycle"):
        loaders: Any = {"a": plain(shuffle=True), "b": plain(rows[: len(rows) // 2])}
        loaders = list(loaders.values()) if form == "list" else loaders
        return loaders if form in ("dict", "list") else CombinedLoader(loaders, form)
    return plain(shuffle=form == "shuffled")


def validation_loader(settings: Settings) -> DataLoader[Any]:
    return DataLoader(make_rows(settings, 8, seed=1), 4, collate_fn=collate(settings))  # type: ignore[arg-type]


def probe(settings: Settings) -> Row:
    """Return the batch on which models are compared, without labels."""
    batch = collate(settings)(make_rows(settings, 3, seed=2))
    return {name: value for name, value in batch.items() if name != "labels"}


class Data(L.LightningDataModule):
    """A data module of the user."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def train_dataloader(self) -> Any:
        return training_loader(self.settings)

    def val_dataloader(self) -> Any:
        return validation_loader(self.settings)


class DataWithCalibration(Data):
    """A data module with rows for calibration."""

    def calibration_dataloader(self) -> Any:
        return validation_loader(self.settings)
