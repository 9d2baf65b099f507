"""The module's own loss, computed without side effects."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from helpers.tiny import batches
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import BatchEncoding

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.training_loss import without_side_effects


class StateRecorder(L.Callback):
    """Record the state of the module and the Trainer between pruning and training."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, OwnModule)
        self.found = {
            "steps": pl_module.steps,
            "losses": list(pl_module.losses),
            "updates": pl_module.accuracy.update_count,
            "training": all(module.training for module in pl_module.modules()),
            "global_step": trainer.global_step,
            "metrics": dict(trainer.logged_metrics),
            "gradients": [p.grad for p in pl_module.parameters() if p.grad is not None],
            "optimizer": [dict(optimizer.state) for optimizer in trainer.optimizers],
            "log": pl_module.log.__func__ is L.LightningModule.log,  # type: ignore[attr-defined]
        }


def test_calibration_has_no_side_effects(trainer: Callable[..., L.Trainer]) -> None:
    recorder = StateRecorder()
    module = OwnModule()
    losses = module.losses
    trainer(PGBCallback(), recorder).fit(module, make_loader())
    assert recorder.found == {
        "steps": 0,
        "losses": [],
        "updates": 0,
        "training": True,
        "global_step": 0,
        "metrics": {},
        "gradients": [],
        "optimizer": [{}],
        "log": True,
    }
    assert module.losses is losses
    assert module.steps == 6  # those of training


@pytest.mark.parametrize(("form", "returned"), [("tuple", "tensor"), ("dict", "dict"), ("BatchEncoding", "tensor")])
def test_any_form_of_batch_and_loss(trainer: Callable[..., L.Trainer], form: str, returned: str) -> None:
    class Module(OwnModule):
        def training_step(self, batch: Any) -> Any:  # type: ignore[override]  # without an index
            assert isinstance(batch, {"tuple": list, "dict": dict, "BatchEncoding": BatchEncoding}[form])
            loss = self.net(**batch).loss if form != "tuple" else self.loss(batch)  # type: ignore[arg-type]
            return loss if returned == "tensor" else {"loss": loss, "extra": 1}

    def collate(rows: list[dict[str, Tensor]]) -> Any:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return BatchEncoding(batch) if form == "BatchEncoding" else batch

    [batch] = batches(1, size=16)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(16)]
    loader = make_loader() if form == "tuple" else DataLoader(rows, batch_size=8, collate_fn=collate)  # type: ignore[arg-type]
    pgb = PGBCallback()
    trainer(pgb).fit(Module(), loader)
    assert pgb.plan is not None
    assert pgb.plan.pruning_ratio == pytest.approx(0.5, abs=0.01)


