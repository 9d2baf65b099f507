"""Text classification: optimizer, training, scores and class names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.fakes import quiet_trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from scipy import stats
from torch import nn

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.modules.optimizer import parameter_groups

Folder = Callable[..., Path]


# RoBERTa's positions start after that of the padding token.
@pytest.mark.parametrize(("model_type", "longest"), [("bert", 64), ("roberta", 63)])
def test_inputs_longer_than_the_position_embeddings_are_rejected(
    model_type: str, longest: int, tiny_model_folder: Folder, glue_folder: Folder, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder(model_type, max_position_embeddings=64), model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["model_max_length"]  # as in many saved tokenizers
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    data = GLUEDataModule("sst2", str(model), str(glue_folder("sst2")), max_length=longest + 1)
    with pytest.raises(MisconfigurationException, match=rf"max_length={longest + 1} .*1 to {longest}\."):
        quiet_trainer().fit(TextClassification(str(model), task="sst2"), datamodule=data)


# ---- optimizer --------------------------------------------------------------------------------------------------


def test_only_matrices_are_decayed(tiny: str) -> None:
    module = TextClassification(tiny, weight_decay=0.1)
    module.model.extra = nn.ParameterDict(
        {"weight": nn.Parameter(torch.ones(2, 3, 4)), "block_bias": nn.Parameter(torch.ones(2, 4))}
    )
    module.model.bert.embeddings.position_embeddings.requires_grad_(False)
    decayed, not_decayed = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    other_names = {names[id(parameter)] for parameter in not_decayed["params"]}
    assert all("LayerNorm" in name or name.endswith("bias") for name in other_names)
    assert not any("LayerNorm" in name or name.endswith("bias") for name in decayed_names)
    assert "model.extra.weight" in decayed_names
    assert "model.extra.block_bias" in other_names
    assert decayed_names | other_names | {"model.bert.embeddings.position_embeddings.weight"} == set(names.values())
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(names) - 1


def test_the_learning_rate_changes_every_step(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    class Record(L.Callback):
        rates: list[float]

        def on_fit_start(self, *_: Any) -> None:
            self.rates = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    record = Record()
    module = TextClassification(tiny, task="sst2", learning_rate=1e-3, warmup_ratio=0.25)
    quiet_trainer(max_epochs=2, callbacks=[record], limit_val_batches=0).fit(module, data(batch_size=25))
    # 8 steps: 2 of warm-up from zero, then 6 down to zero.
    expected = [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert record.rates == pytest.approx([1e-3 * fraction for fraction in expected])


def test_unlimited_training_is_rejected(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    with pytest.raises(MisconfigurationException, match="max_epochs or max_steps"):
        quiet_trainer(max_epochs=-1).fit(TextClassification(tiny, task="sst2"), data())


# ---- training and scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "mpnet"])
def test_it_learns(model_type: str, tiny_model_folder: Folder, glue_folder: Folder) -> None:
    L.seed_everything(0)
    folder = str(tiny_model_folder(model_type))
    module = TextClassification(folder, task="sst2", learning_rate=5e-3)
    rows = GLUEDataModule("sst2", folder, str(glue_folder("sst2", train=400)), max_length=32)
    trainer = quiet_trainer(max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(module, rows)
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert trainer.callback_metrics["train_loss"] < 0.4


def test_class_names_of_the_data_are_adopted(tiny: str, data: Callable[..., GLUEDataModule], tmp_path: Path) -> None:
    module = TextClassification(tiny, task="mnli")
    assert module.model.config.id2label[2] == "LABEL_2"
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data("mnli"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = {0: "class_0", 1: "class_1", 2: "class_2"}
    for named in (module, TextClassification.load_from_checkpoint(tmp_path / "last.ckpt")):
        assert named.model.config.id2label == names
        assert named.model.config.label2id == {name: number for number, name in names.items()}


def test_class_names_of_the_model_are_kept(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    module = TextClassification(tiny, task="sst2")
    module.model.config.id2label = {0: "bad", 1: "good"}
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, data())
    assert module.model.config.id2label == {0: "bad", 1: "good"}


def test_class_names_in_another_order_are_replaced(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    module = TextClassification(tiny, task="mnli")
    module.model.config.id2label = {0: "Class 2", 1: "Class 0", 2: "Class 1"}
    with pytest.warns(UserWarning, match="Class 2, Class 0, Class 1.* class_0"):
        quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, data("mnli"))
    assert module.model.config.id2label == {0: "class_0", 1: "class_1", 2: "class_2"}


def test_without_class_names_in_the_data_the_defaults_stay(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    module = TextClassification(tiny, task="sst2")
    datamodule = data()
    loaders = datamodule.train_dataloader(), datamodule.val_dataloader()
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, *loaders)
    assert module.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_dropout_is_on_in_training(tiny: str) -> None:
    module = TextClassification(tiny)
    assert all(part.training for part in module.modules())


def evaluate(module: TextClassification, rows: GLUEDataModule) -> tuple[dict[str, float], list[dict[str, np.ndarray]]]:
    """Return the logged scores, and the logits, predictions and labels of each loader."""
    trainer = quiet_trainer()
    trainer.validate(module, rows, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    loaders = rows.val_dataloader()
    loaders = loaders if isinstance(loaders, list) else [loaders]
    predicted = trainer.predict(module, loaders)
    predicted = predicted if len(loaders) > 1 else [predicted]
    found = []
    for loader, batches in zip(loaders, predicted, strict=True):
        joined = {key: torch.cat([batch[key] for batch in batches]).numpy() for key in ("logits", "predictions")}
        found.append({**joined, "labels": torch.cat([batch["labels"] for batch in loader]).numpy()})
    return logged, found


def randomize(module: TextClassification) -> TextClassification:
    """Set random weights that are large enough for different predictions."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=0.5)
    return module


