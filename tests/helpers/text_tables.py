"""Tables of texts in files of several kinds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgb_lightning.datamodules import TextDataModule

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    """Write rows as CSV, TSV or JSON lines, by the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def reviews(count: int = 40, **columns: Callable[[int], Any]) -> Rows:
    """Return rows with a text and further columns, such as ``label=lambda row: row % 2``."""
    return [
        {
            "id": f"r{row}",
            "review": f"a good film , {'very ' * (row % 5)}bad",
            **{name: value(row) for name, value in columns.items()},
        }
        for row in range(count)
    ]


def encoded(data: TextDataModule) -> dict[str, Any]:
    """Return what each label in the training rows becomes."""
    assert data.columns.label is not None
    values = data.load_rows("train")[data.columns.label]
    return {str(value): label for value, label in zip(values, data.split("train")["labels"], strict=True)}
