"""Two processes: one plan, sharded calibration, the same weights on both ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.entries import assert_equal
from helpers.own import OwnModule, shapes
from helpers.programs import ddp_fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def load(folder: Path, name: str = "rank") -> list[dict[str, Any]]:
    """Return what each rank saved."""
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=False) for rank in range(2)]


def test_both_ranks_hold_the_same_structure_and_weights(two_processes: Path) -> None:
    first, second = load(two_processes / "fit")
    assert first["plan"] == second["plan"]
    assert first["shapes"] == second["shapes"]
    assert first["shapes"] != shapes(OwnModule().net)  # something was pruned
    assert_equal(first["state"], second["state"])


def test_calibration_is_sharded_and_gives_the_plan_of_one_process(two_processes: Path, tmp_path: Path) -> None:
    first, second = load(two_processes / "fit")
    assert (first["samples"], second["samples"]) == (24, 24)
    assert first["plan"]["num_samples"] == 48
    ddp_fit.main(tmp_path, devices=1)
    alone = torch.load(tmp_path / "rank0.pt", weights_only=False)
    assert alone["samples"] == 48

    def structure(plan: dict[str, Any]) -> list[Any]:
        return [(matrix["kind"], matrix["input_index"], matrix["output_index"]) for matrix in plan["matrices"]]

    assert structure(alone["plan"]) == structure(first["plan"])


def test_both_ranks_resume_the_pruned_model(two_processes: Path) -> None:
    first, second = load(two_processes / "resumed")
    assert (first["samples"], second["samples"]) == (0, 0)
    assert first["plan"] == load(two_processes / "fit")[0]["plan"]
    assert_equal(first["state"], second["state"])


def test_a_resumed_fit_equals_the_uninterrupted_one_on_both_ranks(two_processes: Path) -> None:
    uninterrupted, resumed = (load(two_processes / "exact", name) for name in ("uninterrupted", "resumed"))
    assert uninterrupted[0]["counters"] == (12, 4)
    assert_equal(resumed, uninterrupted)
    assert torch.equal(uninterrupted[0]["logits"], uninterrupted[1]["logits"])


def test_ranks_with_different_data_make_the_same_plan(two_processes: Path) -> None:
    first, second = load(two_processes / "different")
    assert first["plan"]["num_samples"] == 16 + 16  # 2 of 4 batches on rank 0, and as many of 6 on rank 1
    assert first["plan"]["summary"]["pruning_ratio"] > 0.4
    assert_equal(first, second)


def test_planning_that_fails_on_rank_zero_fails_on_all_ranks(two_processes: Path) -> None:
    first, second = load(two_processes / "failing")
    assert (first["error"], second["error"]) == ("an operation failed", "PGBCallback: an operation failed")
    assert first["plan"] is second["plan"] is None
    assert_equal(first["weights"], second["weights"])


def test_one_rank_without_gradients_is_a_warning_on_rank_zero(two_processes: Path) -> None:
    first, second = load(two_processes / "one-silent")
    assert first["plan"] == second["plan"]
    assert first["plan"]["num_samples"] == 48
    assert_equal(first["weights"], second["weights"])
    [warning] = first["warnings"]
    assert "24 of 48 calibration samples" in warning
    assert second["warnings"] == []


def test_no_gradients_on_any_rank_are_refused_on_all_ranks(two_processes: Path) -> None:
    first, second = load(two_processes / "silent")
    assert first["error"] == second["error"]
    assert "No calibration sample has a gradient (48 samples" in first["error"]
    assert first["plan"] is second["plan"] is None
    assert_equal(first["weights"], OwnModule().net.state_dict())
    assert_equal(first["weights"], second["weights"])
