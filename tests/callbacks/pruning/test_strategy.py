"""Strategies that start processes or shard the model, the hook into the strategy, and unusable checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule, logits, make_trainer, train_loader
from helpers.own import OwnModule, make_loader, shapes
from helpers.processes import run
from helpers.tiny import classifier
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.strategy import before_strategy_setup
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


@pytest.mark.slow
def test_the_main_process_gets_the_pruned_module_back(tmp_path: Path) -> None:
    run("programs/forked_fit.py", tmp_path)
    for strategy in ("ddp_fork", "ddp_notebook", "ddp_spawn"):
        folder = tmp_path / strategy
        found = torch.load(folder / "results.pt", weights_only=True)
        saved = ResumableModule.load_from_checkpoint(folder / "end.ckpt")
        assert is_pruned(find_encoder(saved))
        assert torch.equal(found["logits"], logits(saved))
        assert found["best"] == str(folder / "end.ckpt")
        assert (folder / "plan.json").is_file()
        resumed = ResumableModule.load_from_checkpoint(folder / "resumed.ckpt")
        assert torch.equal(found["resumed"], logits(resumed))
        assert not torch.equal(found["resumed"], found["logits"])


def test_child_processes_need_a_module_that_follows_the_state_dict(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match="follow_state_dict"):
        PGBCallback().setup(trainer(strategy="ddp_fork"), OwnModule(), "fit")


@pytest.mark.slow
def test_sharding_with_a_given_plan(tmp_path: Path) -> None:
    module = ResumableModule()
    make_trainer(tmp_path, epochs=0).fit(module, train_loader(), make_loader(16))
    expected = sum(p.numel() for name, p in module.named_parameters() if "layer" in name)
    run("programs/fsdp_fit.py", tmp_path / "plan.json", tmp_path)
    for name, steps in {"end": 3, "resumed": 6}.items():
        ranks = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]
        assert [rank["step"] for rank in ranks] == [steps, steps]
        assert sum(rank["parameters"] for rank in ranks) == expected


@pytest.mark.parametrize("built_late", [False, True])
def test_a_given_plan_is_applied_before_a_strategy_shards(
    built_late: bool, trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            self.net = classifier(layers=2).train()

    pruned = OwnModule()
    make_trainer(tmp_path, epochs=0).fit(pruned, make_loader(), make_loader(16))
    given = trainer(PGBCallback(plan=tmp_path / "plan.json"))
    monkeypatch.setattr(type(given.strategy), "restore_checkpoint_after_setup", True)
    module = Late() if built_late else OwnModule()
    given.fit(module, make_loader())
    assert shapes(module.net) == shapes(pruned.net)


def test_sharding_without_a_plan_is_refused(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = trainer(PGBCallback())
    monkeypatch.setattr(type(sharding.strategy), "restore_checkpoint_after_setup", True)
    with pytest.raises(MisconfigurationException, match=r"PGBCallback\(plan="):
        sharding.fit(OwnModule(), make_loader())


def test_mps_is_refused_before_anything_is_computed(trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    monkeypatch.setattr(type(made.strategy), "root_device", torch.device("mps"))
    with pytest.raises(MisconfigurationException, match=r"'mps'.*accelerator='cpu'"):
        PGBCallback().setup(made, OwnModule(), "fit")


# ---- the hook ---------------------------------------------------------------------------------------------

WRAPPED = {"setup", "load_checkpoint", "load_model_state_dict"}


def test_the_strategy_is_wrapped_for_one_call(trainer: MakeTrainer) -> None:
    calls: list[Any] = []
    owner, removed = L.Callback(), L.Callback()
    made = trainer(removed, owner)
    before_strategy_setup(made, removed, lambda restored: calls.append("a callback that the Trainer no longer has"))
    made.callbacks.remove(removed)  # type: ignore[attr-defined]
    before_strategy_setup(made, owner, lambda restored: calls.append("an earlier fit, which failed before its setup"))
    before_strategy_setup(made, owner, calls.append)
    assert vars(made.strategy).keys() >= WRAPPED
    made.fit(OwnModule(), make_loader())
    assert calls == [None]
    assert not vars(made.strategy).keys() & {*WRAPPED, "_pgb_hook"}
    made.fit_loop.max_epochs = 2
    made.fit(OwnModule(), make_loader())
    assert calls == [None]


def test_several_callbacks_act_in_the_order_of_the_trainer(trainer: MakeTrainer) -> None:
    calls: list[str] = []
    first, second = L.Callback(), L.Callback()
    made = trainer(first, second)
    inner = wrap(made.strategy, "setup", calls, "inner")
    before_strategy_setup(made, first, lambda restored: calls.append("first, of a failed fit"))
    before_strategy_setup(made, first, lambda restored: calls.append("first"))
    before_strategy_setup(made, second, lambda restored: calls.append("second"))
    made.fit(OwnModule(), make_loader())
    assert calls == ["first", "second", "inner"]
    assert made.strategy.setup is inner


def test_a_callback_inside_another_one_acts(trainer: MakeTrainer) -> None:
    class Holder(L.Callback):
        def __init__(self) -> None:
            self.pgb = PGBCallback()

        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            self.pgb.setup(trainer, pl_module, stage)

    module = OwnModule()
    trainer(Holder()).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_a_failed_run_does_not_pass_on_that_it_restored_a_checkpoint(trainer: MakeTrainer, tmp_path: Path) -> None:
    calls: list[Any] = []
    owner = L.Callback()
    made = trainer(owner)
    before_strategy_setup(made, owner, calls.append)
    made.strategy.connect(OwnModule())
    made.strategy.load_model_state_dict({"state_dict": OwnModule().state_dict()})
    before_strategy_setup(made, owner, calls.append)
    made.fit(OwnModule(), make_loader())
    assert calls == [None]


def wrap(strategy: Any, name: str, calls: list[str], label: str) -> Callable[..., Any]:
    """Wrap a method of a strategy as another library would, and return the wrapper."""
    original = getattr(strategy, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(label)
        return original(*args, **kwargs)

    setattr(strategy, name, wrapper)
    return wrapper


def test_other_wrappers_survive(trainer: MakeTrainer) -> None:
    calls: list[str] = []
    owner = L.Callback()
    made = trainer(owner)
    inner = wrap(made.strategy, "setup", calls, "inner")
    load = wrap(made.strategy, "load_checkpoint", calls, "load")
    before_strategy_setup(made, owner, lambda restored: calls.append("pgb"))
    outer = wrap(made.strategy, "setup", calls, "outer")
    made.fit(OwnModule(), make_loader())
    assert calls == ["outer", "pgb", "inner"]
    assert made.strategy.setup is outer  # The hook cannot be taken out of the chain, and does nothing now.
    assert made.strategy.load_checkpoint is load
    made.fit_loop.max_epochs = 2
    made.fit(OwnModule(), make_loader())
    assert calls == ["outer", "pgb", "inner", "outer", "inner"]
    before_strategy_setup(made, owner, lambda restored: calls.append("pgb again"))
    made.fit_loop.max_epochs = 3
    made.fit(OwnModule(), make_loader())
    assert calls[5:] == ["pgb again", "outer", "inner"]
    assert made.strategy.setup is outer
    assert outer is not inner


def test_two_trainers_have_separate_hooks(trainer: MakeTrainer) -> None:
    calls: list[str] = []
    owner = L.Callback()
    first, second = trainer(owner), trainer(owner)
    before_strategy_setup(first, owner, lambda restored: calls.append("first"))
    before_strategy_setup(second, owner, lambda restored: calls.append("second"))
    second.fit(OwnModule(), make_loader())
    assert calls == ["second"]
    assert vars(first.strategy).keys() >= WRAPPED
    first.fit(OwnModule(), make_loader())
    assert calls == ["second", "first"]


def test_a_fit_that_fails_before_the_pruning_restores_the_strategy(trainer: MakeTrainer, tmp_path: Path) -> None:
    calls: list[str] = []
    failing, module = trainer(PGBCallback()), OwnModule()
    inner = wrap(failing.strategy, "load_checkpoint", calls, "inner")
    with pytest.raises(FileNotFoundError):
        failing.fit(module, make_loader(), ckpt_path=tmp_path / "none.ckpt")
    assert calls == ["inner"]
    assert failing.strategy.load_checkpoint is inner
    assert not vars(failing.strategy).keys() & {"setup", "load_model_state_dict", "_pgb_hook"}
    failing.callbacks = []  # type: ignore[attr-defined]
    failing.fit(module, make_loader())
    assert not is_pruned(find_encoder(module))


# ---- unusable checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_trainer(folder, epochs=1).fit(ResumableModule(), train_loader(), make_loader(16))
    return folder / "last.ckpt"


class Other(ResumableModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


def broken(good: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    checkpoint = torch.load(good, weights_only=True)
    changed = change(checkpoint)
    torch.save(checkpoint if changed is None else changed, folder / "broken.ckpt")
    return folder / "broken.ckpt"


@pytest.mark.parametrize(("fraction", "command"), [(0.0, "fit"), (0.3, "predict"), (0.99, "fit")])
def test_a_truncated_checkpoint(fraction: float, command: str, good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    (tmp_path / "good.ckpt").write_bytes(content)
    (tmp_path / "cut.ckpt").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(MisconfigurationException, match=r"cut\.ckpt.*good\.ckpt"):
        getattr(make_trainer(tmp_path), command)(ResumableModule(), make_loader(16), ckpt_path=tmp_path / "cut.ckpt")


def newer_plan(checkpoint: dict[str, Any]) -> None:
    checkpoint["callbacks"]["PGBCallback"]["plan"]["schema_version"] = 99


def newer_layout(checkpoint: dict[str, Any]) -> None:
    metadata = checkpoint["state_dict"]._metadata
    metadata["net.bert.encoder.layer.0.intermediate.dense"]["version"] = 99


def cut_weight(checkpoint: dict[str, Any]) -> None:
    name = "net.bert.encoder.layer.0.intermediate.dense.weight"
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:, 1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint["state_dict"], "'state_dict'"),
        (newer_plan, "schema_version=99"),
        (newer_layout, r"intermediate\.dense.*99"),
        (cut_weight, r"intermediate\.dense.*\b23\b.*\b24\b"),
    ],
)
def test_an_invalid_or_newer_checkpoint(change: Any, message: str, good: Path, tmp_path: Path) -> None:
    path = broken(good, tmp_path, change)
    with pytest.raises(MisconfigurationException, match=message):
        make_trainer(tmp_path).fit(ResumableModule(), train_loader(), make_loader(16), ckpt_path=path)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (("roberta", 2), r"net\.roberta\.encoder\.layer"),
        (("bert", 3), r"\b2 layers.*\b3\b"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_architecture(
    net: tuple[str, int], message: str, command: str, good: Path, tmp_path: Path
) -> None:
    module = Other(classifier(*net))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=f"ckpt_path.*{message}"):
        getattr(make_trainer(tmp_path), command)(module, make_loader(16), ckpt_path=good)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_checkpoint_of_the_dense_model(good: Path, tmp_path: Path) -> None:
    dense, trainer = ResumableModule(), make_trainer(tmp_path, epochs=1)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, PGBCallback)]  # type: ignore[attr-defined]
    trainer.fit(dense, train_loader(), make_loader(16))
    with pytest.raises(MisconfigurationException, match=r"ckpt_path.*fine_tuned_ckpt"):
        make_trainer(tmp_path).fit(ResumableModule(), train_loader(), make_loader(16), ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match="pruned"):
        make_trainer(tmp_path).predict(
            ResumableModule.load_from_checkpoint(good), make_loader(16), ckpt_path=tmp_path / "last.ckpt"
        )


def test_checkpoints_hold_the_layout_version(good: Path) -> None:
    metadata = torch.load(good, weights_only=True)["state_dict"]._metadata
    assert metadata["net.bert.encoder.layer.0.intermediate.dense"]["version"] == GroupedLinear._version == 1
