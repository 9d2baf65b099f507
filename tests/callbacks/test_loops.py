"""Many fits in one process, as hyperparameter searches run them: trials that fail, stop early or share objects."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import weakref
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.entries import ResumableModule, assert_equal, train_loader
from helpers.fakes import quiet_trainer
from helpers.own import make_loader
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "signal_handlers")]


class TrialPruned(Exception):
    """What a search raises in a callback to end a trial that is not promising."""


class Failing(ResumableModule):
    """Fail in the third calibration batch, unless told otherwise, after drawing from all generators."""

    error: BaseException | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if self.error is not None and not self.training and batch_idx == 2:
            random.random(), np.random.rand(), torch.rand(1)
            raise self.error
        output = super().training_step(batch, batch_idx)
        self.losses.clear()  # Tensors with a graph cannot be copied.
        return output


class Prune(L.Callback):
    """End a trial at one of Lightning's hooks."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.end)

    def end(self, *_: Any, **__: Any) -> None:
        raise TrialPruned


def run(trainer: L.Trainer, module: L.LightningModule) -> L.LightningModule:
    """Fit from the same random state."""
    L.seed_everything(3)
    trainer.fit(module, train_loader(), make_loader(16))
    return module


def random_states() -> list[Any]:
    return [random.getstate(), [*map(str, np.random.get_state())], torch.get_rng_state()]


def describe(module: nn.Module) -> dict[str, Any]:
    """Return what a failed calibration must leave as it was."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_load_state_dict_pre_hooks")
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": [child.training for child in module.modules()],
        "hooks": [len(vars(child)[name]) for child in module.modules() for name in hooks],
        "gradients": [(p.requires_grad, p.grad is None) for p in module.parameters()],
    }


def strategy_is_restored(trainer: L.Trainer) -> bool:
    return not vars(trainer.strategy).keys() & {"setup", "load_checkpoint", "load_model_state_dict", "_pgb_hook"}


@pytest.mark.parametrize("shared", [True, False])
def test_trials_do_not_affect_each_other(shared: bool, trainer: MakeTrainer) -> None:
    base = ResumableModule()
    before = describe(base)
    settings: list[dict[str, Any]] = [{"pruning_ratio": 0.3}, {"preset": "paper"}, {"pruning_ratio": 0.3}]
    callbacks = [PGBCallback(**each) for each in settings]
    if shared:
        callbacks = [callbacks[0]] * 3
    results = [run(trainer(callback), copy.deepcopy(base)) for callback in callbacks]
    assert_equal(describe(results[0])["weights"], describe(results[2])["weights"])
    assert_equal(describe(base), before)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Return the weights after a trial that nothing disturbs."""
    weights: dict[str, Tensor] = describe(run(quiet_trainer(callbacks=[PGBCallback()]), ResumableModule()))["weights"]
    return weights


@pytest.mark.parametrize(
    ("hook", "first"),
    [
        ("setup", True),
        ("setup", False),
        ("on_fit_start", True),
        ("on_train_batch_end", False),
        ("on_validation_end", True),
    ],
)
def test_a_pruned_trial_leaves_nothing_behind(
    hook: str, first: bool, expected: dict[str, Tensor], trainer: MakeTrainer
) -> None:
    pgb, module = PGBCallback(), ResumableModule()
    callbacks = [pgb, Prune(hook)]
    failed = trainer(*(callbacks if first else callbacks[::-1]))
    with pytest.raises(TrialPruned):
        run(failed, module)
    assert strategy_is_restored(failed)
    assert is_pruned(find_encoder(module)) == (hook != "setup")
    assert_equal(describe(run(trainer(pgb), ResumableModule()))["weights"], expected)
    failed.callbacks = [PGBCallback()]  # type: ignore[attr-defined]
    failed.fit_loop.max_epochs = failed.current_epoch + 1
    assert is_pruned(find_encoder(run(failed, ResumableModule())))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrialPruned(), MemoryError("1 GiB"), TypeError("NoneType")])
def test_a_failed_calibration_changes_nothing(
    error: BaseException, expected: dict[str, Tensor], trainer: MakeTrainer
) -> None:
    module, pgb = Failing(), PGBCallback()
    made = trainer(pgb)
    module.error = error
    before = describe(module)
    L.seed_everything(3)
    states = random_states()
    with pytest.raises((Exception, SystemExit)):  # Lightning turns an interrupt into an exit.
        made.fit(module, train_loader(), make_loader(16))
    assert_equal(random_states(), states)
    assert_equal(describe(module), before)
    assert pgb.plan is None
    assert strategy_is_restored(made)
    module.error = None
    assert_equal(describe(run(made, module))["weights"], expected)


def test_memory_is_released(trainer: MakeTrainer) -> None:
    pgb, references = PGBCallback(), []
    for number in range(4):
        module = Failing()
        module.error = TrialPruned() if number % 2 else None
        made = trainer(pgb)
        try:
            run(made, module)
        except TrialPruned:
            assert number % 2
        references += [weakref.ref(module), weakref.ref(module.net), weakref.ref(made)]
        del module, made
    gc.collect()
    # The callback itself refers to its last module: Lightning gives callbacks the module's method log.
    assert [reference() for reference in references[:-3]] == [None] * 9


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_callbacks_and_modules_are_copied_before_and_after_a_fit(
    copied: Callable[[Any], Any], trainer: MakeTrainer
) -> None:
    module, pgb = copied(Failing()), copied(PGBCallback())
    run(trainer(pgb), module)
    fitted, same = copied(module), copied(pgb)
    assert same.plan == pgb.plan
    assert_equal(describe(fitted)["weights"], describe(module)["weights"])
    fresh = run(trainer(same), Failing())  # The plan of the earlier fit has no effect.
    assert_equal(describe(fresh)["weights"], describe(module)["weights"])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"max_time": "00:00:00:00"}, 0), ({"max_steps": 2, "max_epochs": -1}, 2), ({"limit_train_batches": 0}, 0)],
)
def test_limits_of_a_trial(settings: dict[str, Any], steps: int, trainer: MakeTrainer) -> None:
    pgb, module = PGBCallback(), ResumableModule()
    made = trainer(pgb, **settings)
    run(made, module)
    assert made.global_step == steps
    assert pgb.plan is not None
    assert is_pruned(find_encoder(module))


def test_a_trial_that_stops_early(trainer: MakeTrainer) -> None:
    stopping = EarlyStopping("val_loss", patience=0, min_delta=10.0)
    made = trainer(PGBCallback(), stopping, max_epochs=8)
    run(made, ResumableModule())
    assert made.current_epoch == 2
