"""A user's own LightningCLI with the callbacks in YAML, without ``pgb``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from helpers.own import OwnModule, make_loader
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from pgb_lightning import follow_state_dict
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

pytestmark = pytest.mark.slow


class UsersModule(OwnModule):
    """A module with hyperparameters."""

    def __init__(self, lr: float = 1e-3, follows: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        if follows:
            follow_state_dict(self)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.net(input_ids=batch[0], labels=batch[1]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


class UsersData(L.LightningDataModule):
    """A data module with hyperparameters."""

    def __init__(self, rows: int = 48) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[Any]:
        return make_loader(self.hparams["rows"], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return make_loader(16)

    test_dataloader = predict_dataloader = val_dataloader


TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": -1,
}


def callbacks(pgb: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entry of a configuration with all callbacks of a run, by class path."""
    settings: dict[str, dict[str, Any]] = {
        "PGBCallback": pgb,
        "Distillation": {},
        "ExactResume": {},
        "PGBReport": {"latency": False},
        "BestCheckpoint": {"dirpath": "out", "monitor": "val_loss"},
    }
    return [{"class_path": f"pgb_lightning.callbacks.{name}", "init_args": args} for name, args in settings.items()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a configuration and returns its path."""

    def make(pgb: dict[str, Any], **more: Any) -> str:
        path = tmp_path / "config.yaml"
        config = {"seed_everything": 1, "trainer": {**TRAINER, "callbacks": callbacks(pgb)}, **more}
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return make


def run(*args: str, subclass: bool = False) -> LightningCLI:
    """Run the user's script."""
    modes = {"subclass_mode_model": True, "subclass_mode_data": True} if subclass else {}
    classes = (L.LightningModule, L.LightningDataModule) if subclass else (UsersModule, UsersData)
    return LightningCLI(*classes, args=list(args), save_config_callback=None, **modes)


def find_pgb(cli: LightningCLI) -> PGBCallback:
    [found] = [each for each in cli.trainer.callbacks if isinstance(each, PGBCallback)]
    return found


@pytest.mark.parametrize("follows", ["true", "false"])
def test_fit_resume_and_test(follows: str, write: Callable[..., str]) -> None:
    config, own = write({"pruning_ratio": 0.6}), f"--model.follows={follows}"
    first = run("fit", "--config", config, own, "--model.lr=0.002")
    plan = find_pgb(first).plan
    assert plan is not None
    assert plan.pruning_ratio == pytest.approx(0.6, abs=0.01)
    assert {path.name for path in Path("out").iterdir()} == {"best.ckpt", "last.ckpt", "plan.json", "report"}

    resumed = run("fit", "--config", config, own, "--ckpt_path=out/last.ckpt", "--trainer.max_epochs=2")
    assert resumed.trainer.current_epoch == 2
    assert resumed.model.hparams["lr"] == 0.002  # read from the checkpoint
    assert find_pgb(resumed).plan == plan

    tested = run("test", "--config", config, own, "--ckpt_path=out/best.ckpt")
    assert is_pruned(find_encoder(tested.model))
    assert tested.trainer.callback_metrics["test_loss"] > 0


def test_a_module_without_callback_tests_a_checkpoint_if_it_follows(write: Callable[..., str]) -> None:
    run("fit", "--config", write({}), "--model.follows=true")
    bare = [f"--trainer.{name}={str(value).lower()}" for name, value in TRAINER.items()]
    tested = run("test", *bare, "--ckpt_path=out/best.ckpt")
    assert is_pruned(find_encoder(tested.model))


def test_callbacks_on_the_command_line_and_subclass_mode() -> None:
    bare = [f"--trainer.{name}={str(value).lower()}" for name, value in TRAINER.items()]
    pgb = ["--trainer.callbacks+=pgb_lightning.callbacks.PGBCallback", "--trainer.callbacks.preset=balanced"]
    name = __name__
    cli = run(
        "fit", *bare, *pgb, f"--model={name}.UsersModule", f"--data={name}.UsersData", "--data.rows=16", subclass=True
    )
    assert find_pgb(cli).config.permutation == "balanced"
    assert is_pruned(find_encoder(cli.model))


def test_a_printed_configuration_gives_the_same_run(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"pruning_ratio": 0.4, "ridge": 0.1})
    with pytest.raises(SystemExit):
        run("fit", "--config", config, "--print_config")
    printed = Path("printed.yaml")
    printed.write_text(capsys.readouterr().out)
    clis = [run("fit", "--config", path) for path in (config, str(printed))]
    first, second = (cli.model.state_dict() for cli in clis)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_optimizer_and_scheduler_in_the_configuration(write: Callable[..., str]) -> None:
    # LightningCLI creates both before the fit, from the parameters of the dense module.
    more = {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}},
    }
    config = write({"preset": "balanced"}, **more)
    first = run("fit", "--config", config)
    resumed = run("fit", "--config", config, "--ckpt_path=out/last.ckpt", "--trainer.max_epochs=2")
    for cli, lr in ((first, 0.005), (resumed, 0.0025)):
        [group] = cli.trainer.optimizers[0].param_groups
        assert list(map(id, group["params"])) == list(map(id, cli.model.parameters()))
        assert group["lr"] == lr
    assert is_pruned(find_encoder(resumed.model))
    states = first.trainer.optimizers[0].state, resumed.trainer.optimizers[0].state
    assert [len(state) for state in states] == [len(list(cli.model.parameters())) for cli in (first, resumed)]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pruning_ratio": 1.5}, r"pruning_ratio.*1\.5"),
        ({"pruning_ratio": "half"}, r"pruning_ratio[\s\S]*half"),
        ({"preset": "best"}, "preset.*best"),
        ({"prune_ratio": 0.5}, "prune_ratio"),
        ({"search": "blocks"}, r"search[\s\S]*blocks"),
        ({"plan": "missing.json"}, r"missing\.json"),
    ],
)
def test_wrong_settings_are_named(
    settings: dict[str, Any], match: str, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    # jsonargparse prints and exits, or raises an error with ours in its message if a class refuses its settings.
    with pytest.raises((SystemExit, ValueError, MisconfigurationException)) as failure:
        run("fit", "--config", write(settings))
    assert re.search(match, capsys.readouterr().err + str(failure.value))
