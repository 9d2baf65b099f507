"""Two processes: one decision, shared calibration, the same weights on both ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.entries import assert_equal, forget
from helpers.own import OwnModule, shapes
from helpers.processes import run


def fit(folder: Path, devices: int, *ckpt_path: Path) -> list[dict[str, Any]]:
    """Run the script and return what each rank wrote."""
    folder.mkdir()
    run("programs/ddp_fit.py", folder, devices, *ckpt_path)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(devices)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ddp") / "first"
    return folder, fit(folder, 2)


def test_both_ranks_hold_the_same_structure_and_weights(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = ranks[1]
    assert first["plan"] == second["plan"]
    assert first["shapes"] == second["shapes"]
    assert first["shapes"] != shapes(OwnModule().net)  # something was pruned
    assert all(torch.equal(first["state"][name], value) for name, value in second["state"].items())


def test_calibration_is_shared_and_decides_what_one_process_would(
    ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    first, second = ranks[1]
    assert (first["samples"], second["samples"]) == (24, 24)
    assert first["plan"]["num_samples"] == 48
    [alone] = fit(tmp_path / "alone", 1)
    assert alone["samples"] == 48

    def structure(plan: dict[str, Any]) -> list[Any]:
        return [(matrix["kind"], matrix["input_index"], matrix["output_index"]) for matrix in plan["matrices"]]

    assert structure(alone["plan"]) == structure(first["plan"])


def test_both_ranks_resume_the_grouped_model(ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, before = ranks
    after = fit(tmp_path / "resumed", 2, folder / "end.ckpt")
    assert [rank["samples"] for rank in after] == [0, 0]
    assert after[0]["plan"] == before[0]["plan"]
    assert all(torch.equal(after[0]["state"][name], value) for name, value in after[1]["state"].items())


def test_fit_in_two_pieces_on_two_processes(tmp_path: Path) -> None:
    def found(what: str) -> list[dict[str, Any]]:
        run("entries.py", what, tmp_path, 2)
        return [torch.load(tmp_path / f"new-{what}-{rank}.pt", weights_only=False) for rank in range(2)]

    whole = found("fresh")
    forget(tmp_path)
    pieces = found("last")
    assert whole[0]["counters"] == (12, 4)
    for rank in range(2):
        assert_equal(pieces[rank], whole[rank])
    assert torch.equal(whole[0]["logits"], whole[1]["logits"])
