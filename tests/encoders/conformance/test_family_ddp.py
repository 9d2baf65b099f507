"""Pruning and training in two processes, for families whose parameters are shared, fused or read outside the layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.entries import assert_equal
from helpers.processes import run

#: ModernBERT has fused matrices, ALBERT layers that run several times, DeBERTa relative embeddings of the encoder.
MODEL_TYPES = ("modernbert", "albert", "deberta-v2")


@pytest.mark.slow
def test_two_processes_make_one_model(tmp_path: Path) -> None:
    run("programs/ddp_families.py", tmp_path, *MODEL_TYPES)
    for model_type in MODEL_TYPES:
        for ratio in (0.5, 0.97):
            first, second = (
                torch.load(tmp_path / f"{model_type} {ratio} {rank}.pt", weights_only=False) for rank in range(2)
            )
            assert_equal(first, second)
            assert first["plan"]["num_samples"] == 48
            assert first["plan"]["summary"]["pruning_ratio"] == pytest.approx(ratio, abs=0.02)
            assert first["logits"].isfinite().all()
