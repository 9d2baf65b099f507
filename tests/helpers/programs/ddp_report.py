"""A fit with a report on two CPU processes, run by test_report.py; each rank writes down the facts it holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import torch
from helpers.own import OwnModule, make_loader
from lightning.pytorch.callbacks import ModelCheckpoint

from pgb_lightning.callbacks import PGBCallback, PGBReport
from pgb_lightning.process_group import close_process_group


def main(folder: Path) -> None:
    """Prune, fit and store this rank's facts."""
    torch.set_num_threads(1)
    L.seed_everything(1)
    report = PGBReport()
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PGBCallback(0.5), report, ModelCheckpoint(folder, filename="end")],
    )
    trainer.fit(OwnModule(), make_loader(), make_loader(16))
    facts = report.facts.to_dict() if report.facts else {}
    (folder / f"facts{trainer.global_rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    close_process_group()
