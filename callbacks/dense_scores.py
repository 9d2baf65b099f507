"""Read the validation score of the dense model from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from pgb_lightning.checkpoints import get_monitored_scores, load_checked


def read_dense_scores(path: str | Path) -> dict[str, float]:
    """Return the monitored score of a checkpoint that ``ModelCheckpoint`` saved as its best.

    Any other checkpoint may hold the score of an earlier epoch. For such a checkpoint or an unreadable file, a warning
    is issued and an empty dict is returned.

    Args:
        path: The checkpoint, such as the ``best.ckpt`` of the fine-tuning run.
    """
    try:
        # Memory-mapped, since only a few values of a large file are needed.
        read = partial(torch.load, path, map_location="cpu", weights_only=True, mmap=True)
        states: Mapping[str, Any] = load_checked(path, read).get("callbacks", {})
    except (OSError, ValueError) as error:
        rank_zero_warn(f"PGBReport: the dense model's score is unknown. dense_ckpt={error}")
        return {}
    if scores := get_monitored_scores(states, path):
        return scores
    rank_zero_warn(
        f"PGBReport: the dense model's score is unknown. dense_ckpt={str(path)!r} is not a checkpoint that "
        "ModelCheckpoint saved as its best by a monitored, finite score. Pass dense_scores instead."
    )
    return {}
