"""Select the calibration batches of a fit."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader

from pgb_lightning._compat import follows_its_sampler, passed_dataloader, provides_data, training_dataloader
from pgb_lightning.callbacks.pruning.snapshot import Snapshot
from pgb_lightning.callbacks.pruning.training_data import TrainingData, num_samples
from pgb_lightning.config import CALIBRATION_SIZE


def calibration_batches(
    trainer: pl.Trainer, module: pl.LightningModule, source: str | None, size: int | None, snapshot: Snapshot
) -> Generator[Any, None, None]:
    """Yield the calibration batches of a fit.

    They come from the loader named ``source``, else from ``calibration_dataloader()`` of the data module or the module,
    else from the training set.

    Args:
        trainer: The Trainer, with its data attached.
        module: The module being fitted.
        source: Name of a loader, or of a method that returns one, on the data module or the module.
        size: Requested number of samples; ``None`` for all of a calibration loader, or 2,048 training rows.
        snapshot: The snapshot to which the loader is added before it is read.

    Yields:
        Batches as the loader yields them, on the CPU.

    Raises:
        MisconfigurationException: If there is no such loader, it has fewer samples than requested, or reading it would
            take samples from training.
    """
    loader = _named_loader(trainer, module, source)
    if loader is None:
        loader = training_dataloader(trainer)
        snapshot.add({"the training data": loader}, hold_data=True)
        batches = _from_training(trainer, loader, size)
    else:
        if not isinstance(loader, Iterator):  # An iterator that nothing else uses may be exhausted.
            snapshot.add({"the calibration data": loader}, hold_data=True)
        batches = _iterate(loader) if size is None else _first_samples(loader, size)
    num_batches = int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]  # As many as training reads.
    with closing(batches):
        yield from (batch for batch in islice(batches, num_batches) if batch is not None)


def shard_batches(batches: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """Yield one rank's shard of the batches. All shards have the same length.

    A step may contain collective calls, which hang if one process makes fewer steps. An incomplete last round is
    therefore dropped. If there are fewer batches than processes, some processes get the same batch.

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
    if pending and not rounds:
        yield pending[rank % len(pending)]


def _named_loader(trainer: pl.Trainer, module: pl.LightningModule, source: str | None) -> Any:
    """Return the loader that the user named or defined for calibration, or ``None``."""
    name = source or "calibration_dataloader"
    passed = passed_dataloader(trainer, name)
    if isinstance(passed, Iterator):
        raise MisconfigurationException(
            f"calibration={name!r} is an iterator that was passed to fit, and calibration would take batches from it. "
            "Pass a DataLoader to fit, or name another loader."
        )
    if passed is not None:
        return passed
    datamodule = getattr(trainer, "datamodule", None)
    if not provides_data(trainer, datamodule):
        datamodule = None  # that of a previous fit
    holders = [holder for holder in (datamodule, module) if holder is not None]
    for holder in holders:
        found = getattr(holder, name, None)
        if found is not None and not _is_undefined_hook(found, name):
            loader = _call(holder, name) if callable(found) else found
            if loader is None:
                raise MisconfigurationException(
                    f"{type(holder).__name__}.{name} returned None. Return a data loader, or remove {name} to "
                    "calibrate on the training set."
                )
            return loader
    if source is not None:
        classes = " and ".join(type(holder).__name__ for holder in holders)
        raise MisconfigurationException(
            f"calibration={source!r} is not defined by {classes}, and no such loader was passed to fit. Pass the name "
            "of a loader, or of a method that returns one, or leave calibration out to use the training set."
        )
    return None


def _is_undefined_hook(method: Any, name: str) -> bool:
    """Return whether a method is that of Lightning's base class, which raises an error."""
    return getattr(method, "__func__", method) is getattr(DataHooks, name, None)


def _call(holder: Any, name: str) -> Any:
    """Call a method that returns a loader. It may fail since it needs attributes that a fit does not set."""
    try:
        return getattr(holder, name)()
    except Exception as error:
        raise MisconfigurationException(
            f"Calibration data: {type(holder).__name__}.{name}() failed with {type(error).__name__}: {error}. In a "
            "fit, setup is called with stage='fit' only. Correct this method, or name another loader with "
            "PGBCallback(calibration=...)."
        ) from error


def _from_training(trainer: pl.Trainer, loader: Any, size: int | None) -> Generator[Any, None, None]:
    """Read the training data until there are ``size`` samples, or 2,048."""
    data = TrainingData(trainer, loader, size or CALIBRATION_SIZE)
    complete = not trainer.fast_dev_run  # type: ignore[attr-defined]
    if complete and data.num_samples is not None:
        _check_size(data.num_samples, size)
    with closing(iter(data)) as batches:
        yield from batches
    if complete and data.num_samples is None:
        _check_size(data.num_read, size)


def _first_samples(loader: Any, size: int) -> Generator[Any, None, None]:
    """Read a loader that the user named until there are ``size`` samples."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    if type(batch_sampler) is BatchSampler and follows_its_sampler(loader):
        available = sized_len(batch_sampler.sampler)
        if available is not None:
            _check_size(min(available, len(batch_sampler) * batch_sampler.batch_size), size)
    seen = 0
    with closing(_iterate(loader)) as batches:
        for batch in batches:
            yield batch
            seen += num_samples(batch)
            if seen >= size:
                return
    _check_size(seen, size)


def _iterate(loader: Any) -> Generator[Any, None, None]:
    """Iterate over any loader, or collection of loaders, that a Trainer accepts."""
    members = loader.values() if isinstance(loader, dict) else loader
    is_collection = isinstance(loader, (dict, list, tuple))
    if is_collection and any(isinstance(member, DataLoader) for member in members):
        loader = CombinedLoader(loader, "max_size_cycle")  # As the Trainer does. A plain list is a list of batches.
    if isinstance(loader, CombinedLoader):
        yield from (batch for batch, _, _ in loader)
    else:
        yield from loader


def _check_size(available: int, size: int | None) -> None:
    """Raise an error if fewer samples are available than requested; warn if there are fewer than the default."""
    if size is not None and available < size:
        raise MisconfigurationException(
            f"calibration_size={size} is larger than the calibration loader, which has {available} samples. Set it to "
            f"at most {available}, or leave it out."
        )
    if size is None and 0 < available < CALIBRATION_SIZE:
        rank_zero_warn(f"PGB calibrates on all {available} training samples; the default is {CALIBRATION_SIZE}.")
