"""Run the fits of one draw of settings, and say what came of them."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.processes import end_distributed
from helpers.soak.checks import Fault, check_module, fresh_module, outputs, require, require_equal, rounding, traces
from helpers.soak.data import Data, DataWithCalibration, training_loader, validation_loader
from helpers.soak.module import SoakModule
from helpers.soak.refusals import is_refusal, subject
from helpers.soak.settings import Settings
from pgb_lightning.callbacks import BestCheckpoint, Distillation, ExactResume, PGBCallback, PGBReport
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned, matches

WORKING, REFUSED, FAULT = "working model", "refused", "FAULT"


@dataclass(frozen=True)
class Outcome:
    """What came of one draw.

    Args:
        kind: ``WORKING``, ``REFUSED`` or ``FAULT``.
        subject: What followed the first fit, the reason of a refusal, or the fault.
        details: The traceback of a fault.
    """

    kind: str
    subject: str
    details: str = ""


def run(settings: Settings) -> Outcome:
    """Run the fits of one draw in a temporary folder."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        module = None
        try:
            torch.manual_seed(settings.seed)
            module = SoakModule(settings)
            return Soak(settings, module, Path(folder)).run()
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            return Outcome(FAULT, f"{type(error).__name__}: {text}"[:150], traceback.format_exc())
        finally:
            end_distributed()


