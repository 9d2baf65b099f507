"""Strategies: those whose processes work on copies, those that shard first, and checkpoints that are no good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import Entering, logits, make_trainer, train_loader
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


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_the_main_process_gets_back_what_its_copies_pruned(strategy: str, tmp_path: Path) -> None:
    run("programs/forked_fit.py", strategy, tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    saved = Entering.load_from_checkpoint(tmp_path / "end.ckpt")
    assert is_pruned(find_encoder(saved))
    assert torch.equal(found["logits"], logits(saved))
    assert torch.equal(found["resumed"], logits(Entering.load_from_checkpoint(tmp_path / "third.ckpt")))
    assert not torch.equal(found["resumed"], found["logits"])
    assert found["best"] == str(tmp_path / "end.ckpt")
    assert (tmp_path / "plan.json").is_file()


def test_copies_need_a_module_that_can_take_the_weights_back(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"call pgb_lightning.follow_state_dict\(self\)"):
        PGBCallback().setup(trainer(strategy="ddp_fork"), OwnModule(), "fit")


def test_sharding_from_a_given_plan(tmp_path: Path) -> None:
    module = Entering()
    make_trainer(tmp_path, epochs=0).fit(module, train_loader(), make_loader(16))
    expected = sum(p.numel() for name, p in module.named_parameters() if "layer" in name)
    for steps, ckpt_path in [(3, []), (6, [tmp_path / "end.ckpt"])]:
        run("programs/fsdp_fit.py", tmp_path / "plan.json", tmp_path, *ckpt_path)
        ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
        assert [rank["step"] for rank in ranks] == [steps, steps]
        assert sum(rank["parameters"] for rank in ranks) == expected


@pytest.mark.parametrize("built_late", [False, True])
def test_a_given_plan_is_carried_out_before_a_strategy_shards(
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
    with pytest.raises(MisconfigurationException, match=r"cuts the model up before .* PGBCallback\(plan=...\)"):
        sharding.fit(OwnModule(), make_loader())


def test_an_apple_gpu_is_refused_before_anything_is_computed(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer()
    monkeypatch.setattr(type(made.strategy), "root_device", torch.device("mps"))
    with pytest.raises(MisconfigurationException, match=r"'mps' has no float64, .* accelerator='cpu'"):
        PGBCallback().setup(made, OwnModule(), "fit")


def test_the_strategy_is_wrapped_for_one_call_only(trainer: MakeTrainer) -> None:
    calls: list[Any] = []
    made = trainer()
    before_strategy_setup(made, lambda restored: calls.append("a fit that failed before its strategy's setup"))
    before_strategy_setup(made, calls.append)
    made.fit(OwnModule(), make_loader())
    assert calls == [False]
    assert not {"setup", "load_checkpoint", "load_model_state_dict"} & vars(made.strategy).keys()
    made.fit_loop.max_epochs = 2
    made.fit(OwnModule(), make_loader())
    assert calls == [False]


# ---- checkpoints that are no good -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_trainer(folder, epochs=1).fit(Entering(), train_loader(), make_loader(16))
    return folder / "last.ckpt"


class Other(Entering):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


def broken(good: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    checkpoint = torch.load(good, weights_only=True)
    changed = change(checkpoint)
    torch.save(checkpoint if changed is None else changed, folder / "broken.ckpt")
    return folder / "broken.ckpt"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_truncated_checkpoint(share: float, command: str, good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    (tmp_path / "good.ckpt").write_bytes(content)
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(MisconfigurationException, match=r"cut\.ckpt' .*truncated.* good\.ckpt"):
        getattr(make_trainer(tmp_path), command)(Entering(), make_loader(16), ckpt_path=tmp_path / "cut.ckpt")


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
        (
            lambda checkpoint: checkpoint["state_dict"],
            "is not a Lightning checkpoint: it has no 'state_dict'",
        ),
        (newer_plan, "schema_version=99: this release of pgb-lightning reads plans of version 1"),
        (newer_layout, "intermediate.dense was written in layout 99 by a newer release"),
        (cut_weight, r"intermediate.dense: the checkpoint holds 23 x \d+ weights, not the module's 24 x \d+"),
    ],
)
def test_a_foreign_or_newer_checkpoint(change: Any, message: str, good: Path, tmp_path: Path) -> None:
    path = broken(good, tmp_path, change)
    with pytest.raises(MisconfigurationException, match=message):
        make_trainer(tmp_path).fit(Entering(), train_loader(), make_loader(16), ckpt_path=path)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (("roberta",), "no layers at 'net.roberta.encoder.layer', where the module has its 'roberta' encoder"),
        (("bert", 3), "has 2 layers, the module's has 3; build the module from the configuration"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_architecture(
    net: tuple[Any, ...], message: str, command: str, good: Path, tmp_path: Path
) -> None:
    module = Other(classifier(*(net if len(net) > 1 else (*net, 2))))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=f"ckpt_path does not fit the module: .*{message}"):
        getattr(make_trainer(tmp_path), command)(module, make_loader(16), ckpt_path=good)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_checkpoint_of_the_dense_model(good: Path, tmp_path: Path) -> None:
    dense, trainer = Entering(), make_trainer(tmp_path, epochs=1)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, PGBCallback)]  # type: ignore[attr-defined]
    trainer.fit(dense, train_loader(), make_loader(16))
    with pytest.raises(MisconfigurationException, match="ckpt_path is a checkpoint of the dense model"):
        make_trainer(tmp_path).fit(Entering(), train_loader(), make_loader(16), ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match="was pruned and cannot be made whole again"):
        make_trainer(tmp_path).predict(
            Entering.load_from_checkpoint(good), make_loader(16), ckpt_path=tmp_path / "last.ckpt"
        )


def test_the_layout_is_written_down(good: Path) -> None:
    metadata = torch.load(good, weights_only=True)["state_dict"]._metadata
    assert metadata["net.bert.encoder.layer.0.intermediate.dense"]["version"] == GroupedLinear._version == 1
