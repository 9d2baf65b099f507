"""Export pruned models to ONNX for onnxruntime, with small blocks instead of full matrices, and quantize them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card import CardFacts
from pgb_lightning.export.huggingface import make_folder, to_exported, write_companion_files
from pgb_lightning.export.onnx_layers import use_channel_layers
from pgb_lightning.surgery.record import dense_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The file names that transformers.js expects and optimum finds.
MODEL_FILE, QUANTIZED_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"

#: Earlier versions of ``torch.export`` fail on these models or fix the length of their inputs.
OLDEST_TORCH = (2, 13)

#: What some encoders read besides text: boxes on a page, paths in HTML, shapes and sounds of characters.
OTHER_INPUTS = ("bbox", "xpath_tags_seq", "xpath_subs_seq", "input_shape_ids", "input_pronunciation_ids")

#: The names of the outputs for each suffix of a model class's name; ``logits`` for all others.
OUTPUTS = {
    "ForQuestionAnswering": ("start_logits", "end_logits"),
    "BertForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "Model": ("last_hidden_state",),
}


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
    quantize: Literal["int8"] | None = None,
) -> Path:
    """Export a pruned model for onnxruntime, with dynamic batch size and sequence length.

    The folder has the layout of transformers.js and optimum: ``onnx/model.onnx`` (``onnx/model_quantized.onnx`` if
    quantized), the ``config.json`` of the dense transformers model, and the tokenizer. This package is not needed to
    run it.

    Args:
        model: A transformers model of a supported family, pruned or dense, such as ``module.model``.
        folder: The folder to write, new or empty.
        tokenizer: The tokenizer to save in the folder.
        card: Facts for the model card that cannot be read off the model.
        quantize: ``"int8"`` for integer weights and products (:func:`quantize_onnx`).

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If the packages of the extra ``onnx`` are not installed.
        TypeError: If ``model`` is not a transformers model.
        ValueError: If the folder is not empty, the class of the model is not supported, or it reads more than text.

    Example:
        >>> export_onnx(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    require_onnx()
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown. Use 'int8', or None for single precision.")
    _check_inputs(model)
    traced = _TensorModel(model, weights_right=quantize is not None)
    target = make_folder(folder)
    (target / MODEL_FILE).parent.mkdir()
    _write_graph(traced, target / MODEL_FILE)
    if quantize is not None:
        quantize_onnx(target / MODEL_FILE, target / QUANTIZED_FILE)
        (target / MODEL_FILE).unlink()
    config = dense_config(traced.model)
    config.architectures = [traced.model.dense_class.__name__]
    config.save_pretrained(target)
    write_companion_files(model, target, MODEL_FILE if quantize is None else QUANTIZED_FILE, tokenizer, card)
    return target


def quantize_onnx(source: str | Path, target: str | Path) -> Path:
    """Quantize an ONNX file: weights and embeddings statically to int8, activations dynamically.

    Args:
        source: A file written by :func:`export_onnx`.
        target: The file to write.

    Returns:
        ``target``.

    Raises:
        ModuleNotFoundError: If the packages of the extra ``onnx`` are not installed.
    """
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silence_exporters():
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "Gather"])
    return Path(target)


def require_onnx() -> None:
    """Raise if the packages of the extra ``onnx`` are not installed.

    Raises:
        ModuleNotFoundError: If packages are missing, or PyTorch is too old.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise ModuleNotFoundError(
            f"ONNX export needs torch {'.'.join(map(str, OLDEST_TORCH))} or later, but torch {torch.__version__} is "
            "installed. Update it with `pip install 'pgb-lightning[onnx]'`."
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ONNX export needs {', '.join(missing)}. Install the extra: `pip install 'pgb-lightning[onnx]'`."
        )


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a model's outputs.

    Example:
        >>> from transformers import BertConfig, BertForQuestionAnswering
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> output_names(BertForQuestionAnswering(tiny))
        ('start_logits', 'end_logits')
    """
    name = type(model).__name__
    return next((names for suffix, names in OUTPUTS.items() if name.endswith(suffix)), ("logits",))


def _check_inputs(model: PreTrainedModel) -> None:
    """Require a model that reads nothing but text.

    Raises:
        ValueError: If it reads something else, which the graph would leave out.
    """
    parameters = signature(find_encoder(model).model.forward).parameters
    others = [name for name in OTHER_INPUTS if name in parameters]
    if hasattr(model.config, "type_vocab_sizes"):
        others.append("several token_type_ids for each token")
    if others:
        raise ValueError(
            f"{type(model).__name__} reads {', '.join(others)}, but an ONNX file of export_onnx only takes input_ids, "
            "attention_mask and token_type_ids. Use export_huggingface."
        )


class _TensorModel(nn.Module):
    """A model that takes and returns tensors, with its grouped layers in the layout for onnxruntime."""

    def __init__(self, model: PreTrainedModel, weights_right: bool) -> None:
        super().__init__()
        # The exported class rebuilds the layers, so that wrappers in the given model are left out.
        exported = to_exported(model)
        self.model = copy.deepcopy(exported) if exported is model else exported
        self.model.to(device="cpu", dtype=torch.float32)  # type: ignore[call-arg]
        self.model.eval()  # type: ignore[no-untyped-call]
        self.model.set_attn_implementation("eager")  # fewer operators than the decomposed fused attention
        use_channel_layers(find_encoder(self.model), weights_right)
        has_types = getattr(self.model.config, "type_vocab_size", 0) > 1
        self.inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if has_types else [])
        self.outputs = output_names(model)
        # The dimensions of the inputs. torch.export would specialize sizes that are 1 or equal to each other.
        has_choices = type(model).__name__.endswith("ForMultipleChoice")
        self.sizes = {"batch": 3, **({"choices": 4} if has_choices else {}), "sequence": 5}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def _write_graph(model: _TensorModel, path: Path) -> None:
    """Trace a model and write its graph with the weights."""
    example = torch.full(tuple(model.sizes.values()), 2)
    axes: dict[int, Any] = {number: torch.export.Dim(name) for number, name in enumerate(model.sizes)}
    with _silence_exporters():
        program = torch.onnx.export(
            model,
            (example, torch.ones_like(example), torch.zeros_like(example))[: len(model.inputs)],
            dynamo=True,
            dynamic_shapes=(tuple(axes for _ in model.inputs),),
            input_names=list(model.inputs),
            output_names=list(model.outputs),
            verbose=False,
        )
        assert program is not None
        program.save(path)


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppress warnings of the exporters, on which users cannot act. Errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
