"""Files are written completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgb_lightning.atomic_write import write_atomically, write_json


def test_text_is_written_as_utf8_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("first\n", "naïve γ\n"):
        write_atomically(path, text)
        assert path.read_bytes() == text.encode()
    write_atomically(str(path), "")
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, "old")

    def fail(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "plan.json", "text")


@pytest.mark.parametrize(
    ("number", "text"), [(float("nan"), "NaN"), (float("inf"), "Infinity"), (-float("inf"), "-Infinity"), (1.5, 1.5)]
)
def test_numbers_that_json_does_not_have_are_texts(number: float, text: object, tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", {"dense": {"val_pearson": number}, "rounds": (number, 1)})
    found = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert found == {"dense": {"val_pearson": text}, "rounds": [text, 1]}
