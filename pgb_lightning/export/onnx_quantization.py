"""Quantize ONNX files to int8, with scales of activations computed at run time or taken from calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pgb_lightning.export.calibration_feeds import Batches, Feed, make_feed, read_batches
from pgb_lightning.runtimes.requirements import require_onnx
from pgb_lightning.runtimes.silence import silence_exporters

#: The operators that are quantized with calibration batches.
PRODUCTS = ("MatMul", "Gemm")


def quantize_onnx(source: str | Path, target: str | Path, calibration: Batches | None = None) -> Path:
    """Quantize an ONNX file.

    Without calibration batches, weights and embeddings are quantized statically, with one scale per matrix, and
    activations dynamically. With calibration batches, all scales are fixed: one per output feature of a weight matrix,
    and one for each activation that is multiplied with weights. Embeddings and attention scores are not quantized then.

    Args:
        source: A file written by :func:`export_onnx`.
        target: The file to write.
        calibration: Batches from which the ranges of the activations are taken.

    Returns:
        ``target``.

    Raises:
        ModuleNotFoundError: If the packages of the extra ``onnx`` are not installed.
        TypeError: If a batch is not a mapping with tensors of token ids.
        ValueError: If ``calibration`` has no batches.

    Example:
        >>> quantize_onnx("out/onnx/model.onnx", "model_quantized.onnx", calibration=batches)  # doctest: +SKIP
    """
    require_onnx()
    batches = None if calibration is None else read_batches(calibration)
    if batches is None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with silence_exporters():
            quantize_dynamic(
                source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "Gather"]
            )
    else:
        _quantize_statically(Path(source), Path(target), batches)
    return Path(target)


class _Reader:
    """Calibration data in the form of onnxruntime's ``CalibrationDataReader``."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _quantize_statically(source: Path, target: Path, batches: list[Mapping[str, Any]]) -> None:
    """Write a file with quantized matrix products, in the format of QuantizeLinear and DequantizeLinear pairs (QDQ)."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with silence_exporters(), TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        inputs, constants = [value.name for value in graph.input], {value.name for value in graph.initializer}
        products = [node for node in graph.node if node.op_type in PRODUCTS and constants & set(node.input[:2])]
        quantize_static(
            prepared,
            target,
            _Reader(make_feed(batch, inputs) for batch in batches),
            quant_format=QuantFormat.QDQ,
            # not the attention scores, which are products of two activations
            nodes_to_quantize=[node.name for node in products],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                # The results of products stay in single precision, since the next operation does not take integers.
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                # With scales per channel, this adjustment of onnxruntime 1.32 raises a ValueError for some Gemms.
                "QDQDisableWeightAdjustForInt32Bias": True,
            },
        )
