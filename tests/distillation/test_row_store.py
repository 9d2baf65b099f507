"""Rows on disk: found again, shared between processes, bounded, and whole after an interruption."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from pgb_lightning.distillation import row_store
from pgb_lightning.distillation.row_store import ENTRY, RowStore


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def filled(folder: Path, numbers: range, flush: bool = True) -> RowStore:
    store = RowStore(folder, limit=10_000)
    for number in numbers:
        assert store.add(key(number), bytes([number]) * (number + 1))
    if flush:
        store.flush()
    return store


def test_rows_are_found_at_once_and_by_later_processes(tmp_path: Path) -> None:
    store = filled(tmp_path / "new" / "folder", range(5), flush=False)
    assert store.get(key(3)) == b"\3\3\3\3"
    assert store.get(key(9)) is None
    store.close()
    later = RowStore(tmp_path / "new" / "folder", limit=10_000)
    assert [later.get(key(number)) for number in range(5)] == [bytes([n]) * (n + 1) for n in range(5)]


def test_processes_share_rows_when_they_flush(tmp_path: Path) -> None:
    one, other = filled(tmp_path, range(2)), filled(tmp_path, range(2, 4), flush=False)
    one.refresh()
    assert (one.get(key(0)), one.get(key(2))) == (b"\0", None)
    other.flush()
    one.refresh()
    assert one.get(key(2)) == b"\2\2\2"
    one.add(key(4), b"four")
    one.flush()
    other.refresh()
    assert (other.get(key(0)), other.get(key(4))) == (b"\0", b"four")


def test_an_interrupted_process_leaves_nothing_wrong(tmp_path: Path) -> None:
    """Rows that were written after the last flush are lost; half an entry, or half a row, is not read."""
    store = filled(tmp_path, range(3))
    store.add(key(7), b"lost")
    [index] = tmp_path.glob("*.index")
    with index.open("ab") as file:
        file.write(b"half an entry"[: ENTRY.itemsize - 1])
    later = RowStore(tmp_path, limit=10_000)
    assert [later.get(key(number)) for number in (0, 1, 2, 7)] == [b"\0", b"\1\1", b"\2\2\2", None]
    [rows] = tmp_path.glob("*.rows")
    rows.write_bytes(rows.read_bytes()[:5])
    assert [RowStore(tmp_path, limit=10_000).get(key(number)) for number in (1, 2)] == [b"\1\1", None]


def test_a_known_key_is_not_written_again(tmp_path: Path) -> None:
    store = filled(tmp_path, range(1))
    assert store.add(key(0), b"other")
    assert store.get(key(0)) == b"\0"


def test_the_size_is_limited_over_all_files(tmp_path: Path) -> None:
    first = RowStore(tmp_path, limit=10)
    assert first.add(key(0), b"123456")
    first.close()
    store = RowStore(tmp_path, limit=10)
    assert not store.is_full
    assert store.add(key(1), b"1234")
    assert not store.add(key(2), b"5")
    assert store.is_full
    assert store.get(key(2)) is None
    assert store.get(key(0)) == b"123456"


def test_part_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    store = RowStore(tmp_path, limit=1 << 40)
    monkeypatch.setattr(row_store.shutil, "disk_usage", lambda folder: usage(row_store.RESERVE + 3))
    assert store.add(key(0), b"123")
    assert not store.add(key(1), b"1234")
    assert store.is_full
