"""Export pruned models to ONNX for onnxruntime, with small blocks instead of full matrices."""

from __future__ import annotations

import copy
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.calibration_feeds import Batches, read_calibration
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.huggingface import new_folder, to_exported, write_companion_files
from pgb_lightning.export.onnx_quantization import quantize_onnx
from pgb_lightning.runtimes.channel_layers import use_channel_layers
from pgb_lightning.runtimes.requirements import require_onnx
from pgb_lightning.runtimes.silence import silence_exporters
from pgb_lightning.surgery.record import dense_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The file names that transformers.js and optimum expect.
MODEL_FILE, QUANTIZED_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"

#: Inputs of some encoders besides text: boxes on a page, paths in HTML, shapes and sounds of characters.
OTHER_INPUTS = ("bbox", "xpath_tags_seq", "xpath_subs_seq", "input_shape_ids", "input_pronunciation_ids")


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
    quantize: Literal["int8", "int8-dynamic"] | None = None,
    calibration: Batches | None = None,
) -> Path:
    """Export a pruned model for onnxruntime, with dynamic batch size and sequence length.

    The folder has the layout of transformers.js and optimum: ``onnx/model.onnx`` (``onnx/model_quantized.onnx`` if
    quantized), the ``config.json`` of the dense transformers model, and the tokenizer. This package is not needed to
    run it.

    Args:
        model: A transformers model of a supported family, pruned or dense, such as ``module.model``.
        folder: The folder to write, new or empty.
        tokenizer: The tokenizer to save in the folder.
        card: Facts for the model card that cannot be read from the model.
        quantize: ``"int8"`` for integer weights and products, with scales of activations taken from calibration
            batches; ``"int8-dynamic"`` for scales computed at run time, which needs no batches and is less exact
            (:func:`quantize_onnx`).
        calibration: Batches of token ids for ``quantize="int8"``, such as a few hundred training rows.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If the packages of the extra ``onnx`` are not installed.
        TypeError: If ``model`` is not a transformers model, or a calibration batch has no tensor of token ids.
        ValueError: If the folder is not empty, the class of the model is not supported, it reads more than text, or
            calibration batches are missing or not needed.

    Example:
        >>> export_onnx(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    require_onnx()
    if quantize not in (None, "int8", "int8-dynamic"):
        raise ValueError(f"quantize={quantize!r} is unknown. Use 'int8', 'int8-dynamic', or None for single precision.")
    batches = read_calibration(quantize, calibration, needed_by=("int8",))
    check_inputs(model)
    traced = TensorModel(model, weights_right=quantize is not None)
    file = MODEL_FILE if quantize is None else QUANTIZED_FILE
    with new_folder(folder) as target:
        (target / MODEL_FILE).parent.mkdir()
        write_graph(traced, target / MODEL_FILE)
        if quantize is not None:
            quantize_onnx(target / MODEL_FILE, target / QUANTIZED_FILE, batches)
            (target / MODEL_FILE).unlink()
        save_config(traced, target)
        write_companion_files(model, target, file, tokenizer, card, is_quantized=quantize is not None)
    return target


def input_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Return the dimensions of a model's inputs, with the sizes of an example."""
    has_choices = type(model).__name__.endswith("ForMultipleChoice")
    # torch.export would specialize sizes that are 1 or equal to each other.
    return {"batch": 3, **({"choices": 4} if has_choices else {}), "sequence": 5}


@torch.no_grad()
def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a model's logits, or ``last_hidden_state`` if it has no head. The model is run to find them.

    Example:
        >>> from transformers import BertConfig, BertForQuestionAnswering
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> output_names(BertForQuestionAnswering(tiny))
        ('start_logits', 'end_logits')
    """
    example = torch.full(tuple(input_sizes(model).values()), 2, device=model.device)
    return tuple(name for name in model(input_ids=example) if name.endswith("logits")) or ("last_hidden_state",)


def check_inputs(model: PreTrainedModel) -> None:
    """Check that a model reads only text.

    Raises:
        ValueError: If it has other inputs, which the graph would not have.
    """
    parameters = signature(find_encoder(model).model.forward).parameters
    others = [name for name in OTHER_INPUTS if name in parameters]
    if hasattr(model.config, "type_vocab_sizes"):
        others.append("several token_type_ids for each token")
    if others:
        raise ValueError(
            f"{type(model).__name__} reads {', '.join(others)}, but the graphs of ONNX and OpenVINO only take "
            "input_ids, attention_mask and token_type_ids. Use export_huggingface."
        )


class TensorModel(nn.Module):
    """A model that takes and returns tensors, with its grouped layers in the layout for onnxruntime.

    Args:
        model: The model, which is not changed.
        weights_right: See :class:`~pgb_lightning.runtimes.channel_layers.ChannelLinear`; ``None`` keeps the layers of
            PyTorch.
    """

    def __init__(self, model: PreTrainedModel, weights_right: bool | None) -> None:
        super().__init__()
        # The exported class rebuilds the layers, without the wrappers in the given model.
        exported = to_exported(model)
        self.model = copy.deepcopy(exported) if exported is model else exported
        self.model.to(device="cpu", dtype=torch.float32)  # type: ignore[call-arg]
        self.model.eval()  # type: ignore[no-untyped-call]
        self.model.set_attn_implementation("eager")  # fewer operators than the decomposed fused attention
        if weights_right is not None:
            use_channel_layers(find_encoder(self.model), weights_right)
        has_types = getattr(self.model.config, "type_vocab_size", 0) > 1
        self.inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if has_types else [])
        self.outputs = output_names(self.model)
        self.sizes = input_sizes(model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the tensors of :attr:`inputs`."""
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def write_graph(model: TensorModel, path: Path) -> None:
    """Trace a model and write its graph with the weights."""
    example = torch.full(tuple(model.sizes.values()), 2)
    axes: dict[int, Any] = {number: torch.export.Dim(name) for number, name in enumerate(model.sizes)}
    with silence_exporters():
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


def save_config(model: TensorModel, folder: Path) -> None:
    """Write the configuration of the dense transformers model, which other libraries can read."""
    config = dense_config(model.model)
    config.architectures = [model.model.dense_class.__name__]
    config.save_pretrained(folder)
