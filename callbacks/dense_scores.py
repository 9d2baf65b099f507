"""The validation score of the model that was pruned, as the checkpoint that it came from remembers it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from pgb_lightning.checkpoints import get_monitored_scores, load_checked


def dense_scores(path: str | Path) -> dict[str, float]:
    """Read the monitored score of a checkpoint that a ``ModelCheckpoint`` kept as its best.

    Of any other checkpoint nothing is known for sure: what its callbacks remember may be an earlier epoch's. Then, and
    where the file cannot be read, a warning says so and nothing is returned.

    Args:
        path: The checkpoint, such as the ``best.ckpt`` of the fine-tuning.
    """
    try:
        # Mapped, not read: of a large file only these few words are wanted.
        read = partial(torch.load, path, map_location="cpu", weights_only=True, mmap=True)
        states: Mapping[str, Any] = load_checked(path, read).get("callbacks", {})
    except (OSError, ValueError) as error:
        rank_zero_warn(f"PGBReport: the dense model's score is not known; dense_ckpt={error}")
        return {}
    if scores := get_monitored_scores(states, path):
        return scores
    rank_zero_warn(
        f"PGBReport: the dense model's score is not known; dense_ckpt={str(path)!r} is not a checkpoint that "
        "ModelCheckpoint kept as its best by a monitored score. Give dense_scores instead."
    )
    return {}
