"""Write files atomically."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace a file in one step, so that readers see either the old or the new content, never a part of it.

    Args:
        path: The file to replace or create. Its folder must exist.

    Yields:
        A temporary path in the same folder. The file that the block writes there replaces ``path`` at the end. If the
        block fails, the temporary file is removed and an existing file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step, as :func:`replacing` does.

    Args:
        path: The file to write. Its folder must exist.
        text: The new content.

    Raises:
        OSError: If the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file in one step. NaN and infinities, which JSON does not support, are written as texts.

    Args:
        path: The file to write. Its folder must exist.
        content: JSON primitives; numbers may be NaN or infinite.
    """
    write_atomically(path, json.dumps(_as_json(content), indent=2, allow_nan=False) + "\n")


def _as_json(value: Any) -> Any:
    """Replace NaN and infinities by strings as in the JSON format of Protocol Buffers."""
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
