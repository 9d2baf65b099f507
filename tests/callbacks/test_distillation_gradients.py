"""Distillation under strategies that require a gradient of every parameter."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]
Batch = tuple[Tensor, Tensor]


class Scaled(OwnModule):
    """The logits are multiplied by a parameter of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.scale * self.net(batch[0]).logits, batch[1])


class WithPooler(OwnModule):
    """An encoder whose pooler is trained by the module's own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = self.net.bert

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).pooler_output, batch[1])


@pytest.mark.parametrize(
    ("make", "settings", "name"),
    [(Scaled, {}, "scale"), (Scaled, {"logits_weight": 0.0}, "scale"), (WithPooler, {"logits_weight": 0.0}, "pooler")],
)
def test_parameters_without_a_gradient_are_refused_where_the_strategy_needs_all(
    make: Callable[[], OwnModule], settings: dict[str, float], name: str, trainer: MakeTrainer
) -> None:
    module = make()
    with pytest.raises(MisconfigurationException, match=rf"task_weight=0.*{name}.*find_unused_parameters"):
        trainer(PGBCallback(0.5), Distillation(**settings), strategy="ddp").fit(module, make_loader())
    assert not is_pruned(find_encoder(module))
    trainer(PGBCallback(0.5), Distillation(**settings), strategy="ddp_find_unused_parameters_true").fit(
        make(), make_loader()
    )
    trainer(PGBCallback(0.5), Distillation(task_weight=0.5, **settings), strategy="ddp").fit(make(), make_loader())
    frozen = make()
    for path, parameter in frozen.named_parameters():
        if name in path or (settings and ("classifier" in path or "pooler" in path)):
            parameter.requires_grad_(False)
    trainer(PGBCallback(0.5), Distillation(**settings), strategy="ddp").fit(frozen, make_loader())
