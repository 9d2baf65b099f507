"""Suppress warnings about missed targets in experiments, whose tables show the fraction that was removed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignore_missed_targets() -> Iterator[None]:
    """Issue no warnings about plans that miss their target while the context is active."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
