"""Batches of similar lengths on two processes: all rows are used, and lengths match at every step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from pgb_lightning.datamodules import GLUEDataModule


@pytest.mark.slow
def test_two_processes_train_on_matching_batches(
    two_processes: Path, squad_model: str, glue_folder: Callable[..., Path]
) -> None:
    data = GLUEDataModule("sst2", squad_model, str(glue_folder("sst2")), max_length=32)
    assert isinstance(data.split("train"), Dataset)
    first, second = (json.loads((two_processes / "lengths" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] != first[1]
    for one, other in zip(first, second, strict=True):  # one epoch of each rank
        rows = [row for batch in (*one, *other) for row in batch]
        assert len(rows) == 100
        assert sorted(rows) == sorted(data.split("train")["input_ids"])
        longest = [[max(map(len, batch)) for batch in shard] for shard in (one, other)]
        assert sum(abs(left - right) > 3 for left, right in zip(*longest, strict=True)) <= 1
        assert longest[0] != sorted(longest[0], reverse=True)
