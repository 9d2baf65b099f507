"""Checkpoint files: read without running code, and explained where they are no good."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgb_lightning.checkpoints import load_checkpoint


class Code:
    """Something that only unpickling arbitrary code would bring back."""


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")["epoch"] == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_explained_and_others_are_named(share: float, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2000)}}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "b.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"b.ckpt' cannot be read as a checkpoint: it is cut off.*there are a.ckpt"):
        load_checkpoint(tmp_path / "b.ckpt")


def test_what_is_no_lightning_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="it has no 'state_dict', only weight; give one that Lightning saved"):
        load_checkpoint(tmp_path / "a.ckpt")
    torch.save([1], tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="is not a Lightning checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_text("some text")
    with pytest.raises(ValueError, match="no checkpoint at all"):
        load_checkpoint(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.ckpt")


def test_an_object_in_a_checkpoint_is_not_called_damage(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"folder": Path("x")}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"more than tensors and plain values.* pass weights_only=False"):
        load_checkpoint(tmp_path / "a.ckpt")
