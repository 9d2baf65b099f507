"""Interleaved timing: only ratios are tested, not absolute times."""

from __future__ import annotations

import time

from pgb_lightning.latency import compare_latency


def test_the_slower_function_takes_longer() -> None:
    times = compare_latency(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}, repeats=3, min_time=0.02
    )
    assert times["slow"] > 3 * times["fast"] > 0


def test_every_function_is_called_the_same_number_of_rounds() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1
        time.sleep(0.001)

    compare_latency({name: (lambda n=name: count(n)) for name in calls}, repeats=2, min_time=0.0001)
    assert calls["a"] == calls["b"] > 2
