"""A fit on two CPU processes, run by test_ddp.py; each rank writes down what it holds."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from helpers.own import OwnModule, make_loader, shapes
from lightning.pytorch.callbacks import ModelCheckpoint

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.process_group import close_process_group


class Shares(OwnModule):
    """Count the samples this rank is calibrated on."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = torch.nn.Identity()
        self.counted.samples = 0  # type: ignore[assignment]

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        if not self.training:
            self.counted.samples += len(batch[0])
        return super().training_step(batch, batch_idx)


def main(folder: Path, devices: int, *ckpt_path: str) -> None:
    """Fit (or resume) and store this rank's weights, shapes, plan and share."""
    torch.set_num_threads(1)
    L.seed_everything(1)
    module, pgb = Shares(), PGBCallback(0.5)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        max_epochs=2 if ckpt_path else 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pgb, ModelCheckpoint(folder, filename="end")],
    )
    trainer.fit(module, make_loader(), make_loader(16), ckpt_path=ckpt_path[0] if ckpt_path else None)
    assert pgb.plan is not None
    found = {"state": module.net.state_dict(), "shapes": shapes(module.net), "plan": pgb.plan.to_dict()}
    torch.save({**found, "samples": module.counted.samples}, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    close_process_group()
