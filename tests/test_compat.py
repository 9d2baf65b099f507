"""Each use of the private API of Lightning and other packages: these tests fail when that API changes."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from datasets import Dataset
from helpers.fakes import quiet_trainer
from helpers.own import OwnModule, make_loader
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from pgb_lightning import _compat


class Data(L.LightningDataModule):
    """A data module that counts the calls of its batch hook."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_calls = 0

    def train_dataloader(self) -> Any:
        return make_loader(8)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.hook_calls += 1
        return batch


class Observer(L.Callback):
    """Record what the functions return at fit start and in training."""

    def __init__(self, datamodule: Data) -> None:
        self.datamodule = datamodule
        self.found: dict[str, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = _compat.training_dataloader(trainer)
        self.found["rows"] = len(loader.dataset)
        before = self.datamodule.hook_calls
        _compat.before_batch_transfer(pl_module, next(iter(loader)))
        self.found["hook_calls"] = self.datamodule.hook_calls - before

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found["own data"] = _compat.provides_data(trainer, self.datamodule)
        self.found["other data"] = _compat.provides_data(trainer, Data())


def test_the_data_of_a_running_fit_is_found() -> None:
    data = Data()
    observer = Observer(data)
    trainer = quiet_trainer(max_epochs=1, callbacks=[observer])
    assert _compat.provides_data(trainer, None)  # no loop runs
    trainer.fit(OwnModule(), datamodule=data)
    assert observer.found == {"rows": 8, "hook_calls": 1, "own data": True, "other data": False}


@pytest.mark.parametrize(
    ("strategy", "expected"), [("auto", False), ("ddp", False), ("ddp_spawn", True), ("ddp_fork", True)]
)
def test_strategies_that_start_child_processes_are_recognized(strategy: str, expected: bool) -> None:
    trainer = quiet_trainer(strategy=strategy, devices=1 if strategy == "auto" else 2)
    trainer.strategy._configure_launcher()
    assert _compat.launches_child_processes(trainer) is expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("auto", False), ("ddp", True), ("ddp_spawn", True), ("ddp_find_unused_parameters_true", False)],
)
def test_strategies_that_require_all_gradients_are_recognized(strategy: str, expected: bool) -> None:
    assert _compat.requires_all_gradients(quiet_trainer(strategy=strategy, devices=1)) is expected


def test_a_static_graph_may_have_unused_parameters() -> None:
    assert not _compat.requires_all_gradients(quiet_trainer(strategy=DDPStrategy(static_graph=True), devices=1))


def test_lightning_cli_calls_the_connected_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    @_compat.connect_cli_hooks
    class CLI(LightningCLI):
        def add_commands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
            calls.append("add_commands")
            commands = parser.add_subcommands()
            commands.add_subcommand("fit", _compat.make_trainer_parser(self, "fit"))

        def apply_checkpoint(self) -> None:
            calls.append("apply_checkpoint")
            _compat.apply_lightning_checkpoint(self)

    monkeypatch.setattr(L.Trainer, "fit", lambda *_args, **_kwargs: calls.append("fit"))
    cli = CLI(OwnModule, args=["fit", "--model.seed=3", "--trainer.logger=false"], save_config_callback=None)
    assert calls == ["add_commands", "apply_checkpoint", "fit"]
    assert cli.config.fit.model.seed == 3


def test_lightning_cli_stores_the_class_path_under_this_key() -> None:
    assert f'"{_compat.CLASS_PATH_KEY}" in hparams' in inspect.getsource(LightningCLI._parse_ckpt_path)


def test_jsonargparse_names_unknown_settings_in_this_form(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--callback", type=L.Callback)
    with pytest.raises(SystemExit):
        parser.parse_args(
            ["--callback=pgb_lightning.callbacks.PGBCallback", "--callback.max_group=3"],
        )
    found = [match.groupdict() for match in _compat.UNKNOWN_SETTING.finditer(capsys.readouterr().err)]
    assert {"callback"} <= {match["key"] for match in found}
    assert ("pgb_lightning.callbacks.PGBCallback", "max_group") in {(m["path"], m["option"]) for m in found}


def test_the_mode_of_a_combined_loader_is_read() -> None:
    assert _compat.combination_mode(CombinedLoader([], "max_size")) == "max_size"


def test_shuffling_is_disabled() -> None:
    combined = CombinedLoader([make_loader(shuffle=True)])
    with pytest.warns(UserWarning, match="overfit"):
        _compat.disable_shuffling(combined)
    assert isinstance(combined.flattened[0].sampler, SequentialSampler)


def test_loaders_that_read_something_other_than_their_sampler_says_are_found() -> None:
    class Same(DataLoader[Any]):
        pass

    class Other(DataLoader[Any]):
        def _get_iterator(self) -> Any:
            return iter([])

    rows: Any = [1]
    assert _compat.follows_its_sampler(DataLoader(rows))
    assert _compat.follows_its_sampler(Same(rows))
    assert not _compat.follows_its_sampler(Other(rows))


def test_the_gradients_of_a_fused_optimizer_can_be_clipped_in_mixed_precision() -> None:
    plugin = MixedPrecision("bf16-mixed", "cpu")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], fused=True)
    with pytest.raises(RuntimeError, match="AdamW"):
        plugin.clip_gradients(optimizer, 1.0)
    _compat.allow_clipping(optimizer)
    plugin.clip_gradients(optimizer, 1.0)
    plain = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    before = dict(vars(plain))
    _compat.allow_clipping(plain)
    assert vars(plain) == before


def test_training_batches_that_were_begun_early_begin_anew() -> None:
    drawn: list[bool] = []

    class Estimating(OwnModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            assert self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

        def on_fit_start(self) -> None:
            before = torch.get_rng_state()
            _compat.restart_training_batches(self.trainer)
            drawn.append(not torch.equal(torch.get_rng_state(), before))

    for module in (Estimating(), OwnModule()):
        quiet_trainer(max_epochs=1).fit(module, make_loader(8))
    assert drawn == [True]


def test_selected_rows_keep_their_numbers_in_the_table() -> None:
    rows = Dataset.from_dict({"text": list("abcd")})
    assert _compat.number_in_table(rows, 2) == 2
    assert _compat.number_in_table(rows.select([3, 1]).select([1]), 0) == 1


ROOT = Path(__file__).parents[1]
SOURCES = [path for top in ("pgb_lightning", "callbacks", "datamodules") for path in (ROOT / top).rglob("*.py")]
#: Private names of this package, and of torch's documented way to version a module's layout.
OWN = {"_follows_state_dict", "_version"}


def find_private_uses(path: Path) -> set[str]:
    """Return the private names of other objects and packages that a file uses, also by ``getattr``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            found |= {name.value for name in node.args[1:2] if isinstance(name, ast.Constant)}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pgb_lightning"):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return {name for name in found - OWN if re.match("_[a-zA-Z]", name)}


def test_other_modules_do_not_use_private_api() -> None:
    found = {str(path.relative_to(ROOT)): find_private_uses(path) for path in SOURCES if path.name != "_compat.py"}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.slow
def test_importing_the_package_does_not_import_lightning() -> None:
    program = "import sys, pgb_lightning; print([n for n in sys.modules if n.partition('.')[0] == 'lightning'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
