"""A killed fit loses nothing: the next run resumes exactly from the last good checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers.entries import ResumableModule, UninterruptedFit, assert_equal, fit, make_trainer, snapshot, train_loader
from helpers.own import make_loader
from helpers.processes import run
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning import PruningPlan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the program forks"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill a fit at each moment and return the folder that holds what each left behind."""
    folder = tmp_path_factory.mktemp("killed")
    signals = json.loads(run("programs/killed_fit.py", folder).splitlines()[-1])
    assert set(signals.values()) == {signal.SIGKILL}, signals
    return folder


@pytest.mark.parametrize("when", ["calibration", "surgery"])
def test_nothing_is_written_before_training(when: str, killed: Path) -> None:
    assert list((killed / when).rglob("*.*")) == []


@pytest.mark.parametrize("when", ["epoch", "before the move"])
def test_a_fit_killed_in_training_resumes_from_the_last_checkpoint(
    when: str, killed: Path, uninterrupted: UninterruptedFit, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed / when, tmp_path / "run")
    assert {path.name for path in folder.glob("*.ckpt")} == {"epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"}
    assert PruningPlan.load(folder / "plan.json").to_dict() == uninterrupted.snapshot["plan"]
    assert_equal(snapshot(*fit(folder, "last")), uninterrupted.snapshot)


def test_a_truncated_last_checkpoint_is_refused_and_the_previous_one_resumes(
    killed: Path, uninterrupted: UninterruptedFit, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed / "during the move", tmp_path / "run")
    with pytest.raises(MisconfigurationException, match=r"last\.ckpt.*epoch=1\.ckpt"):
        make_trainer(folder).fit(ResumableModule(), train_loader(), make_loader(16), ckpt_path="last")
    assert_equal(snapshot(*fit(folder, folder / "epoch=1.ckpt")), uninterrupted.snapshot)
