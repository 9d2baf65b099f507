"""Interrupted jobs: requeued by SLURM, or restarted from the checkpoint of an exception."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import (
    ResumableModule,
    UninterruptedFit,
    assert_equal,
    find_pgb,
    fit,
    make_trainer,
    snapshot,
    train_loader,
)
from helpers.fakes import quiet_trainer
from helpers.own import make_loader
from helpers.tiny import batches
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor

from pgb_lightning import PruningConfig, prune
from pgb_lightning.compensation import fit as compensation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "signal_handlers")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend to be a SLURM job, and return the file in which ``scontrol`` writes its arguments."""
    log, command = tmp_path / "scontrol.log", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    job = {"JOB_ID": "77", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return log


class Preempted(ResumableModule):
    """Send the signals of SLURM, which announces the end of a job, in the second epoch."""

    signals: tuple[int, ...] = ()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if self.training and self.trainer.current_epoch == 1 and batch_idx == 3:
            for each in self.signals:
                os.kill(os.getpid(), each)
        return super().training_step(batch, batch_idx)


class Requeued(ResumableModule):
    """Refuse to be calibrated."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        assert self.training
        return super().training_step(batch, batch_idx)


def start_job(folder: Path, module: ResumableModule) -> L.Trainer:
    """Run the script that SLURM starts again and again."""
    trainer = make_trainer(folder, plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR1)])
    trainer.fit(module, train_loader(), make_loader(16))
    return trainer


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs the signal")
def test_a_requeued_job_continues_without_pruning_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preempted, "signals", (signal.SIGUSR1, signal.SIGTERM))
    with pytest.raises(SIGTERMException):
        start_job(tmp_path / "run", Preempted())
    assert slurm.read_text() == "requeue 77\n"
    stored = torch.load(tmp_path / "run" / "hpc_ckpt_1.ckpt", weights_only=True)
    plan = stored["callbacks"]["PGBCallback"]["plan"]
    assert plan is not None

    trainer = start_job(tmp_path / "run", Requeued(seed=5))
    assert trainer.current_epoch == 4
    pruned = find_pgb(trainer).plan
    assert pruned is not None
    assert pruned.to_dict() == plan


def test_the_checkpoint_of_another_job_in_the_folder_is_named(slurm: Path, tmp_path: Path) -> None:
    dense = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    dense.fit(ResumableModule(), train_loader())
    path = tmp_path / "run" / "hpc_ckpt_1.ckpt"
    path.parent.mkdir()
    dense.save_checkpoint(path)
    with pytest.raises(MisconfigurationException, match=r"ckpt_path=.*hpc_ckpt_1\.ckpt"):
        start_job(path.parent, ResumableModule())


class Interrupted(ResumableModule):
    """Fail in the third calibration batch."""

    error: BaseException = KeyboardInterrupt()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if not self.training and batch_idx == 2:
            torch.rand(3)
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("when", "error"), [("calibration", KeyboardInterrupt()), ("surgery", OSError("disk full"))])
def test_a_fit_that_is_interrupted_before_training_starts_again_from_its_checkpoint(
    when: str,
    error: BaseException,
    uninterrupted: UninterruptedFit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*arguments: Any) -> Any:
        prune_layer(*arguments)
        raise error

    prune_layer = compensation.prune_layer
    module = ResumableModule()
    if when == "surgery":
        monkeypatch.setattr(compensation, "prune_layer", failing)
    else:
        monkeypatch.setattr(Interrupted, "error", error)
        module = Interrupted()
    with pytest.raises((SystemExit, OSError)):
        fit(tmp_path, module=module, callbacks=(OnExceptionCheckpoint(tmp_path),))
    monkeypatch.undo()
    stored = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)
    assert_equal(dict(stored["state_dict"]), dict(ResumableModule().state_dict()))

    shutil.copy(tmp_path / "on_exception.ckpt", tmp_path / "kept.ckpt")  # The callback deletes it in the end.
    assert_equal(snapshot(*fit(tmp_path / "by path", tmp_path / "kept.ckpt")), uninterrupted.snapshot)
    trainer, module = fit(tmp_path, module=ResumableModule(seed=5), callbacks=(OnExceptionCheckpoint(tmp_path),))
    assert_equal(snapshot(trainer, module), uninterrupted.snapshot)


def test_an_interrupted_second_pruning_starts_again(tmp_path: Path) -> None:
    module = Interrupted()
    module.error = OSError("disk full")
    plan = prune(module.net, batches(), PruningConfig(pruning_ratio=0.3, max_groups=1))
    with pytest.raises(OSError, match="disk full"):
        fit(tmp_path, module=module, epochs=1, callbacks=(OnExceptionCheckpoint(tmp_path),))
    trainer, _ = fit(tmp_path, module=ResumableModule(5), epochs=1, callbacks=(OnExceptionCheckpoint(tmp_path),))
    further = find_pgb(trainer).plan
    assert further is not None
    assert (plan.pruning_ratio, further.pruning_ratio) == pytest.approx((0.3, 0.5), abs=0.01)
