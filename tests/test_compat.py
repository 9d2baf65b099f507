"""Each use of other packages' private API: these tests fail when that API changes."""

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
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModel, BertConfig, BertModel

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


def test_hooks_that_collect_outputs_are_registered_again_for_new_layers() -> None:
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    tokens = torch.ones(1, 3, dtype=torch.long)
    assert len(model(tokens, output_hidden_states=True).hidden_states) == 2
    model.encoder.layer[0] = type(model.encoder.layer[0])(model.config)
    _compat.forget_output_hooks(model)
    assert len(model(tokens, output_hidden_states=True).hidden_states) == 2


def test_a_replica_has_the_attributes_of_a_module() -> None:
    module = nn.Linear(2, 2)
    module.note = [1]  # type: ignore[assignment]
    replica = getattr(module, _compat.REPLICATE)()
    assert replica is not module
    assert vars(replica)["note"] is module.note


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_are_found(register: str) -> None:
    module = nn.Linear(2, 2)
    assert not _compat.has_forward_hooks(module)
    handle = getattr(module, register)(lambda *_: None)
    assert _compat.has_forward_hooks(module)
    handle.remove()
    assert not _compat.has_forward_hooks(module)


def test_hooks_are_shared_with_another_module_until_their_handles_remove_them() -> None:
    old, new, calls = nn.Linear(2, 2), nn.Linear(2, 2), []
    handles = [
        old.register_forward_hook(lambda *_: calls.append("forward"), always_call=True),
        old.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True),
        old.register_full_backward_hook(lambda *_: calls.append("backward")),
        old.register_full_backward_pre_hook(lambda *_: calls.append("before backward")),
    ]
    _compat.share_hooks(old, new)
    new(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "before backward", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    new(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert calls == []


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_tensor_are_found_until_they_are_removed(register: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert not _compat.has_hooks(parameter)
    handle = getattr(parameter, register)(lambda *_: None)
    assert _compat.has_hooks(parameter)
    handle.remove()
    assert not _compat.has_hooks(parameter)


def test_activation_checkpointing_leaves_its_name_out_of_state_dicts() -> None:
    wrapper = checkpoint_wrapper(nn.Linear(2, 2))
    assert [name for name, _ in wrapper.named_children()] == [_compat.CHECKPOINT_WRAPPED]
    assert list(wrapper.state_dict()) == ["weight", "bias"]


def test_a_compiled_module_holds_the_original_under_this_name() -> None:
    original = nn.Linear(2, 2)
    compiled: Any = torch.compile(original)
    assert dict(compiled.named_children()) == {_compat.COMPILED: original}


def test_a_state_dict_has_the_versions_of_its_modules() -> None:
    versions = _compat.state_dict_versions(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).state_dict())
    assert versions == {"": 1, "0": nn.BatchNorm1d._version, "1": 1}
    assert _compat.state_dict_versions({}) == {}


def test_transforms_of_torch_func_are_seen() -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(_compat.is_transformed())
        return x.sum()

    x = torch.ones(2)
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x)
    torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        function(x)
    assert seen == [True] * 4
    assert not _compat.is_transformed()


def test_fsdp_shows_in_names() -> None:
    assert _compat.is_fsdp_name(f"model.{FSDP_WRAPPED_MODULE}.layer")
    assert not _compat.is_fsdp_name("model.layer")


@pytest.mark.parametrize("earlier", [False, True])
def test_hooks_of_tensors_are_put_back(earlier: bool) -> None:
    weight, calls = torch.ones(1, requires_grad=True), []
    if earlier:
        weight.register_hook(lambda _: calls.append("earlier"))
    restore = _compat.save_tensor_hooks(weight)
    weight.register_hook(lambda _: calls.append("later"))
    weight.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))
    restore()
    weight.sum().backward()
    assert calls == ["earlier"] * earlier
    weight.register_hook(lambda _: calls.append("new"))
    weight.sum().backward()
    assert calls[-1] == "new"


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


def test_the_attention_implementation_is_read() -> None:
    assert _compat.attention_implementation(BertConfig(attn_implementation="eager")) == "eager"
    assert _compat.attention_implementation(object()) is None


def test_modules_that_are_marked_are_not_initialized() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = BertModel(config)
    _compat.leave_uninitialized(model.encoder)
    model.pooler._is_hf_initialized = model.pooler.dense._is_hf_initialized = False
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.initialize_weights()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"pooler.dense.weight"}


def test_the_models_of_an_auto_class_are_those_of_the_very_configuration() -> None:
    assert _compat.registered_models(AutoModel, BertConfig) == (BertModel,)
    assert _compat.registered_models(AutoModel, type("BertConfig", (BertConfig,), {})) == ()
    assert _compat.registered_models(AutoModel, None) == ()


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
