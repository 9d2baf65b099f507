"""AdamW of the modules: fused where it can be, with clipping, resumable, and with its own rate for embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.families import TINY, tiny_batches, tiny_model
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from transformers import get_linear_schedule_with_warmup

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.optimizer import find_embeddings, make_adamw, parameter_groups
from pgb_lightning.surgery.checks import is_pruned

MakeData = Callable[..., GLUEDataModule]


def fit(module: L.LightningModule, data: GLUEDataModule, **settings: Any) -> L.Trainer:
    trainer = quiet_trainer(**{"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0, **settings})
    trainer.fit(module, data)
    return trainer


# ---- fused ------------------------------------------------------------------------------------------------------


def test_adamw_is_fused_on_a_cpu_and_computes_the_same() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(8, 4)
    weights = []
    for fused in (True, False):
        copy = nn.Linear(4, 4)
        copy.load_state_dict(layer.state_dict())
        groups = parameter_groups(copy, 0.1)
        made = make_adamw(groups, 0.1, quiet_trainer()) if fused else torch.optim.AdamW(groups, lr=0.1, fused=False)
        for _ in range(3):
            made.zero_grad()
            copy(x).square().sum().backward()
            made.step()
        weights.append(copy.weight.detach())
        assert bool(made.defaults["fused"]) is fused
    torch.testing.assert_close(*weights)


def test_a_gradient_scaler_or_another_device_gets_the_default_implementation() -> None:
    """Lightning does not clip the gradients of a fused optimizer that a scaler steps."""
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    scaled: Any = SimpleNamespace(precision_plugin=plugin)
    optimizer = make_adamw(parameter_groups(nn.Linear(2, 2), 0.0), 1e-3, scaled)
    assert not optimizer.defaults["fused"]
    plugin.clip_gradients(optimizer, 1.0)
    other = make_adamw(parameter_groups(nn.Linear(2, 2, device="meta"), 0.0), 1e-3, quiet_trainer())
    assert not other.defaults["fused"]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_mixed_precision(algorithm: str, tiny: str, data: MakeData) -> None:
    class Sizes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            assert trainer.optimizers[0].defaults["fused"]
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if algorithm == "norm":
                sizes.append(float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()))
            else:
                sizes.append(max(float(gradient.abs().max()) for gradient in gradients))

    sizes: list[float] = []
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    fit(TextClassification(tiny, task="sst2"), data(), precision="bf16-mixed", callbacks=[Sizes()], **clipping)
    assert sizes == pytest.approx([1e-3] * 3, rel=1e-2)


def test_a_checkpoint_of_an_optimizer_that_is_not_fused_resumes(tiny: str, data: MakeData, tmp_path: Path) -> None:
    class Unfused(TextClassification):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(parameter_groups(self, self.weight_decay), lr=self.learning_rate)
            steps = self.trainer.estimated_stepping_batches
            schedule = get_linear_schedule_with_warmup(optimizer, int(self.warmup_ratio * steps), int(steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    weights = []
    for number, second in enumerate((Unfused, TextClassification)):
        saver = ModelCheckpoint(tmp_path / str(number), filename="first", save_top_k=-1)
        settings: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 0}
        torch.manual_seed(0)
        first = quiet_trainer(callbacks=[saver], enable_checkpointing=True, max_steps=2, **settings)
        first.fit(Unfused(tiny, task="sst2"), data())
        path = tmp_path / str(number) / "first.ckpt"
        torch.manual_seed(1)
        module = second(tiny, task="sst2")
        quiet_trainer(**settings).fit(module, data(), ckpt_path=path)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(*weights)


# ---- embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TINY)
def test_the_embeddings_of_every_family_are_found(model_type: str) -> None:
    """All that depends on token ids alone comes from them; no layer and no head is among them."""
    model = tiny_model(model_type)
    embeddings = find_embeddings(model)
    own = {id(parameter) for parameter in embeddings.parameters()}
    assert id(model.get_input_embeddings().weight) in own
    stack = find_encoder(model).stack
    assert not any(id(parameter) in own for parameter in stack.parameters())
    embeddings.requires_grad_(False)
    [batch] = tiny_batches(1)
    model(**batch).loss.backward()
    reached = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and has_grad(module)]
    assert all(module_is_in(stack, model.get_submodule(name)) or "rel" in name for name in reached)


def has_grad(module: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())


def module_is_in(holder: nn.Module, module: nn.Module) -> bool:
    return any(module is each for each in holder.modules())


class Rates(L.Callback):
    """Record the learning rate of each parameter at the peak, and which parameters have gradients."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.with_gradients: set[str] = set()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in rates:
                self.rates[name] = max(rates[id(parameter)], self.rates.get(name, 0.0))
            if parameter.grad is not None:
                self.with_gradients.add(name)


@pytest.mark.parametrize("rate", [None, 1e-5, 0.0])
def test_embeddings_have_their_own_rate_or_none(rate: float | None, tiny: str, data: MakeData) -> None:
    module = TextClassification(tiny, task="sst2", learning_rate=1e-3, embedding_learning_rate=rate, warmup_ratio=0.0)
    before = module.model.bert.embeddings.word_embeddings.weight.detach().clone()
    rates = Rates()
    fit(module, data(), callbacks=[rates, PGBCallback(0.5)])
    is_embedding = {name: ".embeddings." in name for name, _ in module.named_parameters()}
    assert is_pruned(find_encoder(module))
    assert {rates.rates[name] for name, inside in is_embedding.items() if not inside} == {1e-3}
    inside = {rates.rates.get(name) for name, inside in is_embedding.items() if inside}
    assert inside == {1e-3 if rate is None else rate or None}
    embeddings = {name for name, inside in is_embedding.items() if inside}
    assert bool(rates.with_gradients & embeddings) is (rate != 0)
    assert torch.equal(module.model.bert.embeddings.word_embeddings.weight, before) is (rate == 0)


def test_frozen_embeddings_do_not_change_the_pruning(tiny: str, data: MakeData) -> None:
    plans = []
    for rate in (None, 0.0):
        torch.manual_seed(0)
        pgb = PGBCallback(0.5)
        fit(TextClassification(tiny, task="sst2", embedding_learning_rate=rate), data(), callbacks=[pgb])
        plans.append(pgb.plan)
    assert plans[0] == plans[1]


def test_a_fit_with_frozen_embeddings_resumes(tiny: str, data: MakeData, tmp_path: Path) -> None:
    module = TextClassification(tiny, task="sst2", embedding_learning_rate=0.0)
    fit(module, data(), callbacks=[ModelCheckpoint(tmp_path, filename="end")], enable_checkpointing=True)
    loaded = TextClassification.load_from_checkpoint(tmp_path / "end.ckpt")
    assert loaded.embedding_learning_rate == 0.0
    before = loaded.model.bert.embeddings.word_embeddings.weight.detach().clone()
    quiet_trainer(max_epochs=2, limit_train_batches=2).fit(loaded, data(), ckpt_path=tmp_path / "end.ckpt")
    assert torch.equal(loaded.model.bert.embeddings.word_embeddings.weight, before)


def test_a_negative_rate_is_refused(tiny: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"embedding_learning_rate=-1\.0"):
        TextClassification(tiny, embedding_learning_rate=-1.0)
