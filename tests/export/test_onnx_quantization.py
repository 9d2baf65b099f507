"""Static quantization of ONNX files with calibration batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from helpers.plans import random_plan
from helpers.tiny import pruned

from pgb_lightning import apply_plan
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_onnx
from pgb_lightning.export.onnx import QUANTIZED_FILE
from pgb_lightning.export.sessions import onnx_run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_static_int8_quantizes_products_with_weights_only(tmp_path: Path) -> None:
    model = tiny_model("bert")
    forms = ("groups", "partial", "narrow")  # attention is kept
    apply_plan(model, random_plan(find_encoder(model), random.Random(0), forms))
    calibration = iter(tiny_batches(4, size=4, length=12))
    folder = export_onnx(model, tmp_path / "out", quantize="int8", calibration=calibration)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"onnx/model_quantized.onnx", "config.json", "README.md"}
    run = onnx_run(folder / QUANTIZED_FILE)
    for size, length in ((1, 3), (8, 11)):
        [batch] = tiny_batches(1, size=size, length=length)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        expected = tiny_logits(model, [batch])
        [logits] = run(batch)
        assert not torch.equal(logits, expected)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.3 * float(expected.abs().max()))
    graph, types = onnx.load(folder / QUANTIZED_FILE).graph, onnx.TensorProto
    integers = {value.name: value for value in graph.initializer if value.data_type == types.INT8 and value.dims}
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    sources = [[makers[name].op_type for name in node.input[:2] if name in makers] for node in products]
    assert ["DequantizeLinear", "DequantizeLinear"] in sources
    assert any("DequantizeLinear" not in each for each in sources)  # attention scores
    words = model.get_input_embeddings().weight
    assert all(tuple(value.dims) != tuple(words.shape) for value in integers.values())
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    sizes = {value.name: tuple(value.dims) for value in graph.initializer}
    matrices = [value for value in integers.values() if len(value.dims) == 2]
    assert matrices
    assert all(sizes[scales[value.name]] in (tuple(value.dims[:1]), tuple(value.dims[1:])) for value in matrices)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quantize": "int8"}, ValueError, "quantize='int8'.*calibration=None"),
        ({"quantize": "int8-dynamic", "calibration": []}, ValueError, "calibration.*quantize='int8-dynamic'"),
        ({"quantize": "int8", "calibration": []}, ValueError, "calibration has no batches"),
        ({"quantize": "int8", "calibration": [{"labels": 1}]}, TypeError, r"calibration: batch 0 .*'labels'"),
        ({"quantize": "int8", "calibration": [(1, 2)]}, TypeError, "calibration: batch 0 .*tuple"),
    ],
)
def test_calibration_that_is_missing_or_unusable_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_onnx(pruned("bert"), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
