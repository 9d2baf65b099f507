"""Batches of similar lengths on two processes: all rows are used, and lengths match at every step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.processes import run

from pgb_lightning.datamodules import GLUEDataModule


@pytest.mark.slow
def test_two_processes_train_on_matching_batches(
    tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model, folder = str(tiny_model_folder("bert")), str(glue_folder("sst2"))
    data = GLUEDataModule("sst2", model, folder, max_length=32)
    assert isinstance(data.split("train"), Dataset)
    run("programs/ddp_lengths.py", model, folder, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] != first[1]
    for one, other in zip(first, second, strict=True):  # one epoch of each rank
        rows = [row for batch in (*one, *other) for row in batch]
        assert len(rows) == 100
        assert sorted(rows) == sorted(data.split("train")["input_ids"])
        longest = [[max(map(len, batch)) for batch in shard] for shard in (one, other)]
        assert sum(abs(left - right) > 3 for left, right in zip(*longest, strict=True)) <= 1
        assert longest[0] != sorted(longest[0], reverse=True)
