"""ONNX files reproduce the model's outputs in onnxruntime, at any batch size and length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.families import tiny_model
from helpers.heads import build_pruned
from helpers.reader import pruned_reader
from helpers.tiny import MODEL_TYPES, batches, pruned
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface, export_onnx, onnx
from pgb_lightning.export.onnx import MODEL_FILE, QUANTIZED_FILE, TensorModel
from pgb_lightning.runtimes import requirements

pytest.importorskip("onnxruntime")

SHAPES = [(1, 3), (1, 11), (2, 8), (8, 3), (5, 38)]

Export = Callable[[str], tuple[PreTrainedModel, Path]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a pruned one-layer model of a family, once per module, since tracing is slow.

    Between them the families cover grouped matrices, different groups in W1 and W2, both dropped sublayers, a
    question-answering head, and a model loaded from an exported folder.
    """
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def make(model_type: str) -> tuple[PreTrainedModel, Path]:
        if model_type not in made:
            folder = tmp_path_factory.mktemp("onnx")
            if model_type == "roberta":
                model = pruned_reader(model_type, 0.88, layers=1, preset="balanced")
            else:
                model = pruned(model_type, 0.88 if model_type == "mpnet" else 0.5, layers=1)
            if model_type == "distilbert":
                model = AutoModelForSequenceClassification.from_pretrained(export_huggingface(model, folder / "hf"))
            made[model_type] = (model, export_onnx(model, folder / "onnx"))
        return made[model_type]

    return make


def outputs(path: Path, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = batch["input_ids"]
    feed = {value.name: batch.get(value.name, torch.zeros_like(tokens)).numpy() for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, feed), strict=True)}


def padded(size: int, length: int) -> dict[str, Tensor]:
    [batch] = batches(1, size=size, length=length, seed=length)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_outputs_are_equal_at_every_shape(model_type: str, export: Export) -> None:
    model, folder = export(model_type)
    for size, length in SHAPES:
        batch = padded(size, length)
        with torch.no_grad():
            expected = model(**batch)
        found = outputs(folder / MODEL_FILE, batch)
        assert set(found) == ({"start_logits", "end_logits"} if model_type == "roberta" else {"logits"})
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_file_holds_no_dense_matrix(model_type: str, export: Export) -> None:
    import onnx as library

    model, folder = export(model_type)
    held = sum(len(value.raw_data) for value in library.load(folder / MODEL_FILE).graph.initializer)
    # The model's tensors, with indices as 64-bit instead of 32-bit integers.
    own = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in model.state_dict().values())
    indices = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("_index"))
    assert held < own + 4 * indices + 4096
    largest = max(max(value.dims, default=0) for value in library.load(folder / MODEL_FILE).graph.initializer)
    assert largest <= 96


@pytest.mark.slow
def test_int8_is_close_and_small(tmp_path: Path) -> None:
    model = pruned("bert", layers=1)
    folder = export_onnx(model, tmp_path / "out", quantize="int8-dynamic")
    assert files(folder) == {"onnx/model_quantized.onnx", "config.json", "README.md"}
    for size in (1, 8):
        batch = padded(size, 11)
        with torch.no_grad():
            expected = model(**batch).logits
        found = outputs(folder / QUANTIZED_FILE, batch)["logits"]
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.3)
    import onnx as library

    graph, types = library.load(folder / QUANTIZED_FILE).graph, library.TensorProto
    weights = [value for value in graph.initializer if value.data_type in (types.INT8, types.UINT8)]
    matrices = sum(p.numel() for p in find_encoder(model).model.parameters() if p.dim() > 1)
    assert sum(len(value.raw_data) for value in weights) > 0.9 * matrices


@pytest.mark.slow
def test_the_folder_has_the_config_of_the_dense_model(export: Export) -> None:
    _, folder = export("bert")
    assert files(folder) == {"onnx/model.onnx", "config.json", "README.md"}
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.architectures) == ("bert", ["BertForSequenceClassification"])
    assert 'InferenceSession("onnx/model.onnx")' in (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_exported_model_is_not_modified(export: Export) -> None:
    model, folder = export("distilbert")
    assert model.config.model_type == "pgb-lightning-distilbert"
    assert model.config._attn_implementation != "eager"  # a copy was traced
    assert AutoConfig.from_pretrained(folder).model_type == "distilbert"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript.*pip install 'pgb-lightning\[onnx\]'"):
        export_onnx(pruned("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["write_graph", "quantize_onnx"])
def test_an_export_that_fails_leaves_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(step)

    monkeypatch.setattr(onnx, "write_graph", lambda _, path: path.write_text("graph"))
    monkeypatch.setattr(onnx, step, fail)
    with pytest.raises(RuntimeError, match=step):
        export_onnx(pruned("bert"), tmp_path / "out", quantize="int8-dynamic")
    assert not (tmp_path / "out").exists()


def test_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize='int4'"):
        export_onnx(pruned("bert"), tmp_path / "out", quantize="int4")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_old_torch_is_refused_before_tracing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ModuleNotFoundError, match=r"torch 2\.13 .*2\.9\.1\+cpu"):
        export_onnx(pruned("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "head", "names"),
    [
        ("albert", "PreTraining", ("prediction_logits", "sop_logits")),
        ("ernie", "PreTraining", ("prediction_logits", "seq_relationship_logits")),
        ("electra", "PreTraining", ("logits",)),
        ("bert", "CausalLM", ("logits",)),
        ("bert", "QuestionAnswering", ("start_logits", "end_logits")),
        ("distilbert", "MultipleChoice", ("logits",)),
        ("roberta", "", ("last_hidden_state",)),
    ],
)
def test_the_outputs_are_those_of_the_head(model_type: str, head: str, names: tuple[str, ...]) -> None:
    model = TensorModel(tiny_model(model_type, head), weights_right=False)
    tokens = torch.full(tuple(model.sizes.values()), 5)
    assert model.outputs == names
    assert len(model(*[tokens.clamp(max=1)] * len(model.inputs))) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "head"), [("mpnet", "ForMultipleChoice"), ("bert", "ForPreTraining")])
def test_choices_and_several_outputs(model_type: str, head: str, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    model = build_pruned(model_type, head)
    session = InferenceSession(export_onnx(model, tmp_path / "out") / MODEL_FILE, providers=["CPUExecutionProvider"])
    tokens = torch.randint(2, 60, (2, 3, 7) if head == "ForMultipleChoice" else (2, 7))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    feed = {value.name: batch.get(value.name, torch.zeros_like(tokens)).numpy() for value in session.get_inputs()}
    with torch.no_grad():
        expected = model(**batch)
    for value, found in zip(session.get_outputs(), session.run(None, feed), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected[value.name], rtol=1e-4, atol=1e-5)
