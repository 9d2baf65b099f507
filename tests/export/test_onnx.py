"""ONNX files run in onnxruntime with the model's outputs, at any batch size and length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, pruned
from test_huggingface import reader
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface, export_onnx, onnx
from pgb_lightning.export.onnx import MODEL_FILE, QUANTIZED_FILE

pytest.importorskip("onnxruntime")

SHAPES = [(1, 3), (1, 11), (2, 8), (8, 3), (5, 40)]

Export = Callable[..., tuple[PreTrainedModel, Path]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Make (once) a pruned model and its ONNX folder: tracing takes seconds."""
    made: dict[tuple[str, str, str | None], tuple[PreTrainedModel, Path]] = {}

    def make(model_type: str, head: str = "classifier", quantize: str | None = None) -> tuple[PreTrainedModel, Path]:
        key = (model_type, head, quantize)
        if key not in made:
            model = reader(model_type) if head == "reader" else pruned(model_type)
            folder = tmp_path_factory.mktemp("onnx") / "out"
            made[key] = (model, export_onnx(model, folder, quantize=quantize))  # type: ignore[arg-type]
        return made[key]

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


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("size", "length"), SHAPES)
def test_logits_are_equal(model_type: str, size: int, length: int, export: Export) -> None:
    if model_type in ("roberta", "mpnet"):
        length = min(length, 38)  # their positions begin behind the padding's
    model, folder = export(model_type)
    batch = padded(size, length)
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(outputs(folder / MODEL_FILE, batch)["logits"], expected, rtol=0, atol=1e-4)


def test_spans_are_equal(export: Export) -> None:
    model, folder = export("bert", "reader")
    batch = padded(3, 9)
    with torch.no_grad():
        expected = model(**batch)
    found = outputs(folder / MODEL_FILE, batch)
    assert set(found) == {"start_logits", "end_logits"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_dense_matrix_hides_in_the_file(model_type: str, export: Export) -> None:
    import onnx as library

    model, folder = export(model_type)
    held = sum(len(value.raw_data) for value in library.load(folder / MODEL_FILE).graph.initializer)
    # Of the model's own: float weights and, twice as wide as here, the places.
    own = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in model.state_dict().values())
    places = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("_index"))
    assert held < own + 4 * places + 4096
    largest = max(max(value.dims, default=0) for value in library.load(folder / MODEL_FILE).graph.initializer)
    assert largest <= 96


@pytest.mark.parametrize("size", [1, 8])
def test_int8_is_near_and_small(size: int, export: Export) -> None:
    model, folder = export("bert", quantize="int8")
    assert files(folder) == {"onnx/model_quantized.onnx", "config.json", "README.md"}
    batch = padded(size, 11)
    with torch.no_grad():
        expected = model(**batch).logits
    found = outputs(folder / QUANTIZED_FILE, batch)["logits"]
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3)
    import onnx as library

    graph = library.load(folder / QUANTIZED_FILE).graph
    weights = [value for value in graph.initializer if value.data_type == library.TensorProto.INT8]
    encoder = sum(p.numel() for n, p in find_encoder(model).model.named_parameters() if "LayerNorm" not in n)
    assert sum(len(value.raw_data) for value in weights) > 0.7 * encoder


def test_the_folder_is_a_plain_model_s(export: Export) -> None:
    _, folder = export("bert")
    assert files(folder) == {"onnx/model.onnx", "config.json", "README.md"}
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.architectures) == ("bert", ["BertForSequenceClassification"])
    assert 'InferenceSession("onnx/model.onnx")' in (folder / "README.md").read_text()


def test_a_loaded_model_gives_the_same_graph(export: Export, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, folder = export("bert")
    loaded = AutoModelForSequenceClassification.from_pretrained(export_huggingface(model, tmp_path / "hf"))
    export_onnx(loaded, tmp_path / "onnx")
    batch = padded(4, 9)
    again = outputs(tmp_path / "onnx" / MODEL_FILE, batch)["logits"]
    assert torch.equal(again, outputs(folder / MODEL_FILE, batch)["logits"])
    assert loaded.config._attn_implementation == model.config._attn_implementation  # was traced as a copy


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxscript; .*pip install 'pgb-lightning\[onnx\]'"):
        export_onnx(pruned("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize='int4' is unknown; give 'int8'"):
        export_onnx(pruned("bert"), tmp_path / "out", quantize="int4")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_old_torch_is_named_before_anything_is_traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ModuleNotFoundError, match=r"needs torch 2\.13 or newer, but this is 2\.9\.1\+cpu"):
        export_onnx(pruned("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
