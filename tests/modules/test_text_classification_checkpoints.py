"""Text classification: checkpoints, initial weights and invalid settings."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.fakes import quiet_trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification

Folder = Callable[..., Path]


# ---- checkpoints ------------------------------------------------------------------------------------------------


def test_a_checkpoint_loads_without_the_pretrained_folder(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    module = TextClassification(folder, task="sst2", learning_rate=1e-3)  # a Path, as Python users may give
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    shutil.rmtree(folder)
    saved = torch.load(tmp_path / "module.ckpt", weights_only=True)
    assert "fine_tuned_ckpt" not in saved["hyper_parameters"]
    loaded = TextClassification.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert loaded.learning_rate == 1e-3
    assert loaded.task == module.task
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=0, atol=0)


def test_fine_tuned_weights_are_loaded_and_their_file_is_not_needed_again(tiny: str, checkpoint: Path) -> None:
    torch.manual_seed(99)
    module = TextClassification(tiny, task="sst2", fine_tuned_ckpt=str(checkpoint))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    second = checkpoint.with_name("second.ckpt")
    trainer.save_checkpoint(second)
    checkpoint.unlink()
    loaded = TextClassification.load_from_checkpoint(second)
    torch.testing.assert_close(loaded.model.classifier.weight, module.model.classifier.weight)
    assert all(part.training for part in TextClassification(tiny, fine_tuned_ckpt=str(second)).modules())


def test_hf_config_reads_no_weights(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TextClassification(tiny, num_labels=3).hparams["hf_config"]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("read from disk or Hub")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", forbidden)
    monkeypatch.setattr(AutoConfig, "from_pretrained", forbidden)
    module = TextClassification("no/such/model", num_labels=3, hf_config=config)
    assert module.model.config.hidden_size == 48
    assert module.model.classifier.out_features == 3


def test_hf_config_gets_the_number_of_labels_of_the_task() -> None:
    config = {"model_type": "bert", "vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 24}
    assert TextClassification("any", task="mnli", hf_config=config).model.classifier.out_features == 3


def test_half_precision_weights_are_trained_in_single_precision(tiny: str, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(tiny).half().save_pretrained(tmp_path)
    module = TextClassification(str(tmp_path))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


# ---- invalid input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "imdb"}, r"task='imdb'.*cola, sst2"),
        ({"num_labels": 0}, "num_labels=0"),
        ({"task": "mnli", "num_labels": 2}, "num_labels=2 .*task='mnli'.* 3"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio=1\.5"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"fine_tuned_ckpt": "nowhere.ckpt"}, r"fine_tuned_ckpt='nowhere\.ckpt'"),
        ({"hf_config": {"hidden_size": 3}}, "hf_config .*'model_type'.* hidden_size"),
    ],
)
def test_the_error_for_an_invalid_setting_names_it(settings: dict[str, Any], message: str, tiny: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TextClassification(tiny, **settings)


def test_a_checkpoint_with_another_number_of_labels_is_rejected(tiny: str, checkpoint: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.* 2 labels.* 3"):
        TextClassification(tiny, task="mnli", fine_tuned_ckpt=str(checkpoint))


def test_a_checkpoint_of_another_model_is_rejected(checkpoint: Path, tiny_model_folder: Folder) -> None:
    other = str(tiny_model_folder("distilbert"))
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.* model_name_or_path='.*distilbert"):
        TextClassification(other, task="sst2", fine_tuned_ckpt=str(checkpoint))


def test_a_file_that_is_no_checkpoint_is_rejected(tiny: str, tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(MisconfigurationException, match=r"fine_tuned_ckpt=.* 'state_dict'.* weights"):
        TextClassification(tiny, fine_tuned_ckpt=str(tmp_path / "other.pt"))


def test_a_pretrained_head_with_another_number_of_labels_is_rejected(tiny: str, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"model_name_or_path=.* 3 labels.* 2"):
        TextClassification(str(tmp_path), task="rte")
    assert TextClassification(str(tmp_path), task="mnli").num_labels == 3


def test_data_with_another_number_of_labels_are_rejected(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    with pytest.raises(MisconfigurationException, match=r"num_labels=3.* 2"):
        quiet_trainer().fit(TextClassification(tiny, task="sst2"), data("mnli"))


def test_data_of_another_task_are_rejected(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    with pytest.raises(MisconfigurationException, match=r"task='mrpc'.* 'sst2'"):
        quiet_trainer().validate(TextClassification(tiny, task="sst2"), data("mrpc"), verbose=False)


def test_different_class_names_give_a_warning(
    tiny: str, data: Callable[..., GLUEDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TextClassification(tiny, task="sst2")
    module.model.config.id2label = {0: "class_1", 1: "class_0"}
    with pytest.warns(UserWarning, match="class_1, class_0.* class_0, class_1"):
        quiet_trainer().validate(module, data(), verbose=False)
    datamodule = data()
    for names in ({0: "CLASS_0", 1: "CLASS_1"}, {1: "class_1", 0: "class_0"}, {0: "class 0", 1: "Class-1"}):
        module.model.config.id2label = names
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The classes of the model")
            quiet_trainer().validate(module, datamodule, verbose=False)
    for given in (None, lambda: ["a", "b"], [0, 1]):  # of users' data modules
        monkeypatch.setattr(GLUEDataModule, "label_names", given)
        quiet_trainer().validate(module, datamodule, verbose=False)


def test_a_tokenizer_of_another_model_gives_a_warning_or_an_error(
    tiny: str, data: Callable[..., GLUEDataModule], tiny_model_folder: Folder, tmp_path: Path
) -> None:
    removed = tmp_path / "removed"
    shutil.copytree(tiny, removed)
    module, datamodule = TextClassification(str(removed), task="sst2"), data()
    shutil.rmtree(removed)  # as on another machine, where its tokenizer is not available
    with pytest.warns(UserWarning, match="tokenizer .*model_name_or_path='.*removed'"):
        quiet_trainer().validate(module, datamodule, verbose=False)
    small = str(tiny_model_folder("bert", vocab_size=5))
    shutil.copytree(tiny, tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The data's tokenizer")
        for same in (f"{tiny}/", Path(tiny), str(tmp_path / "copy")):
            module = TextClassification(same, task="sst2")
            quiet_trainer().validate(module, data(), verbose=False)
    with pytest.raises(MisconfigurationException, match=r" 5 tokens .*data\.model_name_or_path"):
        quiet_trainer().validate(TextClassification(small, task="sst2"), data(), verbose=False)


def test_settings_that_differ_from_a_resumed_optimizer_give_a_warning(
    tiny: str, data: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    first = quiet_trainer(max_epochs=1, limit_val_batches=0)
    first.fit(TextClassification(tiny, task="sst2", learning_rate=1e-3), data())
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    more = quiet_trainer(max_epochs=2, limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"^learning_rate=0\.01 .* 0\.001"):
        more.fit(TextClassification(tiny, task="sst2", learning_rate=1e-2), data(), ckpt_path=path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="learning_rate=.*optimizer")
        quiet_trainer(max_epochs=2, limit_val_batches=0).fit(
            TextClassification(tiny, task="sst2", learning_rate=1e-3), data(), ckpt_path=path
        )


def test_the_error_for_a_missing_model_names_it(glue_folder: Folder, tmp_path: Path) -> None:
    folder = str(glue_folder("sst2"))
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='.*missing': .*no such folder"):
        TextClassification(str(tmp_path / "missing"))
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='.*missing': .*no such folder"):
        GLUEDataModule("sst2", str(tmp_path / "missing"), folder).setup("fit")
    # What may be a name on the Hub, which tests do not reach.
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='me/missing': .*configuration"):
        TextClassification("me/missing")
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='me/missing': .*tokenizer"):
        GLUEDataModule("sst2", "me/missing", folder).setup("fit")


def test_the_error_for_a_damaged_model_names_it(tiny: str, glue_folder: Folder, tmp_path: Path) -> None:
    damaged, bare = tmp_path / "damaged", tmp_path / "bare"
    shutil.copytree(tiny, damaged)
    (damaged / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='.*damaged': .*weights"):
        TextClassification(str(damaged))
    AutoModelForSequenceClassification.from_pretrained(tiny).save_pretrained(bare)  # without its tokenizer
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='.*bare': .*special tokens"):
        GLUEDataModule("sst2", str(bare), str(glue_folder("sst2"))).setup("fit")


def test_a_subclass_with_its_own_optimizer_resumes_without_a_warning(
    tiny: str, data: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    class Own(TextClassification):
        def configure_optimizers(self) -> Any:
            return torch.optim.Rprop(self.parameters(), lr=1e-4)

    first = quiet_trainer(max_epochs=1, limit_val_batches=0)
    first.fit(Own(tiny, task="sst2"), data())
    first.save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="learning_rate=.*optimizer")
        second = quiet_trainer(max_epochs=2, limit_val_batches=0)
        second.fit(Own(tiny, task="sst2"), data(), ckpt_path=tmp_path / "last.ckpt")
    assert second.global_step == 2 * first.global_step


def test_the_data_module_of_the_previous_run_is_ignored(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    trainer, datamodule = quiet_trainer(), data()
    trainer.validate(TextClassification(tiny, task="mrpc"), data("mrpc"), verbose=False)
    datamodule.setup("validate")
    trainer.validate(TextClassification(tiny, task="sst2"), datamodule.val_dataloader(), verbose=False)
    assert "val_accuracy" in trainer.callback_metrics


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_head_for_another_problem_is_refused(problem: str, tiny: str, tmp_path: Path) -> None:
    stored = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3, problem_type=problem)
    stored.save_pretrained(tmp_path)
    with pytest.raises(MisconfigurationException, match=rf"problem_type='{problem}'.* num_labels=3"):
        TextClassification(str(tmp_path), num_labels=3)


def test_several_labels_are_refused_and_the_problem_of_an_encoder_does_not_matter(tiny: str, tmp_path: Path) -> None:
    config = TextClassification(tiny, num_labels=3).hparams["hf_config"]
    config |= {"problem_type": "multi_label_classification", "architectures": None}
    with pytest.raises(MisconfigurationException, match="problem_type='multi_label_classification'"):
        TextClassification("no/such/model", num_labels=3, hf_config=config)
    AutoModel.from_pretrained(tiny, problem_type="multi_label_classification").save_pretrained(tmp_path)
    assert TextClassification(str(tmp_path)).model.config.problem_type == "single_label_classification"
