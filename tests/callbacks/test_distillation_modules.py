"""Distillation of modules that are unlike the usual one: aliases, shared towers, wrappers, unusual steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from helpers.tiny import classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]
Batch = tuple[Tensor, Tensor]


class Holder(nn.Module):
    """A wrapper that is no transformers model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class AliasBefore(OwnModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        net = self._modules.pop("net")
        self.backbone = net.bert
        self.net = net


class LayersBefore(OwnModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        net = self._modules.pop("net")
        self.layers = nn.ModuleList(net.bert.encoder.layer)
        self.embeddings = net.bert.embeddings
        self.net = net


class Nested(OwnModule):
    """The encoder has three names, and the model two."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        net = self._modules.pop("net")
        self.holders = nn.ModuleList([Holder(net.bert), Holder(Holder(net))])
        self.net = net


class SharedTowers(OwnModule):
    """Two models, of which the second has the first one's encoder."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.tagger = BertForTokenClassification(self.net.config)
        self.tagger.bert = self.net.bert


class SharedLayers(OwnModule):
    """Two models with encoders of their own that share the layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.tagger = BertForTokenClassification(self.net.config)
        self.tagger.bert.encoder = self.net.bert.encoder


@pytest.mark.parametrize("kind", [AliasBefore, LayersBefore, Nested])
def test_the_outermost_model_is_distilled_whatever_its_names(
    kind: type[OwnModule], trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = kind(seed=0)
    torch.save({"state_dict": kind(seed=1).state_dict()}, tmp_path / "dense.ckpt")
    names = find_encoder(module).names
    for name in names:
        callback = Distillation(encoder=name, teacher=tmp_path / "dense.ckpt")
        trainer(callback, PGBCallback(0.5)).fit(copy.deepcopy(module), make_loader(16))
        assert callback.teacher is not None
        assert type(callback.teacher.model) is type(module.net)
        expected = OwnModule(seed=1).net.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in callback.teacher.model.state_dict().items())
    fit = trainer(Distillation(), PGBCallback(0.5))
    fit.fit(module, make_loader(16))
    assert fit.callback_metrics["train_distillation"] > 0
    assert len(names) == {AliasBefore: 2, LayersBefore: 1, Nested: 3}[kind]


@pytest.mark.parametrize("kept", ["net.", "backbone."])
def test_a_teacher_is_read_under_any_of_its_names(kept: str, trainer: MakeTrainer, tmp_path: Path) -> None:
    """Some tools save a tensor that has two names under one of them."""
    dense = AliasBefore(seed=1)
    state = dense.state_dict()
    shared = [key.removeprefix("backbone.") for key in state if key.startswith("backbone.")]
    dropped = {f"net.bert.{key}" if kept == "backbone." else f"backbone.{key}" for key in shared}
    path = tmp_path / "dense.ckpt"
    torch.save({"state_dict": {key: value for key, value in state.items() if key not in dropped}}, path)
    callback = Distillation(teacher=path)
    trainer(callback, PGBCallback(0.5)).fit(AliasBefore(), make_loader(16))
    assert callback.teacher is not None
    for key, value in callback.teacher.model.state_dict().items():
        assert torch.equal(value, dense.net.state_dict()[key])


def test_a_teacher_of_another_depth_or_a_pruned_one_is_refused(trainer: MakeTrainer, tmp_path: Path) -> None:
    deep, pruned = AliasBefore(), AliasBefore()
    deep.net = classifier("bert", layers=3)
    deep.backbone = deep.net.bert
    trainer(PGBCallback(0.5)).fit(pruned, make_loader(16))
    broken = AliasBefore()
    broken.net.classifier.bias.data.fill_(float("nan"))
    for name, module in {"deep": deep, "pruned": pruned, "broken": broken}.items():
        torch.save({"state_dict": module.state_dict()}, tmp_path / f"{name}.ckpt")
        with pytest.raises(MisconfigurationException, match=rf"teacher='.*{name}\.ckpt'"):
            trainer(Distillation(teacher=tmp_path / f"{name}.ckpt")).fit(AliasBefore(), make_loader(16))


@pytest.mark.parametrize("kind", [SharedTowers, SharedLayers])
def test_models_that_share_an_encoder_must_be_told_apart(kind: type[OwnModule], trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match=r"encoder=None.*'net\.bert', 'tagger\.bert'"):
        trainer(Distillation()).fit(kind(), make_loader(16))
    callback = Distillation(encoder="net.bert")
    trainer(callback, PGBCallback(0.5)).fit(kind(), make_loader(16))
    assert callback.teacher is not None
    assert type(callback.teacher.model) is type(OwnModule().net)
    with pytest.raises(MisconfigurationException, match=r"did not call BertForTokenClassification"):
        trainer(Distillation(encoder="tagger.bert")).fit(kind(), make_loader(16))


def wrapped(kind: str) -> OwnModule:
    module = OwnModule()
    layers = module.net.bert.encoder.layer
    if kind == "compiled layers":
        for number, layer in enumerate(layers):
            layers[number] = torch.compile(layer, backend="eager")
    elif kind == "compiled model":
        module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]
    elif kind == "checkpoint wrappers":
        for number, layer in enumerate(layers):
            layers[number] = checkpoint_wrapper(layer)
    else:
        module.net.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant checkpointing"})
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["compiled layers", "compiled model", "checkpoint wrappers", "checkpointing", "reentrant checkpointing"]
)
def test_wrapped_layers_give_the_same_loss(kind: str, trainer: MakeTrainer, tmp_path: Path) -> None:
    def distilled(module: OwnModule) -> tuple[float, Tensor]:
        module.net.train(False)
        (module.net.bert if hasattr(module.net, "bert") else module.net).train(kind.endswith("checkpointing"))
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0
        callback = Distillation(teacher=tmp_path / "dense.ckpt")
        fit = trainer(callback, limit_train_batches=2)
        fit.fit(module, make_loader(16))
        query = next(value for name, value in module.named_parameters() if name.endswith("query.weight"))
        return float(fit.callback_metrics["train_distillation"]), query.detach()

    torch.save({"state_dict": OwnModule(seed=1).state_dict()}, tmp_path / "dense.ckpt")
    (expected, weights), (found, same) = distilled(OwnModule()), distilled(wrapped(kind))
    assert found == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(same, weights, rtol=1e-3, atol=1e-5)


class SkipsSome(OwnModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return None if batch_idx == 0 else self.loss(batch)


class CallsTwice(OwnModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        with torch.no_grad():
            self.loss(batch)
        return {"loss": self.loss(batch) + self.loss(batch), "other": 1}


class HiddenOnly(OwnModule):
    """Call the encoder alone, with a head of the module's own."""

    def loss(self, batch: Batch) -> Tensor:
        return self.net.classifier(self.net.bert(batch[0]).pooler_output).square().mean()  # type: ignore[no-any-return]


class TwoSentences(PreTrainedModel):
    """A model that runs its encoder twice in one call, with different masks."""

    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(48, 2)
        self.post_init()

    def forward(self, first: Tensor, second: Tensor) -> SequenceClassifierOutput:
        masks = (first > 10).long(), torch.ones_like(second)
        states = [
            self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]
            for tokens, mask in zip((first, second), masks, strict=True)
        ]
        return SequenceClassifierOutput(logits=self.head(torch.cat(states, -1)))


class Siamese(OwnModule):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig.from_dict(self.net.config.to_dict(), attn_implementation="eager")
        self.net = TwoSentences(config).train()

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0], batch[0].flip(1)).logits, batch[1])


