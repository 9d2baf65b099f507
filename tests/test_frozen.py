"""Checkpoints of every released version still load, give the logits they gave, and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen.make import MODELS, loader, logits, trainer

from pgb_lightning.callbacks import ExactResume, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "frozen").glob("*/logits.json"))


@pytest.fixture(params=[(folder, model) for folder in FOLDERS for model in MODELS], ids=lambda p: f"{p[0].name}-{p[1]}")
def frozen(request: pytest.FixtureRequest) -> tuple[Path, torch.Tensor]:
    folder, model = request.param
    return folder / f"{model}.ckpt", torch.tensor(json.loads((folder / "logits.json").read_text())[model])


def test_there_are_some() -> None:
    assert [folder.name for folder in FOLDERS][:1] == ["0.1.0"]


def test_it_loads_and_gives_its_logits(frozen: tuple[Path, torch.Tensor]) -> None:
    path, expected = frozen
    module = TextClassification.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert is_pruned(find_encoder(module))
    torch.testing.assert_close(logits(module), expected, rtol=1e-4, atol=1e-5)


def test_it_resumes(frozen: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    path, _ = frozen
    module = TextClassification.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    pgb = PGBCallback()
    resumed = trainer(tmp_path, 3, pgb, ExactResume())
    resumed.fit(module, loader(), ckpt_path=path)
    assert (resumed.current_epoch, resumed.global_step) == (3, 12)
    assert pgb.plan is not None
    stored: Any = torch.load(path, weights_only=True)["callbacks"]["PGBCallback"]["plan"]
    assert pgb.plan.kept_parameters == stored["summary"]["kept_parameters"]
