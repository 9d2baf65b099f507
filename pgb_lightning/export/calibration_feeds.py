"""Convert calibration batches to the inputs of exported graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Batches as a DataLoader yields them: token ids and, optionally, masks and token types. Other entries are ignored.
Batches: TypeAlias = Iterable[Mapping[str, Any]]

#: Number of calibration batches from which the commands take the ranges of the activations.
CALIBRATION_BATCHES = 8

Feed: TypeAlias = dict[str, NDArray[np.int64]]


def read_calibration(
    quantize: str | None, calibration: Batches | None, needed_by: Sequence[str]
) -> list[Mapping[str, Any]] | None:
    """Read calibration batches, which must be given if, and only if, the quantization needs them.

    Args:
        quantize: The quantization.
        calibration: The batches.
        needed_by: The quantizations that need them.

    Returns:
        The batches, ``None`` if the quantization needs none.

    Raises:
        TypeError: If a batch is not a mapping with a tensor of token ids.
        ValueError: If the batches are missing, or would not be used.
    """
    if calibration is not None and quantize in needed_by:
        return read_batches(calibration)
    if quantize in needed_by:
        raise ValueError(
            f"quantize={quantize!r} needs calibration=BATCHES, from which the ranges of the activations are taken, but "
            "calibration=None. Pass some batches of training rows, such as a list of batches of a DataLoader."
        )
    if calibration is not None:
        raise ValueError(
            f"calibration is given, but quantize={quantize!r} needs none. Omit it, or use quantize="
            f"{' or '.join(map(repr, needed_by))}."
        )
    return None


def read_batches(calibration: Batches) -> list[Mapping[str, Any]]:
    """Read calibration batches.

    Args:
        calibration: The batches.

    Raises:
        TypeError: If a batch is not a mapping with a tensor of token ids.
        ValueError: If there is no batch.
    """
    batches = list(calibration)
    for number, batch in enumerate(batches):
        if not (isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor)):
            found = f"has {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"is a {type(batch).__name__}"
            raise TypeError(f"calibration: batch {number} {found}. Pass mappings with a tensor 'input_ids'.")
    if not batches:
        raise ValueError("calibration has no batches. Pass at least one.")
    return batches


def make_feed(batch: Mapping[str, Any], inputs: Sequence[str]) -> Feed:
    """Return the arrays of a batch that are inputs of a graph.

    Args:
        batch: Token ids and, optionally, ``attention_mask`` (default: ones) and ``token_type_ids`` (default: zeros).
        inputs: The names of the graph's inputs.

    Example:
        >>> make_feed({"input_ids": torch.tensor([[2, 5]])}, ["input_ids", "attention_mask"])["attention_mask"].tolist()
        [[1, 1]]
    """
    ids = batch["input_ids"]
    defaults = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    given = {**defaults, **batch}
    return {name: given[name].detach().cpu().numpy().astype(np.int64, copy=False) for name in inputs}
