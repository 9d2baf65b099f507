"""Closing the process group ends its threads, which could otherwise abort the interpreter at exit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pgb_lightning.process_group import close_process_group


def gloo_threads() -> int:
    """Return the number of threads of this process that run collectives."""
    return sum("gloo_runloop" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_is_left_even_if_a_wrapped_module_is_not_collected(tmp_path: Path) -> None:
    pytest.importorskip("torch", "2.13", "gloo's threads are counted by name, which older versions do not set")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    module = DistributedDataParallel(nn.Linear(2, 2))
    module(torch.ones(1, 2)).sum().backward()
    module.itself = [module]
    assert gloo_threads() > 0
    del module
    close_process_group()
    assert not distributed.is_initialized()
    assert gloo_threads() == 0


def test_closing_without_a_process_group_does_nothing() -> None:
    close_process_group()
    assert not distributed.is_initialized()
