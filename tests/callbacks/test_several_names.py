"""Fits of modules that hold an encoder under several names, or beside one that is kept out of checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import make_loader
from helpers.tiny import classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pgb_lightning import follow_state_dict
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


class Base(L.LightningModule):
    """A classifier, with other names for parts of it in the subclasses."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build(classifier(layers=2, seed=seed).train())
        follow_state_dict(self)

    def build(self, net: nn.Module) -> None:
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch[0], labels=batch[1]).loss  # type: ignore[no-any-return]

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch[0]).logits  # type: ignore[no-any-return]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.net(input_ids=batch[0], labels=batch[1]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class Backbone(Base):
    def build(self, net: nn.Module) -> None:
        self.backbone = net.bert
        self.net = net


class SharedTowers(Base):
    def build(self, net: nn.Module) -> None:
        self.net = net
        self.query = self.document = net.bert


class FrozenLayers(Base):
    """Freezes the layers of a list, as users of discriminative learning rates do."""

    def build(self, net: nn.Module) -> None:
        self.net = net
        self.blocks = nn.ModuleList(net.bert.encoder.layer)
        self.blocks[0].requires_grad_(False)


class Teacher(Base):
    """Keeps a dense encoder of the same kind out of its checkpoints."""

    strict_loading = False

    def build(self, net: nn.Module) -> None:
        self.teacher = copy.deepcopy(net).eval().requires_grad_(False)
        self.net = net

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith("teacher.")}


def predict(trainer: MakeTrainer, module: Base, **settings: Any) -> Tensor:
    output = trainer().predict(module, make_loader(16), **settings)
    assert output is not None
    return torch.cat(output)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("kind", [Backbone, SharedTowers, FrozenLayers, Teacher])
def test_a_fit_is_saved_loaded_resumed_tested_and_exported(
    kind: type[Base], preset: str, trainer: MakeTrainer, tmp_path: Path
) -> None:
    module, names = kind(), set(kind().state_dict())
    pgb = PGBCallback(pruning_ratio=0.5, preset=preset, encoder="net" if kind is Teacher else None)
    trainer(pgb, ModelCheckpoint(tmp_path, "saved"), enable_checkpointing=True).fit(module, make_loader())
    assert is_pruned(find_encoder(module, "net"))
    assert {name for name in module.state_dict() if not name.endswith("_index")} <= names
    path, expected = tmp_path / "saved.ckpt", predict(trainer, module)
    loaded = kind.load_from_checkpoint(path, strict=kind is not Teacher)
    assert torch.equal(predict(trainer, loaded), expected)
    assert torch.equal(predict(trainer, kind(seed=1), ckpt_path=path), expected)
    trainer().test(kind(seed=1), make_loader(16), ckpt_path=path)
    resumed = kind(seed=1)
    again = PGBCallback(pruning_ratio=0.5, preset=preset, encoder="net" if kind is Teacher else None)
    fit = trainer(again, max_epochs=2)
    fit.fit(resumed, make_loader(), ckpt_path=path)
    assert (fit.current_epoch, again.plan) == (2, pgb.plan)
    assert not is_pruned(find_encoder(resumed, "teacher")) if kind is Teacher else True
    export_huggingface(module.net, tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused_unless_loading_is_not_strict(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer(PGBCallback(), ModelCheckpoint(tmp_path, "saved"), enable_checkpointing=True, max_epochs=1).fit(
        Base(), make_loader()
    )
    path = tmp_path / "saved.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "state_dict": {"other.weight": torch.zeros(1)}}, path)
    with pytest.raises(MisconfigurationException, match=r"ckpt_path.*'net\.bert\.encoder\.layer'"):
        trainer(PGBCallback()).predict(Base(), make_loader(8), ckpt_path=path)
    lenient = Base()
    lenient.strict_loading = False
    before = predict(trainer, lenient)
    assert torch.equal(predict(trainer, lenient, ckpt_path=path), before)
