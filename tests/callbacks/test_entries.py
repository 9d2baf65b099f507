"""Every way into a Trainer: the rows of the table in docs/lightning.md, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import (
    EPOCHS,
    Entering,
    Whole,
    assert_equal,
    fit,
    logits,
    make_trainer,
    pgb_of,
    snapshot,
    train_loader,
)
from helpers.own import OwnModule, make_loader, shapes
from helpers.processes import run
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- fit --------------------------------------------------------------------------------------------------


def test_a_fresh_fit_prunes_then_trains(whole: Whole) -> None:
    assert is_pruned(find_encoder(whole.module))
    assert whole.snapshot["counters"] == (24, EPOCHS)
    assert (whole.folder / "plan.json").is_file()
    assert {path.name for path in whole.folder.glob("*.ckpt")} == {
        *(f"epoch={epoch}.ckpt" for epoch in range(EPOCHS)),
        "last.ckpt",
    }


@pytest.mark.parametrize("line", [True, False])
def test_the_same_fit_twice_is_the_same_fit(line: bool, whole: Whole, tmp_path: Path) -> None:
    assert_equal(snapshot(*fit(tmp_path, module=Entering(line=line))), whole.snapshot)


@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("start", ["epoch=1.ckpt", "last"])
def test_fit_in_two_pieces_in_one_process(start: str, line: bool, whole: Whole, tmp_path: Path) -> None:
    folder = whole.copy(tmp_path / "run")
    trainer, module = fit(folder, start if start == "last" else folder / start, Entering(seed=5, line=line))
    assert_equal(snapshot(trainer, module), whole.snapshot)


@pytest.mark.parametrize("start", ["epoch=1.ckpt", "last"])
def test_fit_in_two_pieces_in_two_processes(start: str, whole: Whole, tmp_path: Path) -> None:
    folder = whole.copy(tmp_path / "run")
    run("entries.py", start, folder)
    assert_equal(torch.load(folder / f"new-{start}-0.pt", weights_only=False), whole.snapshot)


def test_fit_from_the_best_checkpoint_of_the_same_trainer(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    from_path = fit(tmp_path / "other", best.best_model_path, epochs=3)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path="best")
    assert_equal(snapshot(trainer, module), snapshot(*from_path))


def test_best_is_unknown_to_a_new_trainer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ModelCheckpoint` is not configured to save the best model|found no path"):
        make_trainer(tmp_path).fit(Entering(), train_loader(), make_loader(16), ckpt_path="best")


def test_a_second_fit_of_the_same_objects_goes_on(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    plan, before = pgb_of(trainer).plan, shapes(module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader(), make_loader(16))
    assert (trainer.global_step, trainer.current_epoch) == (18, 3)
    assert pgb_of(trainer).plan is plan
    assert shapes(module) == before


def test_two_trainers_in_one_process_do_not_meet(whole: Whole, tmp_path: Path) -> None:
    trainer, other = make_trainer(tmp_path / "run"), make_trainer(tmp_path / "other", epochs=1)
    L.seed_everything(1)
    torch.rand(1)
    module = Entering()
    random_state = torch.get_rng_state()
    other.fit(Entering(seed=3), train_loader(), make_loader(16))
    torch.set_rng_state(random_state)
    trainer.fit(module, train_loader(), make_loader(16))
    assert pgb_of(other).plan != pgb_of(trainer).plan
    assert_equal(snapshot(trainer, module), whole.snapshot)


def test_a_module_built_in_configure_model_enters_likewise(whole: Whole, tmp_path: Path) -> None:
    class Late(Entering):
        def __init__(self, seed: int = 0) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = Entering().net

    L.seed_everything(1)
    torch.rand(1)
    module, trainer = Late(), make_trainer(tmp_path / "run")
    trainer.fit(module, train_loader(), make_loader(16))
    assert_equal(snapshot(trainer, module), whole.snapshot)
    resumed, second = Late(), make_trainer(tmp_path / "second")
    second.fit(resumed, train_loader(), make_loader(16), ckpt_path=tmp_path / "run" / "epoch=1.ckpt")
    assert_equal(snapshot(second, resumed), whole.snapshot)
    predicted = make_trainer(tmp_path).predict(Late(), make_loader(16), ckpt_path=whole.folder / "last.ckpt")
    assert torch.equal(torch.cat(predicted), whole.snapshot["logits"])  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"barebones": True}, {"max_epochs": 0}, {"max_steps": 1}])
def test_short_runs_prune_too(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, pgb = Entering(), PGBCallback()
    quiet = {} if "barebones" in settings else {"logger": False, "enable_progress_bar": False}
    quiet = {**quiet, "enable_model_summary": False, "enable_checkpointing": False} if quiet else quiet
    L.Trainer(accelerator="cpu", devices=1, callbacks=[pgb], **{"max_epochs": 1, **settings, **quiet}).fit(
        module, train_loader(), make_loader(16)
    )
    assert is_pruned(find_encoder(module))
    assert list(tmp_path.iterdir()) == []  # a run that keeps nothing leaves no plan either


# ---- validate, test, predict ------------------------------------------------------------------------------


def expected_loss(module: OwnModule) -> float:
    module.eval()
    with torch.no_grad():
        losses = [module.net(input_ids=batch[0], labels=batch[1]).loss for batch in make_loader(16)]
    return float(torch.stack(losses).mean())


Enter = Callable[[L.Trainer, Whole], "tuple[Entering, dict[str, Any]]"]
#: The module that is given, and further arguments.
EVALUATIONS: dict[str, Enter] = {
    "after fit, same module": lambda _, whole: (whole.module, {}),
    "fresh module, path": lambda _, whole: (Entering(seed=7), {"ckpt_path": whole.folder / "last.ckpt"}),
    "without the line": lambda _, whole: (Entering(7, line=False), {"ckpt_path": whole.folder / "last.ckpt"}),
    "pruned module, path": lambda _, whole: (whole.module, {"ckpt_path": str(whole.folder / "last.ckpt")}),
}


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize("fresh_trainer", [True, False])
def test_evaluation(name: str, fresh_trainer: bool, whole: Whole, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path) if fresh_trainer else whole.trainer
    module, arguments = EVALUATIONS[name](trainer, whole)
    predicted = trainer.predict(module, make_loader(16), **arguments)
    assert torch.equal(torch.cat(predicted), whole.snapshot["logits"])  # type: ignore[arg-type]
    module, arguments = EVALUATIONS[name](trainer, whole)
    [validated] = trainer.validate(module, make_loader(16), verbose=False, **arguments)
    assert validated["val_loss"] == pytest.approx(expected_loss(whole.module), abs=1e-6)
    module, arguments = EVALUATIONS[name](trainer, whole)
    [tested] = trainer.test(module, make_loader(16), verbose=False, **arguments)
    assert tested["test_loss"] == validated["val_loss"]


@pytest.mark.parametrize("word", ["best", "last"])
def test_evaluation_of_the_trainers_own_checkpoints(word: str, tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    checkpoints = trainer.checkpoint_callback
    assert isinstance(checkpoints, ModelCheckpoint)
    path = checkpoints.best_model_path if word == "best" else tmp_path / "last.ckpt"
    predicted = trainer.predict(module, make_loader(16), ckpt_path=word)
    assert torch.equal(torch.cat(predicted), logits(Entering.load_from_checkpoint(path)))  # type: ignore[arg-type]


def test_evaluating_a_dense_module_is_mentioned(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="PGB: the encoder in this module is not pruned; give the ckpt_path"):
        make_trainer(tmp_path).validate(Entering(), make_loader(16), verbose=False)


# ---- loading ----------------------------------------------------------------------------------------------


def test_load_from_checkpoint_of_a_module_with_the_line(whole: Whole) -> None:
    loaded = Entering.load_from_checkpoint(whole.folder / "last.ckpt", weights_only=True)
    assert torch.equal(logits(loaded), whole.snapshot["logits"])


def test_a_module_without_the_line_is_loaded_by_the_callback_and_not_without(whole: Whole, tmp_path: Path) -> None:
    class Plain(OwnModule):
        configure_optimizers = Entering.configure_optimizers  # type: ignore[assignment]

    path = whole.folder / "last.ckpt"
    predicted = make_trainer(tmp_path).predict(Plain(), make_loader(16), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), whole.snapshot["logits"])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"size mismatch for net.bert.encoder"):
        Plain.load_from_checkpoint(path)


def test_weights_only_checkpoints(whole: Whole, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    _trainer, _ = fit(tmp_path / "run", callbacks=[keep])
    path = tmp_path / "weights.ckpt"
    assert "callbacks" not in torch.load(path, weights_only=True)
    assert torch.equal(logits(Entering.load_from_checkpoint(path)), whole.snapshot["logits"])
    predicted = make_trainer(tmp_path).predict(Entering(), make_loader(16), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), whole.snapshot["logits"])  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="checkpoint contains only the model"):  # Lightning's own words
        make_trainer(tmp_path).fit(Entering(), train_loader(), make_loader(16), ckpt_path=path)


def test_a_checkpoint_holds_no_code(whole: Whole) -> None:
    assert set(torch.load(whole.folder / "last.ckpt", weights_only=True)["callbacks"]) >= {"PGBCallback"}


# ---- randomness -------------------------------------------------------------------------------------------


class Orders(Entering):
    """Write down which rows come in training."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Identity()
        self.rows.seen = []  # type: ignore[assignment]  # out of reach of what calibration puts back

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.rows.seen.append(batch[0].sum(1).tolist())  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_the_order_they_would_have_come_in_without_pruning(workers: int, tmp_path: Path) -> None:
    def order(*callbacks: L.Callback) -> list[list[int]]:
        L.seed_everything(4)
        module = Orders()
        loader = make_loader(shuffle=True, num_workers=workers)
        trainer = make_trainer(tmp_path, epochs=2)
        trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]
        trainer.fit(module, loader, make_loader(16))
        return list(module.rows.seen)  # type: ignore[arg-type]

    without = order()
    assert len(without) == 12
    assert order(PGBCallback(preset="balanced")) == without
    assert order(PGBCallback())[:6] == without[:6]  # then dropout, on fewer heads, has drawn fewer numbers
