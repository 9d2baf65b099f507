"""Write files atomically."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step, so that readers see either the old or the new content, never a part of it.

    The text is written to a temporary file in the same folder, which then replaces ``path``. If writing fails, the
    temporary file is removed and an existing file is unchanged.

    Args:
        path: The file to write. Its folder must exist.
        text: The new content.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
