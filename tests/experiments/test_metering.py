"""Time and peak memory of a step."""

from __future__ import annotations

import sys
import time

import pytest

from pgb_lightning.experiments.metering import metered


def test_the_duration_of_a_step_is_measured() -> None:
    with metered() as usage:
        time.sleep(0.2)
    assert 0.2 <= usage.seconds < 2
    assert usage.processor_seconds < 0.1  # sleeping is not computing


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process can be reset on Linux only")
def test_the_peak_is_that_of_the_step() -> None:
    with metered() as large:
        assert len(bytearray(b"\1" * 300_000_000)) > 0
    with metered() as small:
        pass
    assert large.peak_memory_bytes is not None
    assert small.peak_memory_bytes is not None
    assert large.peak_memory_bytes - small.peak_memory_bytes > 200e6
