"""The dense model's score, out of the checkpoint that pruning started from."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from helpers.own import OwnModule, make_loader

from pgb_lightning.callbacks import BestCheckpoint
from pgb_lightning.callbacks.dense_scores import dense_scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[BestCheckpoint(str(tmp_path), monitor="val_loss")],
    )
    trainer.fit(OwnModule(), make_loader(), make_loader(16))
    return tmp_path


def test_the_best_checkpoint_knows_its_score(folder: Path) -> None:
    found = dense_scores(folder / "best.ckpt")
    module = OwnModule.load_from_checkpoint(folder / "best.ckpt")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    [measured] = trainer.validate(module, make_loader(16), verbose=False)
    assert found == pytest.approx(measured)


@pytest.mark.parametrize("name", ["last.ckpt", "missing.ckpt", "cut.ckpt"])
def test_where_nothing_is_known_for_sure_a_warning_says_so(
    name: str, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (folder / "cut.ckpt").write_bytes(b"PK\x03\x04")
    assert dense_scores(folder / name) == {}
    assert any("the dense model's score is not known" in str(w.message) and name in str(w.message) for w in recwarn)