class Soak:
    """The fits of one draw.

    Args:
        settings: The settings.
        module: The dense module.
        folder: A folder for all files.
    """

    def __init__(self, settings: Settings, module: SoakModule, folder: Path) -> None:
        self.settings = settings
        self.module = module
        self.folder = folder

    def run(self) -> Outcome:
        """Fit once, check, and go on as the settings say."""
        first = self.fit(self.module, self.folder / "first")
        if isinstance(first, Outcome):
            return first
        require(not self.settings.is_silent, "a calibration without any gradient was accepted")
        trainer, pgb = first
        check_module(self.module, trainer, pgb, self.folder)
        then = getattr(self, f"then_{self.settings.then}")(trainer, pgb)
        return then if isinstance(then, Outcome) else Outcome(WORKING, f"then {self.settings.then}")

    def fit(
        self,
        module: SoakModule,
        folder: Path,
        ckpt_path: Path | None = None,
        pgb: PGBCallback | None = None,
        **more: Any,
    ) -> tuple[L.Trainer, PGBCallback] | Outcome:
        """Fit a module; an error of this package must leave it as it was."""
        before, own = {name: value.clone() for name, value in module.state_dict().items()}, traces(module)
        try:
            pgb = pgb or PGBCallback(**self.settings.pruning)
            trainer = self.trainer(folder, pgb, **more)
            trainer.fit(module, **self.data(), ckpt_path=ckpt_path)
        except Exception as error:
            if not is_refusal(error):
                raise
            after = module.state_dict()
            require(after.keys() == before.keys(), f"a refusal left another structure: {error}")
            require(all(torch.equal(after[n], v) for n, v in before.items()), f"a refusal changed weights: {error}")
            left = traces(module)
            changed = [name for name, value in own.items() if left[name] != value and name != "attributes"]
            require(not changed, f"a refusal changed {', '.join(changed)}: {error}")
            return Outcome(REFUSED, subject(error))
        require(traces(module)["hooks"] == own["hooks"], "the fit left hooks, or removed some")
        return trainer, pgb

    def data(self) -> dict[str, Any]:
        """Return new loaders, as arguments of ``fit``."""
        if self.settings.data["loader"] == "calibration_dataloader":
            return {"datamodule": DataWithCalibration(self.settings)}
        if self.settings.data["datamodule"] and self.settings.data["loader"] != "iterator":
            return {"datamodule": Data(self.settings)}
        return {
            "train_dataloaders": training_loader(self.settings),
            "val_dataloaders": validation_loader(self.settings),
        }

    def trainer(self, folder: Path, pgb: PGBCallback, **more: Any) -> L.Trainer:
        """Make a Trainer with the callbacks in the drawn order."""
        encoder = self.settings.pruning.get("encoder")
        made = {
            "pgb": lambda: pgb,
            "report": lambda: PGBReport(latency=False, output_dir=str(folder / "report")),
            "distillation": lambda: Distillation(
                logits_weight=0.0 if self.settings.model["outside"] else 1.0, encoder=encoder
            ),
            "best": lambda: BestCheckpoint(str(folder / "best"), monitor="val_score"),
            "exact": ExactResume,
            "model_checkpoint": lambda: ModelCheckpoint(folder / "checkpoints", monitor="val_loss"),
        }
        callbacks = [made[name]() for name in self.settings.callbacks]
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        own = {name: value for name, value in self.settings.trainer.items() if name != "optimizer"}
        return L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=saves,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
            **(own | more),
        )

    # ---- what follows the first fit ------------------------------------------------------------------------------

    def then_nothing(self, trainer: L.Trainer, pgb: PGBCallback) -> None:
        """Stop here."""

    def then_resume(self, trainer: L.Trainer, pgb: PGBCallback) -> Outcome | None:
        """Resume a new, dense module from the checkpoint; without further epochs, the weights are those saved."""
        expected = outputs(self.module)
        # Distillation needs the same dense model as in the first fit.
        other = SoakModule(self.settings, seed=0 if "distillation" in self.settings.callbacks else 4)
        more = {"max_epochs": trainer.current_epoch + 1} if self.settings.seed % 2 else {}
        if self.settings.trainer.get("max_steps"):
            more = {"max_steps": trainer.global_step + 2} if more else {}
        resumed = self.fit(other, self.folder / "resumed", ckpt_path=self.folder / "soak.ckpt", **more)
        if isinstance(resumed, Outcome):
            return replace(resumed, subject=f"resume: {resumed.subject}")
        require(resumed[1].plan == pgb.plan, "the resumed fit has another plan")
        assert pgb.plan is not None
        require(matches(find_encoder(other, "net"), pgb.plan), "the resumed encoder does not match the plan")
        if not more and "distillation" not in self.settings.callbacks:
            require_equal(outputs(other), expected, "resumed without further training", rounding(other))
        return None

    def then_plan(self, trainer: L.Trainer, pgb: PGBCallback) -> Outcome | None:
        """Apply the plan to a new dense module."""
        assert pgb.plan is not None
        pgb.plan.save(self.folder / "plan.json")
        other = SoakModule(self.settings, seed=5)
        given = PGBCallback(plan=self.folder / "plan.json", encoder=self.settings.pruning.get("encoder"))
        again = self.fit(other, self.folder / "given", pgb=given)
        if isinstance(again, Outcome):
            return replace(again, subject=f"plan: {again.subject}")
        require(matches(find_encoder(other, "net"), pgb.plan), "the encoder does not match the given plan")
        return None

    def then_again(self, trainer: L.Trainer, pgb: PGBCallback) -> Outcome | None:
        """Fit the same module with the same callback in a new Trainer: re-finetuning continues."""
        if "distillation" in self.settings.callbacks:  # its teacher belongs to the first fit
            return None
        shapes = {name: value.shape for name, value in self.module.state_dict().items()}
        again = self.fit(self.module, self.folder / "again", pgb=pgb)
        if isinstance(again, Outcome):
            return replace(again, subject=f"again: {again.subject}")
        require(
            {name: value.shape for name, value in self.module.state_dict().items()} == shapes,
            "a second fit changed the structure",
        )
        return None

    def then_further(self, trainer: L.Trainer, pgb: PGBCallback) -> Outcome | None:
        """Prune the pruned module further: right, or refused."""
        if "distillation" in self.settings.callbacks:
            return None
        before = outputs(self.module)
        further = PGBCallback(**self.settings.pruning | {"pruning_ratio": 0.96} | self._without_speedup())
        again = self.fit(self.module, self.folder / "further", pgb=further)
        if isinstance(again, Outcome):
            require_equal(outputs(self.module), before, "after a refusal")
            return replace(again, subject=f"further: {again.subject}")
        require(is_pruned(find_encoder(self.module, "net")), "the encoder is not pruned any more")
        other = fresh_module(self.module)
        other.load_state_dict(self.module.state_dict())
        require_equal(outputs(other), outputs(self.module), "pruned further and loaded")
        return None

    def _without_speedup(self) -> dict[str, Any]:
        return {"target_speedup": None} if "target_speedup" in self.settings.pruning else {}

    def then_predict(self, trainer: L.Trainer, pgb: PGBCallback) -> None:
        """Predict from the checkpoint with a new Trainer and a dense module, and with the fitted objects."""
        path, loader = self.folder / "soak.ckpt", validation_loader(self.settings)
        expected = trainer.predict(self.module, loader)
        other = SoakModule(self.settings, seed=6)
        new = self.trainer(self.folder / "predict", PGBCallback(**self.settings.pruning))
        found = new.predict(other, loader, ckpt_path=path)
        assert expected
        assert found
        for left, right in zip(found, expected, strict=True):
            require_equal(left.float(), right.float(), "predict from the checkpoint", rounding(other))  # type: ignore[union-attr]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings, logs and tables. Errors are raised as always."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


__all__ = ["FAULT", "REFUSED", "WORKING", "Fault", "Outcome", "run"]