class FrozenEncoder(OwnModule):
    def __init__(self) -> None:
        super().__init__()
        self.net.bert.requires_grad_(False)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (SkipsSome, {}),
        (CallsTwice, {}),
        (HiddenOnly, {"logits_weight": 0}),
        (Siamese, {}),
        (FrozenEncoder, {}),
    ],
)
def test_unusual_steps_are_distilled(module: type[OwnModule], settings: dict[str, Any], trainer: MakeTrainer) -> None:
    made = module()
    fit = trainer(Distillation(**settings))
    fit.fit(made, make_loader(32))
    assert fit.callback_metrics["train_distillation"] >= 0
    assert "training_step" not in vars(made)


def test_all_calls_of_the_encoder_are_compared() -> None:
    """The student differs from the teacher only in what the first call of the encoder sees."""
    module = Siamese()
    callback = Distillation(logits_weight=1e-9)
    fit = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback, FirstCallDiffers()],
    )  # fmt: skip
    module.net.eval()
    fit.fit(module, make_loader(8))
    assert fit.callback_metrics["train_distillation"] > 1e-3


class FirstCallDiffers(L.Callback):
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        calls: list[int] = []

        def change_first(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            calls.append(0)
            return output + len(calls) % 2

        pl_module.net.bert.embeddings.register_forward_hook(change_first)  # type: ignore[union-attr, operator]


def test_a_teacher_with_nan_outputs_is_refused(trainer: MakeTrainer) -> None:
    class Overflows(Distillation):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            super().on_fit_start(trainer, pl_module)
            assert self.teacher is not None
            self.teacher.model.classifier.bias.data.fill_(float("inf"))

    module = OwnModule()
    before = copy.deepcopy(module.net.state_dict())
    with pytest.raises(MisconfigurationException, match=r"teacher, BertForSequenceClassification.*precision"):
        trainer(Overflows()).fit(module, make_loader(16))
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())


def test_wrappers_of_others_stay_in_place(trainer: MakeTrainer) -> None:
    class Wrapping(L.Callback):
        """Wrap the step without a way back."""

        calls = 0

        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            step = pl_module.training_step

            def training_step(*args: Any) -> Any:
                self.calls += 1
                return step(*args)

            pl_module.training_step = training_step  # type: ignore[method-assign]

    module, wrapping = OwnModule(), Wrapping()
    fit = trainer(Distillation(), wrapping)
    fit.fit(module, make_loader(16))
    assert wrapping.calls == 2
    later = trainer()
    later.fit(module, make_loader(16))
    assert wrapping.calls == 4
    assert "train_distillation" not in later.callback_metrics
    own = module.training_step
    trainer(Distillation()).fit(module, make_loader(16))
    assert module.training_step is own


@pytest.mark.parametrize("settings", [{"max_epochs": 0}, {"barebones": True}, {"limit_val_batches": 0}])
def test_short_and_bare_trainers(settings: dict[str, Any], trainer: MakeTrainer) -> None:
    module = OwnModule()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = (
            "enable_checkpointing",
            "num_sanity_val_steps",
            "logger",
            "enable_progress_bar",
            "enable_model_summary",
        )
        unset = dict.fromkeys(names if "barebones" in settings else ())
        trainer(Distillation(), PGBCallback(0.5), **unset, **settings).fit(module, make_loader(16), make_loader(8))
    assert is_pruned(find_encoder(module))
    assert "training_step" not in vars(module)
