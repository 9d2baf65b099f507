"""The dense model's score, read from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from helpers.own import OwnModule, make_loader

from pgb_lightning.callbacks import BestCheckpoint
from pgb_lightning.callbacks.dense_scores import read_dense_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[BestCheckpoint(str(folder), monitor="val_loss")],
    )
    trainer.fit(OwnModule(), make_loader(), make_loader(16))
    (folder / "cut.ckpt").write_bytes(b"PK\x03\x04")
    return folder


def test_the_best_checkpoint_holds_its_score(folder: Path) -> None:
    found = read_dense_scores(folder / "best.ckpt")
    module = OwnModule.load_from_checkpoint(folder / "best.ckpt")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    [measured] = trainer.validate(module, make_loader(16), verbose=False)
    assert found == pytest.approx(measured)


@pytest.mark.parametrize("name", ["last.ckpt", "missing.ckpt", "cut.ckpt"])
def test_an_unknown_score_is_a_warning(name: str, folder: Path) -> None:
    with pytest.warns(UserWarning, match=name):
        assert read_dense_scores(folder / name) == {}
