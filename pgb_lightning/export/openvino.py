"""Export pruned models to OpenVINO's intermediate representation (IR)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedModel

from pgb_lightning.export.calibration_feeds import Batches, make_feed, read_batches, read_calibration
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.huggingface import new_folder, write_companion_files
from pgb_lightning.export.onnx import TensorModel, check_inputs, save_config, write_graph
from pgb_lightning.runtimes.requirements import require_openvino
from pgb_lightning.runtimes.silence import silence_exporters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The file name that optimum-intel uses. The weights are beside it, in ``openvino_model.bin``.
IR_FILE = "openvino_model.xml"


def export_openvino(
    model: PreTrainedModel,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
    quantize: Literal["int8"] | None = None,
    calibration: Batches | None = None,
) -> Path:
    """Export a pruned model for OpenVINO, with dynamic batch size and sequence length.

    The folder has ``openvino_model.xml`` and ``openvino_model.bin``, the ``config.json`` of the dense transformers
    model, and the tokenizer. The weights are in single precision, or integers if quantized. The precision of matrix
    products is chosen when the model is loaded. This package is not needed to run it.

    Args:
        model: A transformers model of a supported family, pruned or dense, such as ``module.model``.
        output_dir: The folder to write, new or empty.
        tokenizer: The tokenizer to save in the folder.
        card: Facts for the model card that cannot be read from the model.
        quantize: ``"int8"`` for integer weights and products, by the post-training quantization of NNCF.
        calibration: Batches of token ids for ``quantize="int8"``, such as a few hundred training rows.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If the packages of the extra ``openvino`` are not installed.
        TypeError: If ``model`` is not a transformers model, or a calibration batch has no tensor of token ids.
        ValueError: If the folder is not empty, the class of the model is not supported, it reads more than text, or
            calibration batches are missing or not needed.

    Example:
        >>> export_openvino(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    require_openvino()
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown. Use 'int8', or None for single precision.")
    batches = read_calibration(quantize, calibration, needed_by=("int8",))
    check_inputs(model)
    traced = TensorModel(model, weights_right=True)
    with new_folder(output_dir) as target, TemporaryDirectory() as folder:
        write_graph(traced, Path(folder) / "model.onnx")
        convert_onnx(Path(folder) / "model.onnx", target / IR_FILE, batches)
        save_config(traced, target)
        write_companion_files(model, target, IR_FILE, tokenizer, card, is_quantized=quantize is not None)
    return target


def convert_onnx(source: Path, target: Path, calibration: Batches | None = None) -> None:
    """Convert an ONNX file to IR, and quantize it if there are calibration batches.

    Args:
        source: A file written by :func:`~pgb_lightning.export.onnx.write_graph`, with the weights on the right.
        target: The ``.xml`` file to write.
        calibration: Batches from which the ranges of the activations are taken.

    Raises:
        TypeError: If a batch is not a mapping with tensors of token ids.
        ValueError: If ``calibration`` has no batches.
    """
    import openvino

    batches = None if calibration is None else read_batches(calibration)
    with silence_exporters():
        graph = openvino.convert_model(source)
        if batches is not None:
            import nncf

            inputs = [value.any_name for value in graph.inputs]
            feeds = nncf.Dataset([make_feed(batch, inputs) for batch in batches])
            graph = nncf.quantize(graph, feeds, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))
        openvino.save_model(graph, target, compress_to_fp16=False)
