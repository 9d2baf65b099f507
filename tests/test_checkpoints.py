"""Checkpoint files are read without running code, and damaged or unsuitable files are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pgb_lightning.checkpoints import get_monitored_scores, load_checkpoint


class Code:
    """An object that cannot be loaded with ``weights_only=True``."""


def test_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")["epoch"] == 3


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_reported_with_other_checkpoints(fraction: float, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2000)}}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "b.ckpt").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"b\.ckpt' .*truncated.* a\.ckpt"):
        load_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(2)}, "'state_dict'.* weight"),
        ([1], "'state_dict'.* list"),
        ({"state_dict": {}, "code": Code()}, "weights_only=False"),
        ({"state_dict": {}, "hyper_parameters": {"folder": Path("x")}}, r"str\(path\).*weights_only=False"),
    ],
)
def test_unsuitable_content_is_rejected(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt' .*{message}"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_other_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("some text")
    with pytest.raises(ValueError, match=r"a\.ckpt' .*not a checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing.ckpt")


def kept(monitor: str, file: Path, score: float) -> dict[str, Any]:
    return {"monitor": monitor, "best_k_models": {str(file): torch.tensor(score)}}


def test_scores_are_those_of_the_file_itself(tmp_path: Path) -> None:
    """Two callbacks may keep a file of the same name, of different epochs."""
    one, other = tmp_path / "one" / "best.ckpt", tmp_path / "other" / "best.ckpt"
    states = {"a": kept("val_f1", one, 0.5), "b": kept("val_accuracy", other, 0.75), "c": kept("val_mcc", one, 0.25)}
    assert get_monitored_scores(states, one) == {"val_f1": 0.5, "val_mcc": 0.25}
    assert get_monitored_scores(states, other) == {"val_accuracy": 0.75}
    assert get_monitored_scores(states, tmp_path / "moved" / "best.ckpt") == {}
    assert get_monitored_scores({"a": states["a"]}, tmp_path / "moved" / "best.ckpt") == {"val_f1": 0.5}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_left_out(score: float, tmp_path: Path) -> None:
    assert get_monitored_scores({"a": kept("val_loss", tmp_path / "a.ckpt", score)}, tmp_path / "a.ckpt") == {}
