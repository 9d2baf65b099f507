"""A cache of a teacher's answers on disk, row by row, so that later epochs need not compute them.

The key of a row is a hash of its arguments without padding, so it does not depend on the other rows of the batch, their
order, or the length to which they are padded. Labels are not part of it. Scores are stored in single precision and
hidden states in bfloat16, whose rounding errors are far below the distance of a pruned model from its teacher.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import BoundArguments, Parameter, signature
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.batch_labels import label_names
from pgb_lightning.distillation.row_store import RowStore
from pgb_lightning.model_calls import Call

#: Number of rows of a later epoch after which the cache is checked for usefulness.
MIN_ROWS = 256


class TeacherCache:
    """Answers the calls of a student from disk for cached rows, and by running the teacher for others.

    If most rows of a later epoch are new, as with random augmentation, the cache is disabled with a warning.

    Args:
        folder: The folder. It belongs to one teacher, one choice of outputs and layers, and one precision.
        limit: The maximum size of the folder in bytes. When it is full, rows that are not cached are computed in every
            epoch.
        model: The model that is called.
        compute: Computes the teacher's answer to a call, with the hidden states of the compared layers.
    """

    def __init__(self, folder: Path, limit: int, model: PreTrainedModel, compute: Callable[[Call], Call]) -> None:
        self.store = RowStore(folder, limit)
        self._compute = compute
        self._signature = signature(model.forward)
        self._labels = label_names(model)
        self._epoch = self._num_rows = self._num_new = 0
        self._is_used = True
        self._told_full = False

    def answer(self, student: Call) -> Call:
        """Return the teacher's answer to a call.

        Args:
            student: The call, with the hidden states of the compared layers.
        """
        keys = row_keys(self._signature.bind(*student.args, **student.kwargs), self._labels) if self._is_used else []
        slots = _slots(student, len(keys))
        if not slots:
            return self._compute(student)
        known = [self.store.get(key) for key in keys]
        sizes = [sum(row) for row in zip(*(slot.sizes() for slot in slots), strict=True)]
        missing = [row for row, found in enumerate(known) if found is None or len(found) != sizes[row]]
        rows = [found or b"" for found in known]
        if missing:
            computed = self._compute(student if len(missing) == len(keys) else _select(student, missing, len(keys)))
            if not computed.is_valid():
                return self._compute(student)
            for number, row in zip(missing, _pack(computed, slots, missing), strict=True):
                rows[number] = row
                self.store.add(keys[number], row)
        self._count(len(keys), sum(known[row] is None for row in missing))
        return _unpack(rows, slots, student)

    def end_epoch(self) -> None:
        """Start counting the rows of the next epoch."""
        self._epoch += 1
        self._num_rows = self._num_new = 0

    def _count(self, num_rows: int, num_new: int) -> None:
        """Count rows, and disable the cache if later epochs have too many new rows."""
        self._num_rows += num_rows
        self._num_new += num_new
        if self.store.is_full and not self._told_full:
            self._told_full = True
            warnings.warn(
                f"The cache of the teacher's answers in {str(self.store.folder)!r} is full: its limit or the disk's is "
                "reached. Rows that are not in it are computed in every epoch. Set cache_gb higher, compare fewer "
                "layers (layers='last'), or scores only (hidden_weight=0).",
                stacklevel=2,
            )
        if not self.store.is_full and self._epoch and self._num_rows >= MIN_ROWS and 2 * self._num_new > self._num_rows:
            self._is_used = False
            warnings.warn(
                f"{self._num_new} of {self._num_rows} rows of epoch {self._epoch + 1} were not in earlier ones, as "
                "with random augmentation. The teacher's answers are no longer cached. Use cache=None for such data.",
                stacklevel=2,
            )


def row_keys(arguments: BoundArguments, labels: set[str]) -> list[bytes]:
    """Return a key of 16 bytes for each row of a call; an empty list if arguments cannot be split into rows.

    Args:
        arguments: The arguments of the call.
        labels: Names of arguments that do not affect the outputs.
    """
    given = dict(arguments.arguments)
    for name, parameter in arguments.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and name not in labels}
    others = {name: value for name, value in given.items() if not isinstance(value, Tensor) and name not in labels}
    counts = {len(value) if value.dim() else 0 for value in tensors.values()}
    plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in others.values())
    if len(counts) != 1 or 0 in counts or not plain:
        return []
    mask = tensors.get("attention_mask")
    tokens = mask.bool().cpu() if mask is not None and mask.dim() == 2 else None
    digests = [hashlib.blake2b(repr(sorted(others.items())).encode(), digest_size=16) for _ in range(counts.pop())]
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        by_token = tokens is not None and value.shape[:2] == tokens.shape
        for row, digest in enumerate(digests):
            kept = value[row][tokens[row]] if by_token and tokens is not None else value[row]
            digest.update(f"{name} {value.dtype} {tuple(kept.shape)}".encode() + kept.contiguous().numpy().tobytes())
            if name == "attention_mask" and tokens is not None:
                digest.update(tokens[row].nonzero().numpy().tobytes())  # Left padding shifts positions.
    return [digest.digest() for digest in digests]


class _Slot(NamedTuple):
    """How an output or a hidden state is stored in the bytes of a row.

    Args:
        shape: Its shape in the batch, (B, ...).
        tokens: True at the tokens that are stored, (B, S); ``None`` if the whole row is stored.
        dtype: The data type in which it is stored.
        padding: Its value at padding.
    """

    shape: torch.Size
    tokens: Tensor | None
    dtype: torch.dtype
    padding: float = 0.0

    def sizes(self) -> list[int]:
        """Return the number of bytes for each row."""
        if self.tokens is None:
            return [self.shape[1:].numel() * self.dtype.itemsize] * self.shape[0]
        each = self.shape[2:].numel() * self.dtype.itemsize
        return [int(count) * each for count in self.tokens.sum(1)]


def _slots(call: Call, num_rows: int) -> list[_Slot]:
    """Return the slots of the outputs and hidden states of a call; empty if these cannot be split into rows."""
    slots = []
    for name, value in call.logits().items():
        by_token = value.dim() >= 2 and (name != "logits" or value.dim() == 3)
        tokens = call.token_mask(value).bool().cpu() if by_token else None
        slots.append(_Slot(value.shape, tokens, torch.float32, 0.0 if name == "logits" else -torch.inf))
    for entry, hidden in enumerate(call.hidden):
        slots.append(_Slot(hidden.shape, call.token_mask(hidden, entry).bool().cpu(), torch.bfloat16))
    return slots if all(slot.shape[0] == num_rows for slot in slots) else []


def _select(call: Call, rows: Sequence[int], num_rows: int) -> Call:
    """Return the arguments of some rows of a call."""

    def select(value: Any) -> Any:
        return value[list(rows)] if isinstance(value, Tensor) and value.dim() and len(value) == num_rows else value

    return Call(args=tuple(map(select, call.args)), kwargs={name: select(each) for name, each in call.kwargs.items()})


def _pack(answer: Call, slots: Sequence[_Slot], rows: Sequence[int]) -> list[bytes]:
    """Return the bytes of each row of an answer to the given rows of a call."""
    parts: list[list[bytes]] = [[] for _ in rows]
    for slot, value in zip(slots, (*answer.logits().values(), *answer.hidden), strict=True):
        kept = value.detach().to(device="cpu", dtype=slot.dtype)
        kept = kept if slot.tokens is None else kept[slot.tokens[list(rows)]]
        data = kept.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        sizes = slot.sizes()
        bounds = accumulate((sizes[row] for row in rows), initial=0)
        for part, (start, stop) in zip(parts, pairwise(bounds), strict=True):
            part.append(data[start:stop])
    return [b"".join(part) for part in parts]


def _unpack(rows: Sequence[bytes], slots: Sequence[_Slot], student: Call) -> Call:
    """Return the answer to a call, from the bytes of each row."""
    offsets = [0] * len(rows)
    values = []
    for slot in slots:
        sizes = slot.sizes()
        data = bytearray().join(
            memoryview(row)[start : start + size] for row, start, size in zip(rows, offsets, sizes, strict=True)
        )
        offsets = [start + size for start, size in zip(offsets, sizes, strict=True)]
        kept = torch.frombuffer(data, dtype=slot.dtype)
        if slot.tokens is None:
            values.append(kept.view(slot.shape))
        else:
            value = torch.full(slot.shape, slot.padding, dtype=slot.dtype)
            value[slot.tokens] = kept.view(-1, *slot.shape[2:])
            values.append(value)
    logits = student.logits()
    like = [*logits.values(), *student.hidden]
    values = [value.to(device=each.device) for value, each in zip(values, like, strict=True)]
    return replace(student, output=dict(zip(logits, values, strict=False)), hidden=values[len(logits) :])
