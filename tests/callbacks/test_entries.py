"""All ways into a Trainer: the rows of the table in docs/lightning.md, compared bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import (
    EPOCHS,
    ResumableModule,
    UninterruptedFit,
    assert_equal,
    find_pgb,
    fit,
    logits,
    make_trainer,
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


def test_a_fit_prunes_then_trains(uninterrupted: UninterruptedFit) -> None:
    assert is_pruned(find_encoder(uninterrupted.module))
    assert uninterrupted.snapshot["counters"] == (24, EPOCHS)
    assert (uninterrupted.folder / "plan.json").is_file()
    checkpoints = {f"epoch={epoch}.ckpt" for epoch in range(EPOCHS)} | {"last.ckpt"}
    assert {path.name for path in uninterrupted.folder.glob("*.ckpt")} == checkpoints


def test_the_same_fit_twice_gives_the_same_result(uninterrupted: UninterruptedFit, tmp_path: Path) -> None:
    assert_equal(snapshot(*fit(tmp_path, module=ResumableModule(follows=False))), uninterrupted.snapshot)


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("start", ["epoch=1.ckpt", "last"])
def test_resume_in_the_same_process(start: str, follows: bool, uninterrupted: UninterruptedFit, tmp_path: Path) -> None:
    folder = uninterrupted.copy(tmp_path / "run")
    module = ResumableModule(seed=5, follows=follows)
    trainer, module = fit(folder, start if start == "last" else folder / start, module)
    assert_equal(snapshot(trainer, module), uninterrupted.snapshot)


@pytest.mark.slow
def test_resume_in_a_new_process(uninterrupted: UninterruptedFit, tmp_path: Path) -> None:
    folders = [uninterrupted.copy(tmp_path / start) for start in ("epoch=1.ckpt", "last")]
    run("entries.py", *folders)
    for folder in folders:
        assert_equal(torch.load(folder / "resumed.pt", weights_only=False), uninterrupted.snapshot)


def test_resume_from_the_best_checkpoint_of_the_same_trainer(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    from_path = fit(tmp_path / "other", best.best_model_path, epochs=3)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader(), make_loader(16), ckpt_path="best")
    assert_equal(snapshot(trainer, module), snapshot(*from_path))


def test_a_new_trainer_does_not_know_the_best_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ckpt_path"):  # Lightning's error
        make_trainer(tmp_path).fit(ResumableModule(), train_loader(), make_loader(16), ckpt_path="best")


def test_a_second_fit_of_the_same_objects_continues(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    plan, before = find_pgb(trainer).plan, shapes(module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader(), make_loader(16))
    assert (trainer.global_step, trainer.current_epoch) == (18, 3)
    assert find_pgb(trainer).plan is plan
    assert shapes(module) == before


def test_two_trainers_in_one_process_are_independent(uninterrupted: UninterruptedFit, tmp_path: Path) -> None:
    trainer, other = make_trainer(tmp_path / "run"), make_trainer(tmp_path / "other", epochs=1)
    L.seed_everything(1)
    torch.rand(1)
    module = ResumableModule()
    random_state = torch.get_rng_state()
    other.fit(ResumableModule(seed=3), train_loader(), make_loader(16))
    torch.set_rng_state(random_state)
    trainer.fit(module, train_loader(), make_loader(16))
    assert find_pgb(other).plan != find_pgb(trainer).plan
    assert_equal(snapshot(trainer, module), uninterrupted.snapshot)


def test_a_module_built_in_configure_model(uninterrupted: UninterruptedFit, tmp_path: Path) -> None:
    class Late(ResumableModule):
        def __init__(self, seed: int = 0) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = ResumableModule().net

    L.seed_everything(1)
    torch.rand(1)
    module, trainer = Late(), make_trainer(tmp_path / "run")
    trainer.fit(module, train_loader(), make_loader(16))
    assert_equal(snapshot(trainer, module), uninterrupted.snapshot)
    resumed, second = Late(), make_trainer(tmp_path / "second")
    second.fit(resumed, train_loader(), make_loader(16), ckpt_path=tmp_path / "run" / "epoch=1.ckpt")
    assert_equal(snapshot(second, resumed), uninterrupted.snapshot)
    predicted = make_trainer(tmp_path).predict(Late(), make_loader(16), ckpt_path=uninterrupted.folder / "last.ckpt")
    assert torch.equal(torch.cat(predicted), uninterrupted.snapshot["logits"])  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"barebones": True}, {"max_epochs": 0}, {"max_steps": 1}])
def test_short_runs_prune_and_leave_no_files(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    settings = {"max_epochs": 1} | settings | ({} if "barebones" in settings else quiet)
    module = ResumableModule()
    L.Trainer(accelerator="cpu", devices=1, callbacks=[PGBCallback()], **settings).fit(
        module, train_loader(), make_loader(16)
    )
    assert is_pruned(find_encoder(module))
    assert list(tmp_path.iterdir()) == []


# ---- validate, test, predict ------------------------------------------------------------------------------


def expected_loss(module: OwnModule) -> float:
    module.eval()
    with torch.no_grad():
        losses = [module.net(input_ids=batch[0], labels=batch[1]).loss for batch in make_loader(16)]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("new_trainer", [True, False])
@pytest.mark.parametrize(
    ("what", "with_ckpt"), [("fitted", False), ("fitted", True), ("follows", True), ("does not follow", True)]
)
def test_evaluation(
    what: str, with_ckpt: bool, new_trainer: bool, uninterrupted: UninterruptedFit, tmp_path: Path
) -> None:
    def module() -> ResumableModule:
        return uninterrupted.module if what == "fitted" else ResumableModule(7, follows=what == "follows")

    trainer = make_trainer(tmp_path) if new_trainer else uninterrupted.trainer
    path = uninterrupted.folder / "last.ckpt" if with_ckpt else None
    predicted = trainer.predict(module(), make_loader(16), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), uninterrupted.snapshot["logits"])  # type: ignore[arg-type]
    [validated] = trainer.validate(module(), make_loader(16), verbose=False, ckpt_path=path)
    assert validated["val_loss"] == pytest.approx(expected_loss(uninterrupted.module), abs=1e-6)
    [tested] = trainer.test(module(), make_loader(16), verbose=False, ckpt_path=path)
    assert tested["test_loss"] == validated["val_loss"]


def test_evaluation_of_the_trainers_own_checkpoints(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, epochs=2)
    checkpoints = trainer.checkpoint_callback
    assert isinstance(checkpoints, ModelCheckpoint)
    for word, path in {"best": checkpoints.best_model_path, "last": tmp_path / "last.ckpt"}.items():
        predicted = trainer.predict(module, make_loader(16), ckpt_path=word)
        expected = logits(ResumableModule.load_from_checkpoint(path))
        assert torch.equal(torch.cat(predicted), expected)  # type: ignore[arg-type]


def test_evaluating_a_dense_module_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not pruned"):
        make_trainer(tmp_path).validate(ResumableModule(), make_loader(16), verbose=False)


# ---- loading ----------------------------------------------------------------------------------------------


def test_load_from_checkpoint_of_a_module_that_follows_the_state_dict(uninterrupted: UninterruptedFit) -> None:
    loaded = ResumableModule.load_from_checkpoint(uninterrupted.folder / "last.ckpt", weights_only=True)
    assert torch.equal(logits(loaded), uninterrupted.snapshot["logits"])


def test_a_module_that_does_not_follow_loads_with_the_callback_only(
    uninterrupted: UninterruptedFit, tmp_path: Path
) -> None:
    path = uninterrupted.folder / "last.ckpt"
    predicted = make_trainer(tmp_path).predict(OwnModule(), make_loader(16), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), uninterrupted.snapshot["logits"])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"net\.bert\.encoder"):
        OwnModule.load_from_checkpoint(path)


def test_weights_only_checkpoints(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    _, module = fit(tmp_path / "run", epochs=1, callbacks=(saver,))
    path = tmp_path / "weights.ckpt"
    assert "callbacks" not in torch.load(path, weights_only=True)
    assert torch.equal(logits(ResumableModule.load_from_checkpoint(path)), logits(module))
    predicted = make_trainer(tmp_path).predict(ResumableModule(), make_loader(16), ckpt_path=path)
    assert torch.equal(torch.cat(predicted), logits(module))  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="only the model"):  # Lightning's error
        make_trainer(tmp_path).fit(ResumableModule(), train_loader(), make_loader(16), ckpt_path=path)


# ---- randomness -------------------------------------------------------------------------------------------


class BatchRecorder(ResumableModule):
    """Record the rows of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Identity()
        self.rows.seen = []  # type: ignore[assignment]  # not a plain attribute, so calibration does not restore it

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.rows.seen.append(batch[0].sum(1).tolist())  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("workers", [0, 1])
def test_pruning_does_not_change_the_order_of_batches(workers: int, tmp_path: Path) -> None:
    def order(*callbacks: L.Callback) -> list[list[int]]:
        L.seed_everything(4)
        module = BatchRecorder()
        loader = make_loader(shuffle=True, num_workers=workers)
        trainer = make_trainer(tmp_path, epochs=2)
        trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]
        trainer.fit(module, loader)
        return list(module.rows.seen)  # type: ignore[arg-type]

    expected = order()
    assert len(expected) == 12
    assert order(PGBCallback(preset="balanced")) == expected
    # With fewer heads, dropout draws fewer numbers in the first epoch, which changes the order of the second.
    assert order(PGBCallback())[:6] == expected[:6]
