from __future__ import annotations

from pathlib import Path

import torch
from fakes import quiet_trainer
from own import OwnModule, make_loader

from pgb_lightning.callbacks import BestCheckpoint


class Scored(OwnModule):
    """Log a score that falls with every epoch."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_score", 1.0 - self.current_epoch)


def test_the_best_and_the_last_epoch_are_kept_under_the_same_names_in_every_run(tmp_path: Path) -> None:
    for _ in range(2):
        trainer = quiet_trainer(
            max_epochs=2, enable_checkpointing=True, callbacks=[BestCheckpoint(str(tmp_path), "val_score")]
        )
        trainer.fit(Scored(), make_loader(16), make_loader(8))
        assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}
        epochs = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.iterdir()}
        assert epochs == {"best": 0, "last": 1}
