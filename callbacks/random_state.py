"""Isolate the states of the random number generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore the states of all random number generators on exit, also if the block raises an exception.

    Lightning's ``isolate_rng`` does not restore them after an exception.
    """
    failure: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
