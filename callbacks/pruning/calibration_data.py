"""Which batches a Trainer's fit is calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler, Subset

from pgb_lightning._compat import training_dataloader
from pgb_lightning.config import CALIBRATION_SIZE


def calibration_batches(
    trainer: pl.Trainer, module: pl.LightningModule, source: str | None, size: int | None
) -> Iterable[Any]:
    """Find the calibration batches of a fit.

    They come from the loader named ``source``; else from ``calibration_dataloader()`` of the data module or the
    module; else from the training set: 2,048 rows drawn with a fixed seed, since data sets are often sorted.

    Args:
        trainer: The Trainer, its data attached.
        module: The module being fitted.
        source: Name of a loader, or of a method that returns one, on the data module or the module.
        size: Samples the user asked for; ``None`` for all of a calibration loader, or 2,048 training rows.

    Returns:
        Batches as the loader makes them, on the CPU.

    Raises:
        MisconfigurationException: There is no such loader, or it holds fewer samples than were asked for.
    """
    named = _named_loader(trainer, module, source)
    loader = _training_loader(trainer) if named is None else named
    if named is not None and size is None:
        batches: Iterable[Any] = _batches(loader)
    else:
        rows_can_be_picked = isinstance(loader, DataLoader) and _is_sampled(loader)
        if rows_can_be_picked:
            _check_size(len(loader.dataset), size)
        if rows_can_be_picked and named is None:
            batches = _random_subset(loader, size or CALIBRATION_SIZE)
        else:
            batches = _first_samples(loader, size or CALIBRATION_SIZE, required=size is not None)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return islice(batches, int(trainer.fast_dev_run))  # type: ignore[attr-defined]  # as few as it trains on
    return batches


def share_of_rank(batches: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """Deal batches out to the processes of a fit, the same number to each.

    A step may contain collective calls, which hang if one process makes fewer steps; so a last round that does not go
    round is left out, unless it is the only one.

    Args:
        batches: All batches, the same on every process.
        rank: This process's number.
        world_size: The number of processes.

    Example:
        >>> [list(share_of_rank("abcde", rank, 2)) for rank in (0, 1)]
        [['a', 'c'], ['b', 'd']]
    """
    dealt: list[Any] = []
    complete = 0
    for batch in batches:
        dealt.append(batch)
        if len(dealt) == world_size:
            yield dealt[rank]
            dealt.clear()
            complete += 1
    if not complete and rank < len(dealt):
        yield dealt[rank]


def _named_loader(trainer: pl.Trainer, module: pl.LightningModule, source: str | None) -> Any:
    """Return the loader the user named or wrote for calibration, or ``None``."""
    datamodule = getattr(trainer, "datamodule", None)
    holders = [holder for holder in (datamodule, module) if holder is not None]
    for holder in holders:
        found = getattr(holder, source or "calibration_dataloader", None)
        if found is not None:
            loader = found() if callable(found) else found
            if loader is None:
                raise MisconfigurationException(
                    f"{type(holder).__name__}.{source or 'calibration_dataloader'} gave None instead of a loader."
                )
            return loader
    if source is not None:
        names = " and ".join(type(holder).__name__ for holder in holders)
        raise MisconfigurationException(
            f"calibration={source!r}: there is no attribute of that name on {names}; give the name of a loader or of a "
            "method that returns one, or leave calibration out to use the training set."
        )
    return None


def _training_loader(trainer: pl.Trainer) -> Any:
    """Return the training data as the user gave them."""
    loader = training_dataloader(trainer)
    rows = getattr(loader, "dataset", None)
    if isinstance(loader, Iterator) or (isinstance(rows, IterableDataset) and iter(rows) is iter(rows)):
        raise MisconfigurationException(
            "the training data is an iterator, which calibration would use up; give a loader that can be read twice, "
            "or name another one with calibration=."
        )
    return loader


def _is_sampled(loader: DataLoader[Any]) -> bool:
    """Tell whether rows can be picked: a map-style data set, all of whose rows the loader itself batches."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    # Other samplers choose among the rows, and those they leave out may be held out for good reason.
    return isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler))


def _random_subset(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """Load ``size`` random rows as ``loader`` would, without touching its sampler or its random state."""
    total = len(loader.dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return DataLoader(
        Subset(loader.dataset, order[:size].tolist()),
        batch_size=loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _batches(loader: Any) -> Iterator[Any]:
    """Go over any loader, or collection of loaders, that a Trainer takes."""
    members = loader.values() if isinstance(loader, dict) else loader if isinstance(loader, (list, tuple)) else ()
    if any(isinstance(member, DataLoader) for member in members):
        loader = CombinedLoader(loader, "max_size_cycle")  # as the Trainer does; a plain list is a list of batches
    generators = _generators(loader.flattened if isinstance(loader, CombinedLoader) else [loader])
    states = [generator.get_state() for generator in generators]
    try:
        if isinstance(loader, CombinedLoader):
            yield from (batch for batch, _, _ in loader)
        else:
            yield from loader
    finally:  # training draws from them as if nobody had before
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """List the random number generators of loaders and their samplers."""
    holders = [holder for loader in loaders for holder in (loader, *_samplers(loader))]
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _samplers(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def _first_samples(loader: Any, size: int, required: bool) -> Iterator[Any]:
    """Go over a loader until ``size`` samples have passed."""
    seen = 0
    for batch in _batches(loader):
        yield batch
        seen += extract_batch_size(batch)
        if seen >= size:
            return
    _check_size(seen, size if required else None)


def _check_size(available: int, size: int | None) -> None:
    """Refuse to calibrate on fewer samples than asked for; mention it where nothing was asked for."""
    if size is not None and available < size:
        raise MisconfigurationException(
            f"calibration_size={size} was asked for, but the calibration loader has {available} samples; ask for "
            f"at most {available}, or leave calibration_size out."
        )
    if size is None and 0 < available < CALIBRATION_SIZE:
        rank_zero_warn(f"PGB calibrates on all {available} training samples; {CALIBRATION_SIZE} are usual.")
