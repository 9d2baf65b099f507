"""Folders that transformers loads, with equal outputs for all options of ``from_pretrained``."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reader import pruned_reader
from helpers.tiny import MODEL_TYPES, RATIOS, batches, classifier, logits, pruned
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    pipeline,
)

from pgb_lightning import PruningConfig, dense_twin, prune
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_dense, export_huggingface, to_exported
from pgb_lightning.export.huggingface import check_folder
from pgb_lightning.surgery.checks import is_pruned, matches


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Prune a model that the tests only read."""
    return pruned("bert")


@pytest.fixture(scope="module")
def folder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export that model to a folder that the tests only read."""
    return export_huggingface(model, tmp_path_factory.mktemp("exported") / "out")


# ---- loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "ratio"), [*((name, 0.5) for name in MODEL_TYPES), *(("bert", ratio) for ratio in RATIOS[::2])]
)
def test_a_classifier_loads_bit_for_bit(model_type: str, ratio: float, tmp_path: Path) -> None:
    model = pruned(model_type, ratio)
    loaded = AutoModelForSequenceClassification.from_pretrained(export_huggingface(model, tmp_path / "out"))
    assert loaded.config.model_type == f"pgb-lightning-{model_type}"
    assert torch.equal(logits(loaded), logits(model))
    stored = model.state_dict()
    assert loaded.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_question_answering_model_loads_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = pruned_reader(model_type)
    loaded = AutoModelForQuestionAnswering.from_pretrained(export_huggingface(model, tmp_path / "out"))
    inputs = {name: value for name, value in batches(1)[0].items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).start_logits, model(**inputs).start_logits)
        assert torch.equal(loaded(**inputs).end_logits, model(**inputs).end_logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"low_cpu_mem_usage": True},
        {"dtype": torch.float32},
        {"dtype": "auto"},
        {"use_safetensors": True},
        {"attn_implementation": "eager"},
        pytest.param(
            {"device_map": "cpu"},
            marks=pytest.mark.skipif(find_spec("accelerate") is None, reason="transformers needs accelerate for it"),
        ),
    ],
    ids=str,
)
def test_options_of_from_pretrained(settings: dict[str, Any], model: PreTrainedModel, folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, **settings)
    if settings.get("attn_implementation") == "eager":
        torch.testing.assert_close(logits(loaded), logits(model))
    else:
        assert torch.equal(logits(loaded), logits(model))


def test_half_precision(model: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    bfloat16 = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    halved = AutoModelForSequenceClassification.from_pretrained(folder).half()
    for loaded, dtype in ((bfloat16, torch.bfloat16), (halved, torch.float16)):
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        indices = [buffer.dtype for name, buffer in loaded.named_buffers() if name.endswith("_index")]
        assert set(indices) == {torch.int32}
        torch.testing.assert_close(logits(loaded).float(), logits(model), rtol=0, atol=0.1)
    export_huggingface(halved, tmp_path / "half")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.float16
    assert torch.equal(logits(again), logits(halved))


def test_output_loading_info_is_returned(folder: Path) -> None:
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_text_classification_pipeline(
    model: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "good"])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    export_huggingface(model, tmp_path / "out", tokenizer=tokenizer)
    [answer] = pipeline("text-classification", str(tmp_path / "out"), device="cpu")("good good")
    with torch.no_grad():
        expected = model(**tokenizer("good good", return_tensors="pt")).logits.softmax(-1)[0]
    assert answer["score"] == pytest.approx(float(expected.max()))
    assert "not supported" not in caplog.text


# ---- using a loaded model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_loaded_model_can_be_saved_counted_made_dense_and_exported_again(model_type: str, tmp_path: Path) -> None:
    model = pruned(model_type)
    export_huggingface(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "saved")
    export_huggingface(loaded, tmp_path / "exported")
    for folder in ("saved", "exported"):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(again), logits(model))
    assert encoder_cost(find_encoder(loaded)) == encoder_cost(find_encoder(model))
    assert find_encoder(loaded).model_type == model_type
    twin = dense_twin(loaded)
    assert twin.config.model_type == model_type
    assert not is_pruned(find_encoder(twin))
    torch.testing.assert_close(logits(twin), logits(model))


def test_a_loaded_model_trains(folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).train()
    loaded(**batches(1)[0]).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_another_head_is_initialized_on_the_pruned_encoder(model: PreTrainedModel, folder: Path) -> None:
    loaded = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert encoder_cost(find_encoder(loaded)) == encoder_cost(find_encoder(model))
    more = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert more.classifier.out_features == 5
    with pytest.raises(RuntimeError, match=r"classifier\.\w+ .*ignore_mismatched_sizes=True"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)


def test_to_exported_does_not_modify_the_model() -> None:
    model = pruned("bert")
    exported = to_exported(model)
    assert model.config.model_type == "bert"
    assert not hasattr(model.config, "pgb")
    with torch.no_grad():
        exported.classifier.weight.zero_()
    assert model.classifier.weight.any()


def test_the_dense_twin_is_a_plain_folder(model: PreTrainedModel, tmp_path: Path) -> None:
    export_dense(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model)
    assert "pgb" not in AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    torch.testing.assert_close(logits(loaded), logits(model))


def test_the_plan_is_saved_if_it_matches(tmp_path: Path) -> None:
    model = classifier()
    plan = prune(model, batches(4), PruningConfig(pruning_ratio=0.5))
    export_huggingface(model, tmp_path / "out", plan=plan)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(plan).load(tmp_path / "out" / "plan.json") == plan
    assert matches(find_encoder(loaded), plan)
    other = prune(classifier(seed=1), batches(4), PruningConfig(pruning_ratio=0.3))
    with pytest.raises(ValueError, match=r"^plan "):
        export_huggingface(model, tmp_path / "other", plan=other)
    assert not (tmp_path / "other").exists()


# ---- errors ------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_not_written(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for write in (export_huggingface, export_dense):
        with pytest.raises(ValueError, match=r"folder=.*not empty"):
            write(model, tmp_path)
        with pytest.raises(ValueError, match=r"folder=.*mine\.txt' is a file"):
            write(model, tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("export", [export_huggingface, export_dense])
def test_an_export_that_fails_leaves_nothing(
    export: Any, existed: bool, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    if existed:
        (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ModelCard, "save", fail)
        with pytest.raises(OSError, match="no space left"):
            export(model, tmp_path / "out")
    assert (tmp_path / "out").exists() == existed
    export(model, tmp_path / "out")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder=.*out' .*mine\.txt'"):
        check_folder(tmp_path / "mine.txt" / "deep" / "out")
    with pytest.raises(ValueError, match="output_dir=''"):
        check_folder("", name="output_dir")
    check_folder(tmp_path / "new" / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"folder=.*out' is not writable"):
        check_folder(tmp_path / "new" / "out")


def test_a_folder_in_the_home_folder(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not replace the tilde in ``--output_dir=~/out``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert export_dense(model, "~/out") == tmp_path / "out"
    with pytest.raises(ValueError, match="not empty"):
        check_folder("~/out")


def test_a_module_that_is_not_a_transformers_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model is a Linear\b.*module\.model"):
        export_huggingface(torch.nn.Linear(2, 2), tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.slow
def test_without_this_package_the_model_type_is_unknown(folder: Path) -> None:
    program = (
        f"from transformers import AutoModelForSequenceClassification as Auto; Auto.from_pretrained({str(folder)!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "model type `pgb-lightning-bert`" in done.stderr
    assert "pip install pgb-lightning" in (folder / "config.json").read_text()
