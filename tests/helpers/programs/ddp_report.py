"""Prune with a report on two CPU processes; every rank saves its facts."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.own import OwnModule, make_loader
from pgb_lightning.callbacks import PGBCallback, PGBReport


def main(folder: Path) -> None:
    """Prune, fit and save this rank's facts."""
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
