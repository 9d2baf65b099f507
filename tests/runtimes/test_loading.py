"""Modules loaded in a runtime compute what they compute in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pgb_lightning.runtimes import loading
from pgb_lightning.runtimes.loading import load_modules, runtime_version

HIDDEN = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Same(nn.Module):
    """What is left of a dropped sublayer without biases."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def test_in_torch_modules_are_made_one_at_a_time() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Linear(8, 8))
        return made[-1]

    for count, run in enumerate(load_modules((make() for _ in range(3)), HIDDEN, "torch"), start=1):
        assert len(made) == count
        torch.testing.assert_close(run(), made[-1](HIDDEN))


@pytest.mark.slow
def test_outputs_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two modules that are exported together, and of one alone."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(loading, "CHUNK", 3)
    shared = nn.Linear(8, 8)
    modules = [nn.Sequential(shared, nn.GELU()), nn.Sequential(shared, nn.LayerNorm(8)), Same(), nn.Linear(8, 4)]
    runs = list(load_modules(iter(modules), HIDDEN, "onnxruntime"))
    for module, run in zip(modules, runs, strict=True):
        torch.testing.assert_close(run(), module(HIDDEN).detach(), rtol=0, atol=1e-5)


def test_versions() -> None:
    assert runtime_version("torch") == torch.__version__
    pytest.importorskip("onnxruntime")
    assert runtime_version("onnxruntime") != runtime_version("torch")
