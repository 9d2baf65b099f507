"""Token classification: training, scores, pruning, class names and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.labeled import TAGS, Labeled, loader, token_batches
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import TextClassification, TokenClassification
from pgb_lightning.modules.entity_metrics import EntityMetric
from pgb_lightning.surgery.checks import is_pruned

Folder = Callable[..., Path]
ENTITY_SCORES = {"val_loss", "val_f1", "val_precision", "val_recall", "val_accuracy"}


def make_data(count: int = 3, names: Any = TAGS, **attributes: Any) -> Labeled:
    settings = {"num_labels": 5, "label_names": names, "problem_type": "token_classification", **attributes}
    return Labeled(token_batches(count), **settings)


def save(module: L.LightningModule, path: Path) -> str:
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def randomize(module: TokenClassification) -> TokenClassification:
    module.model.classifier.weight.data.normal_(std=2.0)
    return module


def predict(module: TokenClassification, data: Labeled, labeled: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits, predictions and labels of scored tokens."""
    outputs: Any = quiet_trainer().predict(module, loader(data.batches, labeled))
    scored = [batch["labels"] != -100 for batch in data.batches]
    parts = [
        torch.cat([each[name][mask] for each, mask in zip(source, scored, strict=True)])
        for source, name in ((outputs, "logits"), (outputs, "predictions"), (data.batches, "labels"))
    ]
    return parts[0], parts[1], parts[2]


# ---- training and scores ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
def test_it_learns(model_type: str, tiny_model_folder: Folder) -> None:
    L.seed_everything(0)
    module = TokenClassification(str(tiny_model_folder(model_type)), num_labels=5, learning_rate=5e-3)
    trainer = quiet_trainer(max_epochs=4, num_sanity_val_steps=0, check_val_every_n_epoch=4)
    trainer.fit(module, make_data(40))
    assert trainer.callback_metrics["val_f1"] > 0.9
    assert trainer.callback_metrics["val_accuracy"] > 0.9


