"""Read the training data for calibration: only rows that training reads, batched as in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from pgb_lightning._compat import combination_mode, disable_shuffling, follows_its_sampler
from pgb_lightning.callbacks.pruning.snapshot import Snapshot

#: Maximum number of a sampler's keys that are listed.
_MAX_KEYS = 1_000_000


class TrainingData:
    """The training data of a fit, as one epoch of training reads it.

    Map-style data sets are read in random order with a fixed seed, since data sets are often sorted: in batches of
    random rows if torch's own samplers read the whole data set, otherwise in whole batches as the loader's sampler
    composes them. From streams, the first batches are read. Loaders are combined as in training.

    Reading changes the loaders' samplers, data sets and generators; take a :class:`Snapshot` of ``loader`` before.

    Args:
        trainer: The Trainer. Its ``limit_train_batches`` and ``overfit_batches`` are respected.
        loader: The training data loader, or collection of loaders, as the user gave it.
        size: Minimum number of samples to read, if there are as many.

    Raises:
        MisconfigurationException: If a loader can be read only once, or its mode does not work in training.
    """

    def __init__(self, trainer: pl.Trainer, loader: Any, size: int) -> None:
        combined = copy.copy(loader) if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        mode = combination_mode(combined)
        if mode == "sequential":
            raise MisconfigurationException(
                "CombinedLoader(mode='sequential') does not work in training. Use 'min_size', 'max_size' or "
                "'max_size_cycle'."
            )
        if trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            disable_shuffling(combined)
        loaders = combined.flattened
        for member in loaders:
            _set_epoch(member, trainer.current_epoch)
        limits = [limited_length(sized_len(member), trainer.limit_train_batches) for member in loaders]
        num_batches = (min if mode == "min_size" else max)(limits, default=0)
        alone = size if len(loaders) == 1 else None
        self._size = size
        self._members = [_Member(member, num_batches, trainer.world_size, alone) for member in loaders]
        combined.flattened = self._members
        self._combined = combined

    @property
    def num_samples(self) -> int | None:
        """Number of samples of an epoch, if it is known before they are read."""
        return self._members[0].num_samples if len(self._members) == 1 else None

    def __iter__(self) -> Generator[Any, None, None]:
        """Read batches until there are enough samples; the samples of all members of a combined batch count."""
        try:
            for batch, _, _ in self._combined:
                yield batch
                if self.num_read >= self._size:
                    return
        finally:
            self._combined.reset()  # ends worker processes

    @property
    def num_read(self) -> int:
        """Number of samples that have been read."""
        return sum(member.num_read for member in self._members)


class _Member:
    """One of the loaders that training combines, or the only one.

    Args:
        loader: The loader.
        num_batches: Number of its batches that an epoch of training reads at most.
        world_size: Number of processes that share a ``DistributedSampler``.
        size: Number of samples that will be read, if this is the only loader.
    """

    def __init__(self, loader: Any, num_batches: float, world_size: int, size: int | None) -> None:
        self.num_read = 0
        self.num_samples: int | None = None
        self._batches: Iterable[Any] = loader
        self._sizes: list[int] | None = None
        self._stop = None if num_batches == math.inf else int(num_batches)
        if not isinstance(loader, DataLoader) or not follows_its_sampler(loader):
            _refuse_if_read_once(loader)
            return
        batch_size, num_rows = _whole_data_set(loader, num_batches, world_size)
        if num_rows is not None:
            self.num_samples = num_rows
            keys = _random_order(range(num_rows))[:size]
            batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
            if size is None and loader.drop_last and len(keys) % batch_size:
                batches.pop()
        else:
            batches, complete = _list_batches(loader, self._stop, size)
            batches = _random_order(batches) if complete else batches
        if loader.batch_sampler is not None:
            self._sizes = [len(batch) for batch in batches]
            if num_rows is None and complete:
                self.num_samples = sum(self._sizes)
        self._batches, self._stop = _reader(loader, batches), None

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(islice(self._batches, self._stop)):
            self.num_read += num_samples(batch) if self._sizes is None else self._sizes[number]
            yield batch


def num_samples(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor, or of its first member without tensors.

    Example:
        >>> num_samples({"text": ["a", "b"], "labels": torch.zeros(2, 5)}), num_samples({"text": ["a", "b", "c"]})
        (2, 3)
    """
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        first = next(iter(batch.values()), "") if isinstance(batch, Mapping) else batch
        return len(first) if isinstance(first, (list, tuple)) else 1


