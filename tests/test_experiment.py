"""The seeded experiment: real scores in files, resumed where it stopped, and summed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgb_lightning import experiment
from pgb_lightning.modules import TextClassification


@pytest.fixture(autouse=True)
def threads() -> object:
    """The experiment sets the number of threads: put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_scores_are_measured_kept_and_tabulated(
    tmp_path: Path,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> None:
        experiment.run(
            *("sst2", str(tmp_path), str(glue_folder("sst2", train=64, validation=40)), str(tiny_model_folder("bert"))),
            seeds=(0, 1),
            ratios=(0.5,),
            presets=("paper", "default"),
            max_length=32,
        )

    run()
    shown = capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("seed*/*.json"))]
    assert len(results) == 2 * 3
    pruned = [result for result in results if "preset" in result]
    assert all(abs(result["removed"] - 0.5) <= 0.01 for result in pruned)
    assert all(0 <= result[key] <= 1 for result in pruned for key in ("before", "after"))
    for result in pruned:
        name = tmp_path / f"seed{result['seed']}" / f"{result['preset']}-0.5.ckpt"
        module = TextClassification.load_from_checkpoint(name)
        assert any(parameter.dim() == 3 for parameter in module.parameters())
    assert "over 2 seeds" in shown
    mean = 50 * sum(result["after"] for result in pruned if result["preset"] == "paper")
    assert f"{mean:.1f} ±" in shown

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("everything is measured already")

    monkeypatch.setattr(experiment, "train", never)
    run()
    assert shown.endswith(capsys.readouterr().out)
