"""Calibration batches from a table of texts, for ``pgb export --calibration FILE``."""

from __future__ import annotations

from pathlib import Path

from datasets import Value
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgb_lightning.datamodules.checks import check_texts
from pgb_lightning.datamodules.tables import LOADERS, read_file

#: Number of rows to read, spread evenly over the file; rows per batch; and maximum number of tokens per row.
NUM_ROWS, BATCH_SIZE, MAX_LENGTH = 256, 16, 128


def check_calibration_file(path: str) -> None:
    """Check that a file exists and has a known format.

    Raises:
        MisconfigurationException: If it does not exist, or has another format.
    """
    if not Path(path).is_file():
        raise MisconfigurationException(f"calibration={path!r} is not a file. Pass a table of texts.")
    if Path(path).suffix not in LOADERS:
        raise MisconfigurationException(
            f"calibration={path!r} must end in {', '.join(LOADERS)}. Convert the file, or pass batches to "
            "pgb_lightning.export.export_onnx or export_openvino."
        )


def read_calibration_file(
    path: str, tokenizer: PreTrainedTokenizerBase, columns: tuple[str, ...] = ()
) -> list[dict[str, Tensor]]:
    """Read and tokenize rows of a file.

    Args:
        path: A CSV, TSV, JSON lines or parquet file.
        tokenizer: The tokenizer of the model.
        columns: One or two text columns; by default the first, or first two, columns with texts.

    Raises:
        MisconfigurationException: If the file has no rows, lacks the columns, or has rows without a text.
    """
    rows = read_file(Path(path))
    texts = [name for name, kind in rows.features.items() if kind in (Value("string"), Value("large_string"))]
    chosen = columns or tuple(texts[:2])
    if not len(rows) or not chosen or not set(chosen) <= set(texts):
        wanted = f"the text columns {list(chosen)}" if chosen else "a text column"
        raise MisconfigurationException(
            f"calibration={path!r} must have rows with {wanted}, but has {len(rows)} rows and the text columns {texts}."
        )
    check_texts(rows, chosen, chosen, f"calibration={path!r}")
    count = min(len(rows), NUM_ROWS)
    rows = rows.select([number * len(rows) // count for number in range(count)])
    return [
        dict(
            tokenizer(
                *(batch[name] for name in chosen),
                truncation=True,
                max_length=min(MAX_LENGTH, tokenizer.model_max_length),
                padding=True,
                return_tensors="pt",
            )
        )
        for batch in rows.iter(BATCH_SIZE)
    ]