def _set_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` of the samplers, as Lightning does."""
    for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]


def limited_length(length: int | None, limit: float) -> float:
    """Return how many of a loader's batches an epoch reads; ``limit`` is a ``limit_train_batches``.

    Example:
        >>> [limited_length(8, 3), limited_length(8, 0.5), limited_length(None, 3), limited_length(8, 0)]
        [3, 4, 3, 8]
    """
    available = math.inf if length is None else length
    if not limit or (length is None and isinstance(limit, float)):  # 0 is for fits that only prune.
        return available
    return min(available, limit) if isinstance(limit, int) else int(available * limit)


def _whole_data_set(loader: DataLoader[Any], num_batches: float, world_size: int) -> tuple[int, int | None]:
    """Return the batch size, and the number n such that the loader reads the first n rows, in any order.

    n is ``None`` if the loader does not use torch's own samplers on the whole data set, since other samplers may hold
    out rows or compose batches deliberately.
    """
    batches: Any = loader.batch_sampler
    rows: Any = loader.dataset
    if type(batches) is not BatchSampler:
        return 1, None
    sampler: Any = batches.sampler
    end = num_batches * batches.batch_size
    if type(sampler) is RandomSampler and sampler.data_source is rows:
        end = math.inf
    elif type(sampler) is DistributedSampler and sampler.dataset is rows and sampler.num_replicas == world_size:
        end = math.inf if sampler.shuffle else min(end * world_size, sampler.total_size)
    elif type(sampler) is not SequentialSampler or sampler.data_source is not rows:
        return 1, None
    return batches.batch_size, int(min(len(rows), end))


def _list_batches(loader: DataLoader[Any], stop: int | None, size: int | None) -> tuple[list[Any], bool]:
    """List the keys of the batches of an epoch, and return whether these are all batches.

    From a sampler without a length, which may be endless, only the first batches are listed.
    """
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    length = sized_len(sampler)
    enough = _MAX_KEYS if length is not None else size or _MAX_KEYS
    listed: list[Any] = []
    num_keys = 0
    for keys in islice(sampler, stop):
        listed.append(list(keys) if isinstance(keys, list) else keys)  # The sampler may reuse the list.
        num_keys += len(keys) if loader.batch_sampler is not None else 1
        if num_keys >= enough:
            break
    return listed, length is not None


def _random_order(values: Sequence[Any]) -> list[Any]:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return [values[index] for index in order.tolist()]


def _reader(loader: DataLoader[Any], batches: list[Any]) -> DataLoader[Any]:
    """Return a loader that reads the given batches of keys, or single keys, as ``loader`` reads its own."""
    keys: dict[str, Any] = {"batch_sampler": batches}
    if loader.batch_sampler is None:
        keys = {"sampler": batches, "batch_size": None}
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **keys,
    )


def _refuse_if_read_once(loader: Any) -> None:
    """Refuse a stream that cannot be reset to the start after calibration."""
    rows = loader.dataset if isinstance(loader, DataLoader) else loader
    sources = {"the loader": loader}
    in_workers = getattr(loader, "num_workers", 0) > 0  # Only copies of the data set are read there.
    if (isinstance(rows, IterableDataset) and not in_workers) or rows is loader:
        iterator = iter(rows)
        if iterator is iter(rows):
            sources["its iterator"] = iterator
    one_way = Snapshot({}, data=sources).one_way
    if one_way:
        raise MisconfigurationException(
            f"The training data of type {type(rows).__name__} reads from an iterator or file ({min(one_way)}), which "
            "calibration would exhaust. Pass a loader that can be read twice, or name another loader with "
            "PGBCallback(calibration=...)."
        )
