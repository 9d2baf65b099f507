"""Write files atomically."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step, so that readers see the old content or the new one, never a part.

    The text goes to a temporary file in the same folder, which then replaces ``path``. If writing fails, the temporary
    file is removed and an existing file stays as it was.

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
