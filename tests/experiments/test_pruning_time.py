"""The measurement of pruning time runs and counts every step."""

from __future__ import annotations

import pytest

from pgb_lightning.experiments.pruning_time import run


def test_every_step_is_measured_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(num_samples=4, length=8, batch_size=2, num_layers=1)
    assert list(found) == [
        "forward and backward",
        "peak memory before, MB",
        "calibration",
        "plan",
        "compensation and surgery",
        "peak memory after, MB",
    ]
    assert min(found.values()) > 0
    assert found["peak memory after, MB"] >= found["peak memory before, MB"]
    assert "pruning in all" in capsys.readouterr().out