def test_scores_and_loss_are_those_of_the_predictions(tiny: str) -> None:
    module, data = randomize(TokenClassification(tiny, num_labels=5)).eval(), make_data()
    [logged] = quiet_trainer().validate(module, data, verbose=False)
    assert logged.keys() == ENTITY_SCORES
    logits, predictions, labels = predict(module, data)
    assert logged["val_loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx(float((predictions == labels).float().mean()), abs=1e-6)
    metric = EntityMetric(TAGS)
    for batch, outputs in zip(data.batches, quiet_trainer().predict(module, loader(data.batches)), strict=True):  # type: ignore[arg-type]
        metric.update(outputs["predictions"], batch["labels"])
    expected = {f"val_{name}": pytest.approx(float(value), abs=1e-6) for name, value in metric.compute().items()}
    assert expected == {name: value for name, value in logged.items() if name != "val_loss"}
    assert 0 < logged["val_f1"] < 1


def test_classes_that_are_no_tags_have_accuracy_and_macro_f1(tiny: str) -> None:
    data = make_data(names=["NOUN", "VERB", "ADJ", "DET", "X"])
    module = randomize(TokenClassification(tiny, num_labels=5))
    [logged] = quiet_trainer().test(module, data, verbose=False)
    assert logged.keys() == {"test_loss", "test_accuracy", "test_f1_macro"}
    _, predictions, labels = predict(module, data)
    f1 = []
    for number in range(5):
        predicted, wanted = predictions == number, labels == number
        f1.append(2 * float((predicted & wanted).sum()) / float(predicted.sum() + wanted.sum()))
    assert logged["test_f1_macro"] == pytest.approx(sum(f1) / 5, abs=1e-6)
    assert logged["test_accuracy"] == pytest.approx(float((predictions == labels).float().mean()), abs=1e-6)


def test_a_batch_without_scored_tokens_does_not_spoil_the_loss(tiny: str) -> None:
    data = make_data(2)
    module = TokenClassification(tiny, num_labels=5)
    [expected] = quiet_trainer().validate(module, data, verbose=False)
    empty = {**data.batches[0], "labels": torch.full_like(data.batches[0]["labels"], -100)}
    data.batches.append(empty)
    [logged] = quiet_trainer().validate(module, data, verbose=False)
    assert logged == pytest.approx(expected)


def test_a_process_without_scored_tokens_logs_the_same_names(tiny: str) -> None:
    """Processes that log other names wait for each other without end."""
    data = make_data(2)
    module = TokenClassification(tiny, num_labels=5)
    [expected] = quiet_trainer().validate(module, data, verbose=False)
    for batch in data.batches:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    [logged] = quiet_trainer().validate(module, data, verbose=False)
    assert logged.keys() == expected.keys()
    assert math.isnan(logged["val_loss"])


def test_predictions_of_padding_are_left_out(tiny: str) -> None:
    module = TokenClassification(tiny, num_labels=5).eval()
    [batch] = token_batches(1)
    outputs = module.predict_step(batch, 0)
    mask = batch["attention_mask"] == 1
    assert outputs["logits"].shape == (*mask.shape, 5)
    assert torch.equal(outputs["predictions"] == -100, ~mask)
    assert torch.equal(outputs["predictions"][mask], outputs["logits"].argmax(-1)[mask])
    without_mask = module.predict_step({"input_ids": batch["input_ids"]}, 0)
    assert torch.equal(without_mask["predictions"], without_mask["logits"].argmax(-1))


# ---- class names ------------------------------------------------------------------------------------------------


def test_class_names_of_the_data_are_adopted(tiny: str, tmp_path: Path) -> None:
    module = TokenClassification(tiny, num_labels=5)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = TokenClassification.load_from_checkpoint(tmp_path / "last.ckpt")
    assert module.model.config.id2label == loaded.model.config.id2label == dict(enumerate(TAGS))
    [logged] = quiet_trainer().validate(loaded, loader(token_batches(1)), verbose=False)  # loaders have no names
    assert logged.keys() == ENTITY_SCORES


def test_the_names_of_the_model_decide_how_it_is_scored(tiny: str) -> None:
    module = TokenClassification(tiny, num_labels=5)
    module.model.config.id2label = dict(enumerate(["O", "B-A", "I-A", "B-B", "I-B"]))
    with pytest.warns(UserWarning, match="B-A, I-A.* NOUN, VERB"):
        [logged] = quiet_trainer().validate(
            module, make_data(1, names=["NOUN", "VERB", "ADJ", "DET", "X"]), verbose=False
        )
    assert logged.keys() == ENTITY_SCORES


# ---- models and checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"])
def test_a_pruned_model_is_restored_from_its_checkpoint(
    model_type: str, tiny_model_folder: Folder, tmp_path: Path
) -> None:
    data = make_data(6)
    module = TokenClassification(str(tiny_model_folder(model_type)), num_labels=5, embedding_learning_rate=0.0)
    saver = ModelCheckpoint(tmp_path, "pruned")
    quiet_trainer(callbacks=[PGBCallback(0.4), saver], enable_checkpointing=True).fit(module, data)
    assert is_pruned(find_encoder(module))
    loaded = TokenClassification.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    assert (loaded.num_labels, loaded.embedding_learning_rate) == (5, 0.0)
    assert torch.equal(predict(loaded, data)[0], predict(module, data)[0])


def test_the_classes_of_a_fine_tuned_model_are_adopted(tiny: str, tmp_path: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(tiny, id2label=dict(enumerate(TAGS)))
    model.save_pretrained(tmp_path / "model")
    module = TokenClassification(str(tmp_path / "model"))
    assert module.num_labels == 5
    assert module.model.config.id2label == dict(enumerate(TAGS))
    assert torch.equal(module.model.classifier.weight, model.classifier.weight)
    path = save(module, tmp_path / "module.ckpt")
    for again in (
        TokenClassification.load_from_checkpoint(path),
        TokenClassification(str(tmp_path / "model"), fine_tuned_ckpt=path),
        TokenClassification(tiny, num_labels=5, fine_tuned_ckpt=path),
    ):
        assert again.num_labels == 5
        assert torch.equal(again.model.classifier.weight, model.classifier.weight)


def test_the_problem_of_a_classifier_of_texts_is_not_kept(tiny_model_folder: Folder) -> None:
    folder = str(tiny_model_folder("bert", num_labels=3, problem_type="multi_label_classification"))
    assert TokenClassification(folder, num_labels=5).model.config.problem_type is None


# ---- invalid input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "num_labels=None.*model_name_or_path="),
        ({"num_labels": 1}, "num_labels=1 "),
        ({"num_labels": 5, "learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"num_labels": 5, "embedding_learning_rate": -1.0}, r"embedding_learning_rate=-1\.0"),
        ({"num_labels": 5, "fine_tuned_ckpt": "none.ckpt"}, r"fine_tuned_ckpt='none\.ckpt'"),
    ],
)
def test_the_error_for_an_invalid_setting_names_it(settings: dict[str, Any], message: str, tiny: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TokenClassification(tiny, **settings)


def test_heads_of_another_size_are_refused(tiny: str, tmp_path: Path) -> None:
    AutoModelForTokenClassification.from_pretrained(tiny, num_labels=3).save_pretrained(tmp_path / "model")
    with pytest.raises(MisconfigurationException, match=r"model_name_or_path=.* 3 labels.* 5"):
        TokenClassification(str(tmp_path / "model"), num_labels=5)
    path = save(TokenClassification(tiny, num_labels=3), tmp_path / "three.ckpt")
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.* 3 labels.* 5"):
        TokenClassification(tiny, num_labels=5, fine_tuned_ckpt=path)


def test_a_checkpoint_of_a_classifier_of_texts_is_refused(tiny: str, tmp_path: Path) -> None:
    path = save(TextClassification(tiny, num_labels=5), tmp_path / "texts.ckpt")
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.*model_name_or_path="):
        TokenClassification(tiny, num_labels=5, fine_tuned_ckpt=path)


def test_data_with_other_labels_are_rejected(tiny: str) -> None:
    module = TokenClassification(tiny, num_labels=5)
    with pytest.raises(MisconfigurationException, match=r"num_labels=9.* 5"):
        quiet_trainer().fit(module, make_data(num_labels=9))
    data = make_data(problem_type="single_label_classification")
    with pytest.raises(MisconfigurationException, match=r"problem_type='single_label.*'token_classification'"):
        quiet_trainer().fit(module, data)
