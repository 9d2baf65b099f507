"""Folders that transformers loads: equal outputs, whatever from_pretrained is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny import MODEL_TYPES, RATIOS, batches, classifier, logits, pruned
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


def reader(model_type: str) -> PreTrainedModel:
    """Make a pruned model for questions."""
    settings = classifier(model_type).config
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "mpnet": "MPNet"}[model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"{name}ForQuestionAnswering")(settings).eval()
    positions = {"start_positions": torch.zeros(8).long(), "end_positions": torch.ones(8).long()}
    calibration = [{**{k: v for k, v in batch.items() if k != "labels"}, **positions} for batch in batches(4)]
    prune(model, calibration, PruningConfig(pruning_ratio=0.5))
    return model


# ---- what loads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_classifier_loads_bit_for_bit(model_type: str, ratio: float, tmp_path: Path) -> None:
    model = pruned(model_type, ratio)
    loaded = AutoModelForSequenceClassification.from_pretrained(export_huggingface(model, tmp_path / "out"))
    assert loaded.config.model_type == f"pgb-lightning-{model_type}"
    assert torch.equal(logits(loaded), logits(model))
    stored = model.state_dict()
    assert loaded.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_for_questions_loads_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = reader(model_type)
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
def test_settings_of_from_pretrained(settings: dict[str, Any], tmp_path: Path) -> None:
    model = pruned("bert")
    export_huggingface(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", **settings)
    if settings.get("attn_implementation") == "eager":
        torch.testing.assert_close(logits(loaded), logits(model))
    else:
        assert torch.equal(logits(loaded), logits(model))


def test_half_precision(tmp_path: Path) -> None:
    model = pruned("bert")
    export_huggingface(model, tmp_path / "out")
    asked = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    halved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").half()
    for loaded, dtype in ((asked, torch.bfloat16), (halved, torch.float16)):
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        indices = [buffer.dtype for name, buffer in loaded.named_buffers() if name.endswith("_index")]
        assert set(indices) == {torch.int32}
        torch.testing.assert_close(logits(loaded).float(), logits(model), rtol=0, atol=0.1)
    export_huggingface(halved, tmp_path / "half")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.float16
    assert torch.equal(logits(again), logits(halved))


def test_loaded_info_is_returned_when_asked_for(tmp_path: Path) -> None:
    export_huggingface(pruned("bert"), tmp_path / "out")
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_text_classification_pipeline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = pruned("bert")
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "good"])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    export_huggingface(model, tmp_path / "out", tokenizer=tokenizer)
    [answer] = pipeline("text-classification", str(tmp_path / "out"), device="cpu")("good good")
    with torch.no_grad():
        expected = model(**tokenizer("good good", return_tensors="pt")).logits.softmax(-1)[0]
    assert answer["score"] == pytest.approx(float(expected.max()))
    assert "not supported" not in caplog.text


# ---- what can be done with it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_loaded_model_is_saved_counted_made_dense_and_exported_again(model_type: str, tmp_path: Path) -> None:
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


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    export_huggingface(pruned("bert"), tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").train()
    loaded(**batches(1)[0]).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_another_head_starts_anew_on_the_pruned_encoder(tmp_path: Path) -> None:
    model = pruned("bert")
    export_huggingface(model, tmp_path / "out")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert encoder_cost(find_encoder(loaded)) == encoder_cost(find_encoder(model))
    more = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", num_labels=5, ignore_mismatched_sizes=True
    )
    assert more.classifier.out_features == 5
    with pytest.raises(RuntimeError, match=r"classifier\.\w+ is .* pass ignore_mismatched_sizes=True"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=5)


def test_the_copy_leaves_the_original_alone() -> None:
    model = pruned("bert")
    exported = to_exported(model)
    assert model.config.model_type == "bert"
    assert not hasattr(model.config, "pgb")
    with torch.no_grad():
        exported.classifier.weight.zero_()
    assert model.classifier.weight.any()


def test_the_dense_twin_is_a_plain_folder(tmp_path: Path) -> None:
    model = pruned("bert")
    export_dense(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model)
    assert "pgb" not in AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    torch.testing.assert_close(logits(loaded), logits(model))


def test_a_plan_goes_with_it(tmp_path: Path) -> None:
    model = classifier()
    plan = prune(model, batches(4), PruningConfig(pruning_ratio=0.5))
    export_huggingface(model, tmp_path / "out", plan=plan)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(plan).load(tmp_path / "out" / "plan.json") == plan
    assert matches(find_encoder(loaded), plan)
    other = prune(classifier(seed=1), batches(4), PruningConfig(pruning_ratio=0.3))
    with pytest.raises(ValueError, match="plan made another model than this one"):
        export_huggingface(model, tmp_path / "other", plan=other)
    assert not (tmp_path / "other").exists()


# ---- what is refused ------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for write in (export_huggingface, export_dense):
        with pytest.raises(ValueError, match="is a folder with files in it; name a new or an empty folder"):
            write(pruned("bert"), tmp_path)
        with pytest.raises(ValueError, match="is a file"):
            write(pruned("bert"), tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out' lies under '.*mine\.txt', which is a file; name another folder"):
        check_folder(tmp_path / "mine.txt" / "deep" / "out")
    with pytest.raises(ValueError, match="'' names no folder"):
        check_folder("")
    check_folder(tmp_path / "new" / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"out' cannot be written: '.*' does not allow it; name another folder"):
        check_folder(tmp_path / "new" / "out")


def test_what_is_no_transformers_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model is a Linear, not a transformers model; .* module\.model"):
        export_huggingface(torch.nn.Linear(2, 2), tmp_path / "out")  # type: ignore[arg-type]


def test_without_this_package_the_model_type_is_unknown(tmp_path: Path) -> None:
    export_huggingface(pruned("bert"), tmp_path / "out")
    program = (
        "from transformers import AutoModelForSequenceClassification as Auto; "
        f"Auto.from_pretrained({str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "model type `pgb-lightning-bert`" in done.stderr
    assert "pip install pgb-lightning" in (tmp_path / "out" / "config.json").read_text()
