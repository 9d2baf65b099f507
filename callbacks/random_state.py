"""Keep the random number generators as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore the states of all random number generators on exit, also if the block raises an exception.

    Lightning's ``isolate_rng`` restores them only if it does not.
    """
    failure: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
