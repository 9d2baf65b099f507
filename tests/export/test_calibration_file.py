"""Calibration batches from a file of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer

from pgb_lightning.export import calibration_file
from pgb_lightning.export.calibration_file import check_calibration_file, read_calibration_file


@pytest.fixture
def tokenizer(tiny_model_folder: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder())


@pytest.mark.parametrize(
    ("suffix", "count", "numbers"),
    [
        ("parquet", 9, [0, 2, 4, 6]),
        ("csv", 9, [0, 2, 4, 6]),
        ("jsonl", 9, [0, 2, 4, 6]),
        ("tsv", 9, [0, 2, 4, 6]),
        ("csv", 7, [0, 1, 3, 5]),
        ("csv", 3, [0, 1, 2]),
    ],
)
def test_rows_are_spread_over_the_file(
    suffix: str, count: int, numbers: list[int], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_file, "NUM_ROWS", 4)
    path = str(tmp_path / f"rows.{suffix}")
    rows = Dataset.from_dict({"number": list(range(count)), "text": ["a " * (index + 1) for index in range(count)]})
    writers: dict[str, Callable[[], object]] = {
        "parquet": lambda: rows.to_parquet(path),
        "csv": lambda: rows.to_csv(path),
        "jsonl": lambda: rows.to_json(path),
        "tsv": lambda: rows.to_csv(path, sep="\t"),
    }
    writers[suffix]()
    [batch] = read_calibration_file(path, tokenizer)
    assert batch["attention_mask"].sum(1).tolist() == [number + 3 for number in numbers]  # with two special tokens


def test_pairs_and_chosen_columns(tokenizer: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    Dataset.from_dict({"other": ["a a a"], "first": ["a"], "second": ["a"]}).to_parquet(path)
    [pair] = read_calibration_file(path, tokenizer, ("first", "second"))
    assert pair["input_ids"].shape == (1, 5)
    [found] = read_calibration_file(path, tokenizer)
    assert found["input_ids"].shape == (1, 7)


def test_unusable_files_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    Dataset.from_dict({"number": [1], "text": ["a"]}).to_parquet(path)
    with pytest.raises(MisconfigurationException, match=r"calibration='.*rows\.parquet'.*'sentence'.*'text'"):
        read_calibration_file(path, tokenizer, ("sentence",))
    Dataset.from_dict({"number": [1]}).to_parquet(path)
    with pytest.raises(MisconfigurationException, match=r"calibration='.*rows\.parquet'"):
        read_calibration_file(path, tokenizer)
    Dataset.from_dict({"text": ["a", None]}).to_parquet(path)
    with pytest.raises(
        MisconfigurationException, match=r"calibration='.*rows\.parquet'.*no text in 1 of 2 rows.*row 1"
    ):
        read_calibration_file(path, tokenizer)
    with pytest.raises(MisconfigurationException, match=r"calibration='nowhere\.csv'"):
        check_calibration_file("nowhere.csv")
    (tmp_path / "rows.txt").touch()
    with pytest.raises(MisconfigurationException, match=r"calibration='.*rows\.txt'.*\.csv.*\.parquet"):
        check_calibration_file(str(tmp_path / "rows.txt"))
