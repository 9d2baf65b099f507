"""A key-value store on disk, in a folder that processes can share and that remains valid after interruptions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np

#: An entry of an index: the key of a row, and the position of its bytes in the file of the same name.
ENTRY = np.dtype([("key", "V16"), ("offset", "<i8"), ("length", "<i8")])

#: Number of bytes of the disk that are left free.
RESERVE = 1 << 30


class RowStore:
    """A store of bytes by keys of 16 bytes, in append-only files.

    Each process writes its own files: rows, and an index to which entries are added after the rows are on the disk. An
    interrupted process may therefore leave rows without entries, but no entries without a row.

    Args:
        folder: The folder; it is created.
        limit: Maximum size of all rows in it, in bytes. At least 1 GiB of the disk is left free.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = RowStore(Path(folder), limit=1000)
        ...     store.add(b"k" * 16, b"some bytes")
        ...     print(store.get(b"k" * 16))
        ...     store.close()
        True
        b'some bytes'
    """

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.limit = limit
        self.is_full = False
        self._own = folder / f"{uuid4().hex}.rows"
        self._entries: dict[bytes, tuple[Path, int, int]] = {}
        self._pending: list[tuple[bytes, int, int]] = []
        self._readers: dict[Path, IO[bytes]] = {}
        self._num_read: dict[Path, int] = {}
        self._writer: IO[bytes] | None = None
        self._size = 0
        self.refresh()

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes of a key, or ``None`` if there are none."""
        if key not in self._entries:
            return None
        path, offset, length = self._entries[key]
        if path not in self._readers:
            self._readers[path] = path.open("rb", buffering=0)
        self._readers[path].seek(offset)
        found = self._readers[path].read(length)
        return found if len(found) == length else None

    def add(self, key: bytes, row: bytes) -> bool:
        """Store a row under a key, unless the key exists, and return whether there was space for it."""
        if key in self._entries:
            return True
        self.is_full = self._size + len(row) > self.limit or shutil.disk_usage(self.folder).free < RESERVE + len(row)
        if self.is_full:
            return False
        if self._writer is None:
            self._writer = self._own.open("ab", buffering=0)
        offset = self._writer.tell()
        self._writer.write(row)
        self._entries[key] = (self._own, offset, len(row))
        self._pending.append((key, offset, len(row)))
        self._size += len(row)
        return True

    def flush(self) -> None:
        """Make the rows available to other processes and later runs."""
        if self._writer is None or not self._pending:
            return
        os.fsync(self._writer.fileno())
        with self._own.with_suffix(".index").open("ab") as index:
            index.write(np.array(self._pending, dtype=ENTRY).tobytes())
        self._pending.clear()

    def refresh(self) -> None:
        """Read the index entries that other processes have written."""
        for path in self.folder.glob("*.index"):
            rows, start = path.with_suffix(".rows"), self._num_read.get(path, 0)
            if rows == self._own or not rows.is_file():
                continue
            with path.open("rb") as index:
                index.seek(start * ENTRY.itemsize)
                found = index.read()
            entries = np.frombuffer(found, dtype=ENTRY, count=len(found) // ENTRY.itemsize)
            self._num_read[path] = start + len(entries)
            for key, offset, length in entries.tolist():
                self._entries.setdefault(key, (rows, offset, length))
        self._size = sum(rows.stat().st_size for rows in self.folder.glob("*.rows"))

    def close(self) -> None:
        """Write all pending rows, and close the files."""
        self.flush()
        for file in (*self._readers.values(), *([self._writer] if self._writer else [])):
            file.close()
        self._readers.clear()
        self._writer = None
