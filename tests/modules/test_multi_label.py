"""Text classification with several labels for each text, and models whose labels are adopted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.labeled import Labeled, loader, multi_label_batches
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.surgery.checks import is_pruned

MULTI = "multi_label_classification"
NAMES = ["joy", "anger", "fear"]


def make(model: str, **settings: Any) -> TextClassification:
    return TextClassification(model, **{"num_labels": 3, "problem_type": MULTI, **settings})


def save_head(model: str, folder: Path, **settings: Any) -> str:
    """Save a model for sequence classification."""
    AutoModelForSequenceClassification.from_pretrained(model, **settings).save_pretrained(folder)
    return str(folder)


def save(module: TextClassification, path: Path) -> str:
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


# ---- metrics ----------------------------------------------------------------------------------------------------


def score(predicted: list[list[int]], labels: list[list[int]]) -> dict[str, float]:
    metrics = make_metrics(None, len(labels[0]), multi_label=True)
    for part in (slice(0, 1), slice(1, None)):
        metrics.update(torch.tensor(predicted[part]), torch.tensor(labels[part]).float())
    return {name: float(value) for name, value in metrics.compute().items()}


def test_f1_of_several_labels() -> None:
    predicted = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    labels = [[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    # By label: 2 right, 1 missed: 4/5. 1 wrong, 1 missed: 0. 1 right, 1 wrong: 2/3. In all 3 right, 2 wrong, 2 missed.
    expected = {"f1_micro": 6 / 10, "f1_macro": (4 / 5 + 0 + 2 / 3) / 3}
    assert score(predicted, labels) == pytest.approx(expected, abs=1e-6)


def test_labels_that_never_occur_are_left_out_unless_they_are_predicted() -> None:
    labels = [[1, 0, 0], [1, 1, 0]]
    assert score(labels, labels) == pytest.approx({"f1_micro": 1, "f1_macro": 1}, abs=1e-6)
    expected = {"f1_micro": 6 / 7, "f1_macro": (1 + 1 + 0) / 3}
    assert score([[1, 0, 1], [1, 1, 0]], labels) == pytest.approx(expected, abs=1e-6)
    nothing = [[0, 0, 0], [0, 0, 0]]
    assert score(nothing, nothing) == {"f1_micro": 0, "f1_macro": 0}


# ---- training and prediction ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns(tiny: str) -> None:
    L.seed_everything(0)
    trainer = quiet_trainer(max_epochs=6, num_sanity_val_steps=0, check_val_every_n_epoch=6)
    trainer.fit(make(tiny, learning_rate=5e-3), Labeled(multi_label_batches(40, size=16)))
    assert trainer.callback_metrics["val_f1_micro"] > 0.9
    assert trainer.callback_metrics["val_f1_macro"] > 0.9


def test_loss_and_predictions(tiny: str) -> None:
    module = make(tiny, threshold=0.6).eval()
    module.model.classifier.weight.data.normal_(std=2.0)
    batches = multi_label_batches(3)
    [logged] = quiet_trainer().validate(module, loader(batches), verbose=False)
    outputs: Any = quiet_trainer().predict(module, loader(batches, labeled=False))
    logits, labels = torch.cat([each["logits"] for each in outputs]), torch.cat([each["labels"] for each in batches])
    predictions = torch.cat([each["predictions"] for each in outputs])
    assert predictions.dtype == torch.long
    assert torch.equal(predictions, (1 / (1 + (-logits).exp()) > 0.6).long())
    assert 0 < predictions.float().mean() < 1
    assert logged["val_loss"] == pytest.approx(float(binary_cross_entropy_with_logits(logits, labels)), rel=1e-5)
    hits = float((predictions * labels).sum())
    assert logged["val_f1_micro"] == pytest.approx(2 * hits / float(predictions.sum() + labels.sum()), abs=1e-6)
    assert set(logged) == {"val_loss", "val_f1_micro", "val_f1_macro"}


def test_a_pruned_model_is_restored_from_its_checkpoint(tiny: str, tmp_path: Path) -> None:
    data = Labeled(multi_label_batches(6), num_labels=3, label_names=NAMES, problem_type=MULTI)
    module = make(tiny, threshold=0.4)
    saver = ModelCheckpoint(tmp_path, "pruned")
    quiet_trainer(callbacks=[PGBCallback(0.5), saver], enable_checkpointing=True).fit(module, data)
    assert is_pruned(find_encoder(module))
    loaded = TextClassification.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    assert (loaded.problem_type, loaded.num_labels, loaded.threshold) == (MULTI, 3, 0.4)
    assert loaded.model.config.problem_type == MULTI
    assert loaded.model.config.id2label == dict(enumerate(NAMES))
    rows: list[Any] = [quiet_trainer().predict(each, loader(data.batches, labeled=False)) for each in (module, loaded)]
    assert all(torch.equal(first["logits"], other["logits"]) for first, other in zip(*rows, strict=True))


# ---- labels of a fine-tuned model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "num_labels", "problem"),
    [
        ({"num_labels": 3, "problem_type": MULTI}, 3, MULTI),
        ({"num_labels": 3}, 3, "single_label_classification"),
        ({"num_labels": 1}, 1, "regression"),
        ({"num_labels": 1, "problem_type": "regression"}, 1, "regression"),
        ({"num_labels": 2, "problem_type": MULTI}, 2, MULTI),
    ],
)
def test_the_labels_of_a_fine_tuned_model_are_adopted(
    stored: dict[str, Any], num_labels: int, problem: str, tiny: str, tmp_path: Path
) -> None:
    folder = save_head(tiny, tmp_path / "model", **stored)
    module = TextClassification(folder)
    assert (module.num_labels, module.problem_type, module.model.config.problem_type) == (num_labels, problem, problem)
    head = AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
    assert torch.equal(module.model.classifier.weight, head)
    path = save(module, tmp_path / "module.ckpt")
    for again in (TextClassification.load_from_checkpoint(path), TextClassification(folder, fine_tuned_ckpt=path)):
        assert (again.num_labels, again.problem_type) == (num_labels, problem)
        assert torch.equal(again.model.classifier.weight, head)


def test_settings_take_precedence_over_what_a_fine_tuned_model_does_not_say(tiny: str, tmp_path: Path) -> None:
    folder = save_head(tiny, tmp_path, num_labels=4)
    module = TextClassification(folder, problem_type=MULTI)
    assert (module.num_labels, module.problem_type) == (4, MULTI)


def test_the_labels_of_an_encoder_are_not_adopted(tiny_model_folder: Callable[..., Path]) -> None:
    folder = str(tiny_model_folder("bert", num_labels=5, problem_type=MULTI))
    assert TextClassification(folder).num_labels == 2
    assert TextClassification(folder, problem_type="regression").num_labels == 1


def test_a_checkpoint_from_before_there_were_problem_types_loads(tiny: str, tmp_path: Path) -> None:
    path = save(TextClassification(tiny), tmp_path / "module.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for name in ("problem_type", "threshold"):
        del checkpoint["hyper_parameters"][name]
    checkpoint["hyper_parameters"]["num_labels"] = None
    torch.save(checkpoint, path)
    assert TextClassification.load_from_checkpoint(path).num_labels == 2


def test_a_subclass_may_choose_the_settings(tiny: str) -> None:
    class Emotions(TextClassification):
        def __init__(self, model: str) -> None:
            super().__init__(model, num_labels=3, problem_type=MULTI)

    module = Emotions(tiny)
    assert isinstance(module.model.classifier.weight, Tensor)
    assert (module.num_labels, module.problem_type) == (3, MULTI)


# ---- invalid input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_type": "multilabel"}, "problem_type='multilabel'.*'multi_label_classification'"),
        ({"problem_type": MULTI}, "num_labels=None.*problem_type='multi_label_classification'"),
        ({"problem_type": MULTI, "num_labels": 1}, "num_labels=1 .*problem_type='multi_label_classification'"),
        ({"problem_type": "regression", "num_labels": 3}, "num_labels=3 .*problem_type='regression'.*num_labels=1"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "num_labels=1 .*problem_type='single_label"),
        ({"problem_type": MULTI, "task": "sst2"}, f"problem_type='{MULTI}'.*task='sst2'.*'single_label_class"),
        ({"problem_type": "regression", "task": "mnli"}, "problem_type='regression'.*task='mnli'"),
        ({"problem_type": MULTI, "num_labels": 3, "threshold": 1.0}, r"threshold=1\.0"),
        ({"problem_type": MULTI, "num_labels": 3, "threshold": -0.1}, r"threshold=-0\.1"),
        ({"threshold": 0.3}, r"threshold=0\.3.*problem_type='single_label_classification'"),
    ],
)
def test_the_error_for_an_invalid_setting_names_it(settings: dict[str, Any], message: str, tiny: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TextClassification(tiny, **settings)


def test_a_fine_tuned_model_with_several_numbers_is_refused(tiny: str, tmp_path: Path) -> None:
    folder = save_head(tiny, tmp_path, num_labels=3, problem_type="regression")
    with pytest.raises(MisconfigurationException, match=r"num_labels=3 of model_name_or_path=.*'regression'"):
        TextClassification(folder)


def test_a_head_for_another_problem_is_refused(tiny: str, tmp_path: Path) -> None:
    folder = save_head(tiny, tmp_path / "single", num_labels=3, problem_type="single_label_classification")
    with pytest.raises(MisconfigurationException, match=r"problem_type='single_label_classification'.*'multi_label"):
        make(folder)
    path = save(make(tiny), tmp_path / "multi.ckpt")
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.*problem_type='multi_label.*'single_label"):
        TextClassification(tiny, num_labels=3, fine_tuned_ckpt=path)
    assert make(tiny, fine_tuned_ckpt=path).num_labels == 3


@pytest.mark.parametrize("problem", ["single_label_classification", "token_classification", "regression"])
def test_data_for_another_problem_are_rejected(problem: str, tiny: str) -> None:
    data = Labeled(multi_label_batches(1), num_labels=3, problem_type=problem)
    with pytest.raises(MisconfigurationException, match=f"problem_type='{problem}'.*TextClassification.*'{MULTI}'"):
        quiet_trainer().fit(make(tiny), data)


def test_data_without_a_problem_type_are_accepted(tiny: str) -> None:
    for data in (Labeled(multi_label_batches(1)), Labeled(multi_label_batches(1), problem_type=None, label_names=None)):
        quiet_trainer().validate(make(tiny), data, verbose=False)
