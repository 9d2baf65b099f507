"""Peak memory of the process, with and without the sources that platforms offer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pgb_lightning import peak_memory as module


@pytest.fixture
def without_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a platform without /proc."""
    monkeypatch.setattr(module, "LINUX_STATUS", Path("/nonexistent/status"))


def test_the_peak_counts_memory_that_was_freed() -> None:
    before = module.peak_memory()
    size = torch.ones(50_000_000).nbytes
    after = module.peak_memory()
    assert before is not None
    assert after is not None
    assert after > max(size, 0.99 * before)  # the kernel's counters are approximate


@pytest.mark.usefixtures("without_status")
def test_without_proc_it_comes_from_getrusage() -> None:
    pytest.importorskip("resource")
    found = module.peak_memory()
    assert found is not None
    assert 1e7 < found < 1e12


@pytest.mark.usefixtures("without_status")
def test_without_resource_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert module.peak_memory() is None