def cross_entropy(found: dict[str, np.ndarray]) -> float:
    logits = found["logits"].astype(np.float64)
    log_sums = np.log(np.exp(logits).sum(1))
    return float((log_sums - logits[np.arange(len(logits)), found["labels"]]).mean())


def test_accuracy_f1_and_loss_are_exact(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    logged, (found,) = evaluate(randomize(TextClassification(tiny, task="mrpc")), data("mrpc"))
    predictions, labels = found["predictions"], found["labels"]
    assert set(predictions) == {0, 1}
    hits = ((predictions == 1) & (labels == 1)).sum()
    assert logged["val_accuracy"] == pytest.approx((predictions == labels).mean())
    assert logged["val_f1"] == pytest.approx(2 * hits / ((predictions == 1).sum() + (labels == 1).sum()))
    # 40 rows in batches of 16: the loss must be weighted by batch size.
    assert logged["val_loss"] == pytest.approx(cross_entropy(found), rel=1e-5)
    assert set(logged) == {"val_accuracy", "val_f1", "val_loss"}


def test_matthews_correlation_is_exact(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    logged, (found,) = evaluate(randomize(TextClassification(tiny, task="cola")), data("cola"))
    assert set(found["predictions"]) == {0, 1}
    assert logged["val_matthews"] == pytest.approx(np.corrcoef(found["predictions"], found["labels"])[0, 1], rel=1e-5)


def test_a_constant_prediction_has_zero_correlation() -> None:
    metrics = make_metrics(get_task("cola"), num_labels=2)
    metrics.update(torch.ones(40, dtype=torch.long), torch.tensor([0] * 28 + [1] * 12))
    assert metrics.compute()["matthews"] == 0


def test_regression_scores_and_loss_are_exact(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    logged, (found,) = evaluate(TextClassification(tiny, task="stsb"), data("stsb"))
    scores, labels = found["predictions"].astype(np.float64), found["labels"]
    assert scores.shape == (40,)
    assert logged["val_spearman"] == pytest.approx(stats.spearmanr(scores, labels).statistic, abs=1e-5)
    assert logged["val_pearson"] == pytest.approx(stats.pearsonr(scores, labels).statistic, abs=1e-3)
    assert logged["val_loss"] == pytest.approx(((scores - labels) ** 2).mean(), rel=1e-5)


def test_the_two_sets_of_mnli_are_scored_separately(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    logged, (matched, mismatched) = evaluate(randomize(TextClassification(tiny, task="mnli")), data("mnli"))
    for name, found in (("val", matched), ("val_mismatched", mismatched)):
        assert logged[f"{name}_accuracy"] == pytest.approx((found["predictions"] == found["labels"]).mean())
        assert logged[f"{name}_loss"] == pytest.approx(cross_entropy(found), rel=1e-5)
    assert len(logged) == 4


def test_scores_are_reset_in_every_run(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    module = randomize(TextClassification(tiny, task="sst2"))
    first, _ = evaluate(module, data())
    module.model.classifier.weight.data.neg_()
    module.model.classifier.bias.data.neg_()
    second, _ = evaluate(module, data())
    assert second["val_accuracy"] == pytest.approx(1 - first["val_accuracy"])


def test_testing_logs_with_its_own_prefix(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    trainer = quiet_trainer()
    (logged,) = trainer.test(TextClassification(tiny, task="sst2"), data(), verbose=False)
    assert set(logged) == {"test_loss", "test_accuracy"}


def test_prediction_does_not_need_labels(tiny: str) -> None:
    module = TextClassification(tiny, num_labels=3).eval()
    batch = {"input_ids": torch.tensor([[2, 5, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    output = module.predict_step(batch, 0)
    assert output["logits"].shape == (1, 3)
    assert output["predictions"].tolist() == output["logits"].argmax(1).tolist()
    with_labels = module.predict_step({**batch, "labels": torch.tensor([-1])}, 0)
    torch.testing.assert_close(with_labels["logits"], output["logits"])