def test_a_calibration_step_replaces_the_training_step(trainer: Callable[..., L.Trainer]) -> None:
    class Manual(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.manual_backward(self.loss(batch))
            optimizer.step()  # type: ignore[union-attr]

    with pytest.raises(MisconfigurationException, match=r"automatic_optimization=False.*calibration_step"):
        trainer(PGBCallback()).fit(Manual(), make_loader())

    class WithStep(Manual):
        def calibration_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.loss(batch)

    pgb = PGBCallback()
    trainer(pgb).fit(WithStep(), make_loader())
    assert pgb.plan is not None


def test_a_step_that_needs_the_training_loop_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    class NeedsOptimizer(OwnModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            return self.loss(batch)

    with pytest.raises(MisconfigurationException, match=r"calibration batch 0 with AttributeError.*calibration_step"):
        trainer(PGBCallback()).fit(NeedsOptimizer(), make_loader())


def test_what_a_step_stores_is_restored(trainer: Callable[..., L.Trainer], tmp_path: Path) -> None:
    class StoringModule(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.average: Tensor | None = None
            self.total = torch.zeros(())
            self.recent: deque[int] = deque(maxlen=9)
            self.history: dict[str, list[int]] = {"train": []}
            self.register_buffer("count", torch.zeros(()))
            self.hidden = [MulticlassAccuracy(2)]

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            if not self.training:
                self.average = torch.ones(1)
                self.total += 1
                self.recent.append(1)
                self.history["train"].append(1)
                self.count += 1
                self.added_in_the_step = True
                self.hidden[0].update(torch.tensor([1]), torch.tensor([1]))
                assert self.logger is not None
                self.logger.log_metrics({"direct": 1.0}, step=0)
            return self.loss(batch)

    module, logger = StoringModule(), CSVLogger(tmp_path)
    trainer(PGBCallback(), logger=logger).fit(module, make_loader())
    assert module.average is None
    assert (float(module.total), len(module.recent), module.history, float(module.count)) == (0, 0, {"train": []}, 0)
    assert not hasattr(module, "added_in_the_step")
    assert module.hidden[0].update_count == 0
    assert module.logger is logger
    assert "direct" not in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_a_step_without_a_loss_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    class NoLoss(OwnModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
            return {"accuracy": self.loss(batch)}

    with pytest.raises(MisconfigurationException, match=r"NoLoss\.training_step.*dict.*calibration batch 0"):
        trainer(PGBCallback()).fit(NoLoss(), make_loader())


def test_the_batch_hooks_of_the_module_are_called(trainer: Callable[..., L.Trainer]) -> None:
    class Hooked(OwnModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (batch[0], 1 - batch[1])

    plans = []
    for module in (Hooked(), OwnModule()):
        pgb = PGBCallback()
        trainer(pgb).fit(module, make_loader())
        plans.append(pgb.plan)
    assert plans[0] != plans[1]


def test_what_a_step_changes_is_restored_even_if_it_fails() -> None:
    module = OwnModule()
    module.accuracy.update(torch.tensor([1]), torch.tensor([1]))
    module.losses.append(torch.ones(1))
    kept = list(module.losses)

    def step_and_fail() -> None:
        with without_side_effects(module):
            assert not module.training
            module.log("train_loss", torch.ones(1))
            module.steps += 1
            module.losses.clear()
            module.accuracy.update(torch.tensor([0]), torch.tensor([1]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        step_and_fail()
    assert (module.steps, module.losses, module.training) == (0, kept, True)
    assert module.accuracy.compute() == 1.0
    assert module.accuracy.update_count == 1
    assert module.log.__func__ is L.LightningModule.log  # type: ignore[attr-defined]


def test_attributes_that_contain_themselves_are_restored() -> None:
    module = OwnModule()
    module.losses.append(module.losses)  # type: ignore[arg-type]
    with without_side_effects(module):
        module.losses.clear()
    assert module.losses[0] is module.losses


class Bank:
    """A plain object, such as a queue of negatives."""

    def __init__(self) -> None:
        self.count = 0


class Stateful(OwnModule):
    """A step that changes what a step of self-supervised learning changes."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = torch.nn.Linear(2, 2).requires_grad_(False)
        self.outside = [torch.nn.Linear(2, 2)]  # not a child module
        self.bank = Bank()
        self.register_buffer("queue", torch.zeros(2, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        if not self.training:
            self.teacher.weight.mul_(0.9)
            self.outside[0].weight.data = torch.ones(2, 2)
            self.bank.count += 1
            self.queue = torch.cat([self.queue[1:], torch.ones(1, 2)])
            self.outside[0](torch.ones(2)).sum().backward()
            self.net.classifier.register_forward_hook(print)
            self.trainer.should_stop = True
            self.teacher.train()
            batch[0].clamp_(max=5)
            assert self.trainer.datamodule.seen  # type: ignore[attr-defined]
        return super().training_step(batch, batch_idx)


class HookedData(L.LightningDataModule):
    """Hooks and a loader with state."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.loaders, self.random = 0, 0, random.Random(1)
        self.rows = make_rows()

    def train_dataloader(self) -> DataLoader[Any]:
        self.loaders += 1
        return DataLoader(self.rows, batch_size=8, collate_fn=self.collate)  # type: ignore[arg-type]

    def collate(self, rows: list[Any]) -> Any:
        self.random.shuffle(rows)
        return [torch.stack(part) for part in zip(*rows, strict=True)]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.seen += 1
        return batch


def test_momentum_encoders_queues_and_data_modules_are_as_before(trainer: Callable[..., L.Trainer]) -> None:
    module, data = Stateful(), HookedData()
    rows = [row.clone() for row, _ in data.rows]
    weights = [module.teacher.weight.clone(), module.outside[0].weight.clone()]
    found = {}

    class Look(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found.update(seen=data.seen, loaders=data.loaders, stop=trainer.should_stop, draw=data.random.random())

    trainer(PGBCallback(), Look(), max_epochs=0).fit(module, datamodule=data)
    assert found == {"seen": 0, "loaders": 0, "stop": False, "draw": random.Random(1).random()}
    assert torch.equal(module.teacher.weight, weights[0])
    assert torch.equal(module.outside[0].weight, weights[1])
    assert module.outside[0].weight.grad is None
    assert (module.bank.count, module.queue.sum(), len(module.net.classifier._forward_hooks)) == (0, 0, 0)
    assert all(torch.equal(row, before) for (row, _), before in zip(data.rows, rows, strict=True))


def test_a_stream_that_a_step_reads_is_named(trainer: Callable[..., L.Trainer]) -> None:
    class Unlabeled(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.unlabeled = iter(make_loader(800))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            return self.loss(batch) + self.loss(next(self.unlabeled))

    with pytest.warns(UserWarning, match=r"Unlabeled\.unlabeled.*calibration_step"):
        trainer(PGBCallback()).fit(Unlabeled(), make_loader())


def test_a_failed_calibration_leaves_no_trace(trainer: Callable[..., L.Trainer]) -> None:
    class Fails(OwnModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            self.steps += 1
            torch.rand(1), random.random(), np.random.rand()
            if self.steps == 3:
                raise RuntimeError("stop")
            return self.loss(batch)

    module = Fails()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    with pytest.raises(RuntimeError, match="stop"):
        trainer(PGBCallback()).fit(module, make_loader(shuffle=True))
    assert (module.steps, module.training) == (0, True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]


def test_a_step_that_reads_its_batches_itself_needs_a_calibration_step(trainer: Callable[..., L.Trainer]) -> None:
    class Reads(OwnModule):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            batch, _, _ = next(dataloader_iter)
            return self.loss(batch)

    with pytest.raises(MisconfigurationException, match=r"dataloader_iter.*calibration_step"):
        trainer(PGBCallback()).fit(Reads(), make_loader())
