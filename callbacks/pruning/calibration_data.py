"""Select the batches on which a fit is calibrated."""

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
    """Return the calibration batches of a fit.

    They come from the loader named ``source``, else from ``calibration_dataloader()`` of the data module or the module,
    else from the training set. From the training set 2,048 rows are drawn with a fixed seed, since data sets are often
    sorted.

    Args:
        trainer: The Trainer, with its data attached.
        module: The module being fitted.
        source: Name of a loader, or of a method that returns one, on the data module or the module.
        size: Requested number of samples; ``None`` for all of a calibration loader, or 2,048 training rows.

    Returns:
        Batches as the loader yields them, on the CPU.

    Raises:
        MisconfigurationException: If there is no such loader, or it has fewer samples than requested.
    """
    named = _named_loader(trainer, module, source)
    loader = _training_loader(trainer) if named is None else named
    if named is not None and size is None:
        batches: Iterable[Any] = _iterate(loader)
    else:
        rows_can_be_picked = isinstance(loader, DataLoader) and _is_sampled(loader)
        if rows_can_be_picked:
            _check_size(len(loader.dataset), size)
        if rows_can_be_picked and named is None:
            batches = _random_subset(loader, size or CALIBRATION_SIZE)
        else:
            batches = _first_samples(loader, size or CALIBRATION_SIZE, required=size is not None)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # The number of training batches, here as well.
        return islice(batches, int(trainer.fast_dev_run))  # type: ignore[attr-defined]
    return batches


def shard_batches(batches: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """Yield one rank's shard of the batches. All shards have the same length.

    A step may contain collective calls, which hang if one process makes fewer steps. An incomplete last round is
    therefore dropped, unless it is the only one.

    Args:
        batches: All batches, the same on every process.
        rank: The rank of this process.
        world_size: The number of processes.

    Example:
        >>> [list(shard_batches("abcde", rank, 2)) for rank in (0, 1)]
        [['a', 'c'], ['b', 'd']]
    """
    pending: list[Any] = []
    rounds = 0
    for batch in batches:
        pending.append(batch)
        if len(pending) == world_size:
            yield pending[rank]
            pending.clear()
            rounds += 1
    if not rounds and rank < len(pending):
        yield pending[rank]


def _named_loader(trainer: pl.Trainer, module: pl.LightningModule, source: str | None) -> Any:
    """Return the loader that the user named or defined for calibration, or ``None``."""
    datamodule = getattr(trainer, "datamodule", None)
    holders = [holder for holder in (datamodule, module) if holder is not None]
    name = source or "calibration_dataloader"
    for holder in holders:
        found = getattr(holder, name, None)
        if found is not None:
            loader = found() if callable(found) else found
            if loader is None:
                raise MisconfigurationException(
                    f"{type(holder).__name__}.{name} returned None. Return a data loader, or remove {name} to "
                    "calibrate on the training set."
                )
            return loader
    if source is not None:
        classes = " and ".join(type(holder).__name__ for holder in holders)
        raise MisconfigurationException(
            f"calibration={source!r} is not an attribute of {classes}. Pass the name of a loader, or of a method that "
            "returns one, or leave calibration out to use the training set."
        )
    return None


def _training_loader(trainer: pl.Trainer) -> Any:
    """Return the training data loader as the user gave it; refuse one that can be read only once."""
    loader = training_dataloader(trainer)
    rows = getattr(loader, "dataset", None)
    if isinstance(loader, Iterator) or (isinstance(rows, IterableDataset) and iter(rows) is iter(rows)):
        raise MisconfigurationException(
            "The training data is an iterator, which calibration would exhaust. Pass a loader that can be read twice, "
            "or name another loader with calibration=."
        )
    return loader


def _is_sampled(loader: DataLoader[Any]) -> bool:
    """Return whether rows can be drawn: the data set is map-style and the loader uses all of its rows."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    # Other samplers select rows. Those that they leave out may be held out on purpose.
    return isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler))


def _random_subset(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """Return a loader of ``size`` random rows, which uses neither the sampler nor the generator of ``loader``."""
    total = len(loader.dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return DataLoader(
        Subset(loader.dataset, order[:size].tolist()),
        batch_size=loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )


def _iterate(loader: Any) -> Iterator[Any]:
    """Iterate over any loader, or collection of loaders, that a Trainer accepts."""
    members = loader.values() if isinstance(loader, dict) else loader if isinstance(loader, (list, tuple)) else ()
    if any(isinstance(member, DataLoader) for member in members):
        loader = CombinedLoader(loader, "max_size_cycle")  # As the Trainer does. A plain list is a list of batches.
    generators = _generators(loader.flattened if isinstance(loader, CombinedLoader) else [loader])
    states = [generator.get_state() for generator in generators]
    try:
        if isinstance(loader, CombinedLoader):
            yield from (batch for batch, _, _ in loader)
        else:
            yield from loader
    finally:  # Training must draw the numbers that it would draw without calibration.
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """Return the random number generators of loaders and their samplers."""
    holders = [holder for loader in loaders for holder in (loader, *_samplers(loader))]
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _samplers(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def _first_samples(loader: Any, size: int, required: bool) -> Iterator[Any]:
    """Iterate over a loader until ``size`` samples have been yielded."""
    seen = 0
    for batch in _iterate(loader):
        yield batch
        seen += extract_batch_size(batch)
        if seen >= size:
            return
    _check_size(seen, size if required else None)


def _check_size(available: int, size: int | None) -> None:
    """Raise an error if fewer samples are available than requested; warn if there are fewer than by default."""
    if size is not None and available < size:
        raise MisconfigurationException(
            f"calibration_size={size} is larger than the calibration loader, which has {available} samples. Set it to "
            f"at most {available}, or leave it out."
        )
    if size is None and 0 < available < CALIBRATION_SIZE:
        rank_zero_warn(f"PGB calibrates on all {available} training samples; the default is {CALIBRATION_SIZE}.")
