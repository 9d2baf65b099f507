"""Killed at any moment, nothing is lost: the next run goes on from the last good checkpoint, exactly."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from helpers.entries import Whole, assert_equal, fit, make_trainer, snapshot, train_loader
from helpers.own import make_loader
from helpers.processes import start
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning import PruningPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def kill(when: str, folder: Path) -> None:
    process = start("programs/killed_fit.py", when, folder)
    _, error = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, error[-3000:]


@pytest.mark.parametrize("when", ["calibration", "surgery"])
def test_before_training_nothing_is_written(when: str, whole: Whole, tmp_path: Path) -> None:
    kill(when, tmp_path)
    assert list(tmp_path.rglob("*.*")) == []
    assert_equal(snapshot(*fit(tmp_path)), whole.snapshot)


@pytest.mark.parametrize("when", ["epoch", "before the move"])
def test_in_training_the_last_checkpoint_is_whole(when: str, whole: Whole, tmp_path: Path) -> None:
    kill(when, tmp_path)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"}
    assert PruningPlan.load(tmp_path / "plan.json").to_dict() == whole.snapshot["plan"]
    assert_equal(snapshot(*fit(tmp_path, "last")), whole.snapshot)


def test_amid_a_checkpoint_on_another_disk_the_one_before_is_whole(whole: Whole, tmp_path: Path) -> None:
    kill("during the move", tmp_path)
    trainer = make_trainer(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"last\.ckpt' .*truncated.* epoch=1\.ckpt, epoch=0"):
        trainer.fit(whole.module.__class__(), train_loader(), make_loader(16), ckpt_path="last")
    assert_equal(snapshot(*fit(tmp_path, tmp_path / "epoch=1.ckpt")), whole.snapshot)
