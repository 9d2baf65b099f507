"""Detect that an iterator, a generator or a file, which cannot be reset, has advanced."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterator
from contextlib import suppress
from operator import length_hint
from typing import Any

#: Classes whose objects advance when they are used. Users' own Python classes are not included, since their attributes
#: can be restored.
ONE_WAY = (Iterator, Generator, AsyncGenerator, Coroutine, io.IOBase)

_COMPARED = (int, float, str, bytes, bool, type(None))


def position(value: Any, depth: int = 4) -> Any:
    """Return a value that differs after an iterator, generator or file has advanced, if this can be detected.

    It cannot be detected for generators in an endless loop whose variables and iterators do not change, and for
    iterators of C extensions that do not report how many items are left.

    Args:
        value: The iterator, generator or file. For any other object its identity is returned, for a list its length.
        depth: Number of iterators inside iterators to follow.

    Example:
        >>> numbers = zip([1, 2], map(abs, [3, 4]))
        >>> before = position(numbers)
        >>> _ = next(numbers)
        >>> position(numbers) == before
        False
    """
    if isinstance(value, _COMPARED):
        return value
    if isinstance(value, list):  # often one that __reduce__ has just made
        return len(value)
    if isinstance(value, tuple):
        return tuple(position(part, depth) for part in value)
    if not issubclass(type(value), ONE_WAY) or depth == 0:
        return id(value), value  # keeps the object alive, so that no other gets its identity
    return tuple(position(part, depth - 1) for part in _state(value))


def _state(value: Any) -> tuple[Any, ...]:
    """Return the parts of a one-way object that show its position."""
    if isinstance(value, io.IOBase):
        for file in (value, getattr(value, "buffer", None)):  # tell() fails for a text file in an iteration.
            with suppress(OSError, ValueError, AttributeError):
                return (file.tell(),)  # type: ignore[union-attr]
        return (value.closed,)
    if isinstance(value, Generator):
        frame = getattr(value, "gi_frame", None)
        if frame is None:
            return (None,)
        # The referents are its variables, and the iterators of its loops, which have no names.
        inspected = (frame, frame.f_locals)
        return (frame.f_lasti, *(part for part in gc.get_referents(value) if all(part is not it for it in inspected)))
    if hasattr(value, "__dict__"):
        return tuple(vars(value).values())
    state: list[Any] = [length_hint(value, -1), getattr(value, "line_num", None)]
    state += [part for part in gc.get_referents(value) if issubclass(type(part), ONE_WAY)]
    if "__reduce__" in vars(type(value)):  # not that of object
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore", DeprecationWarning)
            state += value.__reduce__()[1:]
    return tuple(state)
