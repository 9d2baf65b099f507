"""Freeze tiny checkpoints of this version, with the logits that they must always give: python tests/frozen/make.py.

They are made once a release that changes what is stored, and never again: test_frozen.py loads those of all versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

import pgb_lightning
from pgb_lightning.callbacks import ExactResume, PGBCallback
from pgb_lightning.modules import TextClassification

COMMON = {"vocab_size": 30, "pad_token_id": 0, "initializer_range": 0.2, "max_position_embeddings": 20}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS: dict[str, tuple[float, dict[str, Any]]] = {
    "bert": (0.5, {**COMMON, **SIZES}),
    "roberta": (0.88, {**COMMON, **SIZES, "type_vocab_size": 1, "bos_token_id": 1, "eos_token_id": 2}),
    "distilbert": (0.7, {**COMMON, "dim": 12, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Make rows that are the same on every machine."""
    return [
        {
            "input_ids": (torch.arange(8) * (row + 3) + row) % 27 + 3,
            "attention_mask": torch.ones(8, dtype=torch.long),
            "labels": torch.tensor(row % 2),
        }
        for row in range(count)
    ]


def loader(count: int = 32) -> DataLoader[Any]:
    return DataLoader(rows(count), batch_size=8)  # type: ignore[arg-type]


def trainer(folder: Path, epochs: int, *callbacks: L.Callback) -> L.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings: dict[str, Any] = {"accelerator": "cpu", "max_epochs": epochs, "default_root_dir": folder}
    return L.Trainer(**settings, callbacks=list(callbacks), **dict.fromkeys(off, False))


def logits(module: TextClassification) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([module(**batch).logits for batch in loader(8)])


def main() -> None:
    folder = Path(__file__).parent / pgb_lightning.__version__
    folder.mkdir()
    expected = {}
    for model_type, (ratio, settings) in MODELS.items():
        L.seed_everything(0)
        module = TextClassification(model_type, hf_config={"model_type": model_type, **settings}, learning_rate=1e-3)
        fitted = trainer(folder, 2, PGBCallback(ratio), ExactResume())
        fitted.fit(module, loader())
        fitted.save_checkpoint(folder / f"{model_type}.ckpt")
        expected[model_type] = logits(module).tolist()
    (folder / "logits.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
