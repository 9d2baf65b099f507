"""Distillation in fits: any module, a teacher made before pruning, not in checkpoints, restored when resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from helpers.tiny import VOCABULARY
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from pgb_lightning.callbacks import Distillation, PGBCallback, distillation
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


def test_distillation_brings_the_pruned_model_closer_to_the_dense_one(trainer: MakeTrainer) -> None:
    """The sum of the losses is trained and logged; after the fit the module is unchanged."""
    distances = []
    for weight in (0.0, 20.0):
        module, dense = OwnModule(), OwnModule()
        callback = Distillation(task_weight=1.0, logits_weight=1e-9, hidden_weight=weight)
        torch.manual_seed(0)
        fit = trainer(PGBCallback(0.6), callback, max_epochs=4)
        fit.fit(module, make_loader())
        assert is_pruned(find_encoder(module))
        assert "training_step" not in vars(module)
        assert callback.teacher is not None
        for name, value in dense.net.state_dict().items():
            assert torch.equal(callback.teacher.model.state_dict()[name], value)
        assert "train_distillation" in fit.callback_metrics
        assert not any("teacher" in name for name in module.state_dict())
        tokens = next(iter(make_loader()))[0]
        with torch.no_grad():
            hidden = [m.eval()(tokens, output_hidden_states=True).hidden_states[-1] for m in (module.net, dense.net)]
        distances.append(float(nn.functional.mse_loss(*hidden)))
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.parametrize("task_weight", [0.0, 1.0, 0.5])
def test_the_loss_is_two_terms_and_the_modules_own(task_weight: float, trainer: MakeTrainer) -> None:
    class LossRecorder(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.eval()
            self.own: list[float] = []
            self.trained: list[float] = []

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = super().loss(batch)
            if torch.is_grad_enabled():
                self.own.append(float(loss))
            return loss

        def on_before_backward(self, loss: Tensor) -> None:
            self.trained.append(float(loss))

    class OtherTeacher(Distillation):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            assert self.teacher is not None
            self.teacher.model.load_state_dict(other.state_dict())

    module, other = LossRecorder(), OwnModule(seed=1).net.eval()
    fit = trainer(OtherTeacher(3.0, task_weight, 0.5, 0.25), limit_train_batches=1)
    fit.fit(module, make_loader())
    [own], [trained] = module.own, module.trained
    tokens = next(iter(make_loader()))[0]
    with torch.no_grad():
        output, target = (net(tokens, output_hidden_states=True) for net in (OwnModule().net.eval(), other))
    soft = [(each.logits / 3).log_softmax(-1) for each in (output, target)]
    scores = 9 * nn.functional.kl_div(*soft, reduction="batchmean", log_target=True)
    pairs = list(zip(output.hidden_states, target.hidden_states, strict=True))[1:]
    hidden = sum((one - other).square().sum() / other.square().sum() for one, other in pairs) / len(pairs)
    distillation = trained - task_weight * own
    assert distillation == pytest.approx(float(0.5 * scores + 0.25 * hidden), rel=1e-4)
    assert fit.callback_metrics["train_distillation"] == pytest.approx(distillation, rel=1e-4)
    assert fit.callback_metrics["train_loss"] == pytest.approx(own)


def test_the_teacher_is_not_in_checkpoints_and_must_be_the_same(trainer: MakeTrainer, tmp_path: Path) -> None:
    sizes = {}
    for name, callbacks in {"without": [], "with": [Distillation()]}.items():
        saver = ModelCheckpoint(tmp_path / name, filename="end")
        trainer(PGBCallback(0.5), *callbacks, saver, enable_checkpointing=True).fit(OwnModule(), make_loader())
        sizes[name] = (tmp_path / name / "end.ckpt").stat().st_size
    assert abs(sizes["with"] - sizes["without"]) < 2000
    end = tmp_path / "with" / "end.ckpt"
    dense = tmp_path / "dense.ckpt"
    torch.save({"state_dict": OwnModule().state_dict()}, dense)

    def resume(module: L.LightningModule, callback: Distillation) -> None:
        trainer(PGBCallback(0.5), callback, max_epochs=2).fit(module, make_loader(), ckpt_path=end)

    resume(OwnModule(), Distillation())
    resume(OwnModule(seed=1), Distillation(teacher=dense))
    with pytest.raises(MisconfigurationException, match=r"ckpt_path.*teacher="):
        resume(OwnModule(seed=1), Distillation())

    # A resume that fails before the teachers are compared has no effect on the next fit.
    shared, failing = Distillation(), LambdaCallback(on_load_checkpoint=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer(PGBCallback(0.5), shared, failing).fit(OwnModule(), make_loader(), ckpt_path=end)
    trainer(PGBCallback(0.5), shared).fit(OwnModule(seed=1), make_loader())


def test_a_second_fit_keeps_the_teacher(trainer: MakeTrainer, tmp_path: Path) -> None:
    module, callback, pgb = OwnModule(), Distillation(), PGBCallback(0.5)
    trainer(pgb, callback).fit(module, make_loader())
    first = callback.teacher
    trainer(pgb, callback).fit(module, make_loader())
    assert callback.teacher is first
    with pytest.raises(MisconfigurationException, match="teacher="):
        trainer(Distillation()).fit(module, make_loader())
    torch.save({"state_dict": OwnModule().state_dict()}, tmp_path / "dense.ckpt")
    again = Distillation(teacher=tmp_path / "dense.ckpt")
    trainer(again).fit(module, make_loader())
    assert again.teacher is not None
    assert first is not None
    assert again.teacher.fingerprint == first.fingerprint


def test_a_module_with_its_own_head_learns_from_hidden_states(trainer: MakeTrainer) -> None:
    class OwnHead(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = self.net.bert
            self.head = nn.Linear(24, 2)

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            tokens, labels = batch
            return nn.functional.cross_entropy(self.head(self.net(tokens).pooler_output), labels)

    fit = trainer(PGBCallback(0.5), Distillation(logits_weight=0))
    fit.fit(OwnHead(), make_loader())
    assert fit.callback_metrics["train_distillation"] > 0
    module = OwnHead()
    with pytest.raises(MisconfigurationException, match=r"logits_weight=1\.0.*BertModel.*logits_weight=0"):
        trainer(PGBCallback(0.5), Distillation()).fit(module, make_loader())
    assert not is_pruned(find_encoder(module))
    assert "training_step" not in vars(module)


def test_missing_logits_are_refused_in_the_first_step(trainer: MakeTrainer) -> None:
    class Tuples(OwnModule):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(input_ids=batch[0], labels=batch[1], return_dict=False)[0]  # type: ignore[no-any-return]

    module = Tuples()
    with pytest.raises(MisconfigurationException, match=r"logits.*logits_weight=0"):
        trainer(PGBCallback(0.5), Distillation()).fit(module, make_loader())
    assert "training_step" not in vars(module)


@pytest.mark.parametrize("kind", ["regression", "answers"])
def test_regression_and_question_answering(kind: str, trainer: MakeTrainer) -> None:
    class Other(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = BertConfig(**sizes, intermediate_size=96, num_labels=1, problem_type="regression")
            if kind == "regression":
                self.net = BertForSequenceClassification(config)
            else:
                self.net = BertForQuestionAnswering(config)
                self.net.qa_outputs = nn.Linear(24, 2)

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            tokens, labels = batch
            if kind == "regression":
                return self.net(input_ids=tokens, labels=labels.float()).loss
            return self.net(input_ids=tokens, start_positions=labels, end_positions=labels + 1).loss

    callback = Distillation(hidden_weight=0)
    fit = trainer(PGBCallback(0.5), callback)
    fit.fit(Other(), make_loader())
    assert 0 < fit.callback_metrics["train_distillation"] < 1


def test_unsupported_modules_and_strategies_are_refused(
    trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Manual(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    class NoCall(OwnModule):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            return self.net.classifier.weight.sum()

    class Late(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            vars(self)["later"] = self._modules.pop("net")  # hidden from named_modules

        def configure_model(self) -> None:
            self.net = vars(self).pop("later")

    with pytest.raises(MisconfigurationException, match="__init__"):
        trainer(Distillation()).fit(Late(), make_loader())
    with pytest.raises(MisconfigurationException, match="automatic_optimization=False"):
        trainer(Distillation()).fit(Manual(), make_loader())
    with pytest.raises(MisconfigurationException, match=r"NoCall\.training_step.*BertForSequenceClass"):
        trainer(Distillation()).fit(NoCall(), make_loader())
    monkeypatch.setattr(distillation, "shards_before_restore", lambda trainer: True)
    with pytest.raises(MisconfigurationException, match="strategy="):
        trainer(Distillation()).fit(OwnModule(), make_loader())
    monkeypatch.undo()
    torch.save({"state_dict": {"net.other": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(MisconfigurationException, match=r"other\.ckpt"):
        trainer(Distillation(teacher=tmp_path / "other.ckpt")).fit(OwnModule(), make_loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"task_weight": -1.0}, r"task_weight=-1\.0"),
        ({"layers": "first"}, "layers='first'"),
        ({"layers": []}, r"layers=\[\]"),
        ({"layers": [1, 1]}, r"layers=\[1, 1\]"),
        ({"layers": [-1]}, r"layers=\[-1\]"),
        ({"layers": [True]}, r"layers=\[True\]"),
        ({"logits_weight": -1.0}, r"logits_weight=-1\.0"),
        ({"hidden_weight": float("nan")}, "hidden_weight=nan"),
        ({"logits_weight": 0.0, "hidden_weight": 0.0}, "logits_weight=0 and hidden_weight=0"),
        ({"teacher": "nowhere.ckpt"}, r"teacher='nowhere\.ckpt'"),
    ],
)
def test_invalid_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Distillation(**settings)


@pytest.mark.slow
def test_every_process_has_its_own_teacher(two_processes: Path) -> None:
    first, second = (torch.load(two_processes / "distillation" / f"rank{rank}.pt") for rank in range(2))
    assert first["teacher"] == second["teacher"]
    assert (first["computed"], second["computed"]) == (24, 24)  # the second epoch reads what both have computed
    assert not first["still_wrapped"]
    assert not second["still_wrapped"]
    assert all(torch.equal(first["state"][name], value) for name, value in second["state"].items())
