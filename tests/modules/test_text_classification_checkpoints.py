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
from transformers import AutoConfig, AutoModelForSequenceClassification

from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification

Folder = Callable[..., Path]


# ---- checkpoints ----------------------------------------------------------------------------------------------


def test_a_checkpoint_loads_without_the_folder_it_came_from(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    module = TextClassification(folder, task="sst2", learning_rate=1e-3)  # a Path, as Python users give
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


def test_fine_tuned_weights_are_taken_over_and_the_file_is_then_free(tiny: str, checkpoint: Path) -> None:
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


def test_a_configuration_alone_reads_no_weights(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TextClassification(tiny, num_labels=3).hparams["hf_config"]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("read from disk or Hub")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", forbidden)
    monkeypatch.setattr(AutoConfig, "from_pretrained", forbidden)
    module = TextClassification("gone/away", num_labels=3, hf_config=config)
    assert module.model.config.hidden_size == 48
    assert module.model.classifier.out_features == 3


def test_a_hand_written_configuration_takes_the_tasks_labels() -> None:
    config = {"model_type": "bert", "vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 24}
    assert TextClassification("any", task="mnli", hf_config=config).model.classifier.out_features == 3


def test_half_precision_weights_are_trained_in_single(tiny: str, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(tiny).half().save_pretrained(tmp_path)
    module = TextClassification(str(tmp_path))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "imdb"}, r"task='imdb'.*cola, sst2"),
        ({"num_labels": 0}, r"num_labels=0 is out of range"),
        ({"task": "mnli", "num_labels": 2}, r"num_labels=2 contradicts task='mnli', which has 3"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio=1\.5 .*0 to 1"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"fine_tuned_ckpt": "nowhere.ckpt"}, r"fine_tuned_ckpt='nowhere\.ckpt' is not a file"),
        ({"hf_config": {"hidden_size": 3}}, r"no 'model_type', only hidden_size"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str, tiny: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TextClassification(tiny, **settings)


def test_a_checkpoint_with_another_number_of_labels_names_both(tiny: str, checkpoint: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"head for 2 labels, this module one for 3"):
        TextClassification(tiny, task="mnli", fine_tuned_ckpt=str(checkpoint))


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path, tiny_model_folder: Folder) -> None:
    other = str(tiny_model_folder("distilbert"))
    with pytest.raises(MisconfigurationException, match=r"does not fit model_name_or_path='.*distilbert"):
        TextClassification(other, task="sst2", fine_tuned_ckpt=str(checkpoint))


def test_a_file_that_is_no_checkpoint_is_refused(tiny: str, tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(MisconfigurationException, match=r"no 'state_dict', only weights"):
        TextClassification(tiny, fine_tuned_ckpt=str(tmp_path / "other.pt"))


def test_a_pretrained_head_with_another_number_of_labels_names_both(tiny: str, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"head for 3 labels, this module one for 2"):
        TextClassification(str(tmp_path), task="rte")
    assert TextClassification(str(tmp_path), task="mnli").num_labels == 3


def test_data_with_another_number_of_labels_is_refused(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    with pytest.raises(MisconfigurationException, match=r"num_labels=3, the model has 2"):
        quiet_trainer().fit(TextClassification(tiny, task="sst2"), data("mnli"))


def test_data_of_another_task_is_refused(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    with pytest.raises(MisconfigurationException, match=r"data are of task='mrpc', the model is for 'sst2'; give a"):
        quiet_trainer().validate(TextClassification(tiny, task="sst2"), data("mrpc"), verbose=False)


def test_classes_of_other_names_are_mentioned(
    tiny: str, data: Callable[..., GLUEDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TextClassification(tiny, task="sst2")
    module.model.config.id2label = {0: "class_1", 1: "class_0"}
    with pytest.warns(
        UserWarning, match=r"The model calls its classes class_1, class_0, the data class_0, class_1; if"
    ):
        quiet_trainer().validate(module, data(), verbose=False)
    served = data()
    for names in ({0: "CLASS_0", 1: "CLASS_1"}, {1: "class_1", 0: "class_0"}, {0: "class 0", 1: "Class-1"}):
        module.model.config.id2label = names
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The model calls its classes")
            quiet_trainer().validate(module, served, verbose=False)
    for given in (None, lambda: ["a", "b"], [0, 1]):  # of other people's data modules
        monkeypatch.setattr(GLUEDataModule, "label_names", given)
        quiet_trainer().validate(module, served, verbose=False)


def test_a_tokenizer_of_another_model_is_mentioned_or_refused(
    tiny: str, data: Callable[..., GLUEDataModule], tiny_model_folder: Folder, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(tiny, gone)
    module, served = TextClassification(str(gone), task="sst2"), data()
    shutil.rmtree(gone)  # as on another machine: nobody knows what its tokenizer was
    with pytest.warns(UserWarning, match=r"tokenizer is of model_name_or_path='.*', the model of '.*gone': unless"):
        quiet_trainer().validate(module, served, verbose=False)
    small = str(tiny_model_folder("bert", vocab_size=5))
    shutil.copytree(tiny, tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The data's tokenizer")
        for same in (f"{tiny}/", Path(tiny), str(tmp_path / "copy")):
            module = TextClassification(same, task="sst2")
            quiet_trainer().validate(module, data(), verbose=False)
    with pytest.raises(
        MisconfigurationException, match=r"which has 5 tokens and not \d+; set data.model_name_or_path to"
    ):
        quiet_trainer().validate(TextClassification(small, task="sst2"), data(), verbose=False)


def test_settings_that_a_resumed_optimizer_ignores_are_mentioned(
    tiny: str, data: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    first = quiet_trainer(max_epochs=1, limit_val_batches=0)
    first.fit(TextClassification(tiny, task="sst2", learning_rate=1e-3), data())
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    more = quiet_trainer(max_epochs=2, limit_val_batches=0)
    with pytest.warns(UserWarning, match=r"^learning_rate=0\.01 changes nothing: the optimizer .* goes on with 0\.001"):
        more.fit(TextClassification(tiny, task="sst2", learning_rate=1e-2), data(), ckpt_path=path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changes nothing")
        quiet_trainer(max_epochs=2, limit_val_batches=0).fit(
            TextClassification(tiny, task="sst2", learning_rate=1e-3), data(), ckpt_path=path
        )


def test_a_model_that_cannot_be_read_is_named(glue_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException,
        match=r"^model_name_or_path='.*nobody': its configuration cannot be read",
    ):
        TextClassification(str(tmp_path / "nobody"))
    with pytest.raises(
        MisconfigurationException, match=r"^model_name_or_path='.*nobody': its tokenizer cannot be read"
    ):
        GLUEDataModule("sst2", str(tmp_path / "nobody"), str(glue_folder("sst2"))).setup("fit")


def test_a_damaged_model_is_named_too(tiny: str, glue_folder: Folder, tmp_path: Path) -> None:
    cut, bare = tmp_path / "cut", tmp_path / "bare"
    shutil.copytree(tiny, cut)
    (cut / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(MisconfigurationException, match=r"^model_name_or_path='.*cut': its weights cannot be read"):
        TextClassification(str(cut))
    AutoModelForSequenceClassification.from_pretrained(tiny).save_pretrained(bare)  # without its tokenizer
    with pytest.raises(MisconfigurationException, match=r"bare': its tokenizer has special tokens only"):
        GLUEDataModule("sst2", str(bare), str(glue_folder("sst2"))).setup("fit")


def test_a_subclass_with_its_own_optimizer_resumes_in_peace(
    tiny: str, data: Callable[..., GLUEDataModule], tmp_path: Path
) -> None:
    class Own(TextClassification):
        def configure_optimizers(self) -> Any:
            return torch.optim.Rprop(self.parameters(), lr=1e-4)

    first = quiet_trainer(max_epochs=1, limit_val_batches=0)
    first.fit(Own(tiny, task="sst2"), data())
    first.save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changes nothing")
        second = quiet_trainer(max_epochs=2, limit_val_batches=0)
        second.fit(Own(tiny, task="sst2"), data(), ckpt_path=tmp_path / "last.ckpt")
    assert second.global_step == 2 * first.global_step


def test_the_data_of_a_run_before_are_not_held_against_it(tiny: str, data: Callable[..., GLUEDataModule]) -> None:
    trainer, served = quiet_trainer(), data()
    trainer.validate(TextClassification(tiny, task="mrpc"), data("mrpc"), verbose=False)
    served.setup("validate")
    trainer.validate(TextClassification(tiny, task="sst2"), served.val_dataloader(), verbose=False)
    assert "val_accuracy" in trainer.callback_metrics
