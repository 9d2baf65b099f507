"""Pruning time: every step is measured, and peak memory where the platform reports it."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from pgb_lightning.experiments import pruning_time
from pgb_lightning.experiments.metering import CLOCKS, Clock
from pgb_lightning.experiments.pruning_time import PASS, PRUNING_STEPS


@pytest.fixture
def tiny_bert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the base size by a tiny one."""

    def full_size_config(architecture: str, num_layers: int) -> BertConfig:
        assert architecture == "bert"
        return BertConfig(
            vocab_size=60,
            hidden_size=24,
            num_attention_heads=2,
            intermediate_size=48,
            num_hidden_layers=num_layers,
        )

    monkeypatch.setattr(pruning_time, "full_size_config", full_size_config)


@pytest.mark.usefixtures("tiny_bert")
@pytest.mark.parametrize("clock", CLOCKS)
def test_every_step_is_measured_and_summed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    measured = pruning_time.run(num_samples=4, length=8, batch_size=2, num_layers=1, clock=clock)
    assert list(measured.seconds) == [PASS, *PRUNING_STEPS]
    assert min(measured.seconds.values()) > 0
    total = sum(measured.seconds[name] for name in PRUNING_STEPS)
    printed = capsys.readouterr().out
    assert f"{total / measured.seconds[PASS]:.2f}" in printed
    if measured.peak_memory_after is not None:
        assert f"{measured.peak_memory_after / 1e6:,.0f} MB" in printed


@pytest.mark.usefixtures("tiny_bert")
def test_peak_memory_may_be_not_available(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pruning_time, "peak_memory", lambda: None)
    measured = pruning_time.run(num_samples=2, length=8, batch_size=2, num_layers=1)
    assert measured.peak_memory_before is measured.peak_memory_after is None
    assert "not available" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_bert")
def test_invalid_settings_raise_before_anything_is_measured() -> None:
    with pytest.raises(ValueError, match=r"pruning_ratio=1\.5"):
        pruning_time.run(pruning_ratio=1.5)
