"""Ranks that differ: one decision all the same, and one failure for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers.entries import assert_equal
from helpers.processes import run


def ranks(how: str, folder: Path) -> list[dict[str, Any]]:
    run("programs/odd_ranks.py", how, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_that_see_different_data_decide_alike(tmp_path: Path) -> None:
    first, second = ranks("different", tmp_path)
    assert first["plan"]["num_samples"] == 16 + 24
    assert first["plan"]["summary"]["pruning_ratio"] > 0.4
    assert_equal(first, second)


def test_where_the_decision_fails_it_fails_everywhere(tmp_path: Path) -> None:
    first, second = ranks("failing", tmp_path)
    assert (first["error"], second["error"]) == ("an operation failed", "PGBCallback: an operation failed")
    assert first["plan"] is second["plan"] is None
    assert_equal(first["weights"], second["weights"])
