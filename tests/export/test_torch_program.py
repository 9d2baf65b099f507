"""Programs of ``torch.export``: equal outputs for any batch, without this package and transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import classifier, pruned

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_torch
from pgb_lightning.export.torch_program import PROGRAM_FILE
from pgb_lightning.runtimes import requirements
from pgb_lightning.runtimes.requirements import OLDEST_TORCH

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH, reason="PyTorch is too old"
)

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pgb_lightning", "transformers", "lightning"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch

model = torch.export.load(sys.argv[1]).module()
for inputs, expected in torch.load(sys.argv[2]):
    torch.testing.assert_close(model(*inputs)[0], expected, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_the_program_needs_pytorch_only(tmp_path: Path) -> None:
    model = pruned("bert", layers=1).eval()
    folder = export_torch(model, tmp_path / "out")
    pairs = []
    for size, length in ((1, 4), (3, 9)):
        ids = torch.randint(5, 59, (size, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        with torch.no_grad():
            pairs.append(((ids, mask, torch.zeros_like(ids)), model(ids, attention_mask=mask).logits))
    torch.save(pairs, tmp_path / "pairs.pt")
    command = [sys.executable, "-c", PROGRAM, str(folder / PROGRAM_FILE), str(tmp_path / "pairs.pt")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.stdout.strip() == "equal", found.stderr
    card = (folder / "README.md").read_text()
    assert 'torch.export.load("model.pt2")' in card
    assert 'model(texts["input_ids"], texts["attention_mask"], texts["token_type_ids"])' in card
    assert (folder / "config.json").is_file()


def test_what_cannot_be_traced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a size depends on the data\nand more")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ValueError, match=r"BertForSequenceClassification .*a size depends on the data"):
        export_torch(classifier(layers=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_old_pytorch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "OLDEST_TORCH", (99, 0))
    with pytest.raises(ModuleNotFoundError, match=r"torch 99\.0"):
        export_torch(classifier(layers=1), tmp_path / "out")


def test_the_given_model_is_not_changed(tmp_path: Path) -> None:
    model = pruned("bert", layers=1).train()
    before = [type(module) for module in model.modules()]
    export_torch(model, tmp_path / "out")
    assert model.training
    assert [type(module) for module in model.modules()] == before
    assert find_encoder(model).layers
