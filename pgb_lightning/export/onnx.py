"""Write ONNX files that onnxruntime runs, with the blocks as small as they are, and quantize them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card import CardFacts
from pgb_lightning.export.huggingface import empty_folder, to_exported, write_beside
from pgb_lightning.export.onnx_layers import use_channel_layers
from pgb_lightning.surgery.dense_twin import make_dense_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Places as transformers.js takes them for granted, and optimum finds them.
MODEL_FILE, QUANTIZED_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"

#: Before it, torch.export refused these models or fixed the length of their inputs.
OLDEST_TORCH = (2, 13)

#: What comes out, by the end of the model class's name.
OUTPUTS = {"ForQuestionAnswering": ("start_logits", "end_logits"), "Model": ("last_hidden_state",)}


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardFacts | None = None,
    quantize: Literal["int8"] | None = None,
) -> Path:
    """Write a pruned model for onnxruntime: any batch size, any length that the model takes.

    The folder is laid out as transformers.js wants it, and optimum reads it: ``onnx/model.onnx``
    (``onnx/model_quantized.onnx`` if quantized), the plain transformers model's ``config.json``, and the tokenizer.
    Nothing of this package is needed to run it.

    Args:
        model: A transformers model of a mapped family, dense or grouped, such as ``module.model``.
        folder: Where to write; new or empty.
        tokenizer: Written beside it where given.
        card: What the model card says beyond what the model shows.
        quantize: "int8" for integer weights and products (:func:`quantize_onnx`).

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: The packages of the extra "onnx" are not installed.
        TypeError: ``model`` is no transformers model.
        ValueError: The folder is not empty, or the model's class is none that is exported.

    Example:
        >>> export_onnx(module.model, "out/", tokenizer=tokenizer)  # doctest: +SKIP
    """
    require_onnx()
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown; give 'int8', or None for single precision.")
    runner = _Runner(model, weights_right=quantize is not None)
    target = empty_folder(folder)
    (target / MODEL_FILE).parent.mkdir()
    _write_graph(runner, target / MODEL_FILE)
    if quantize is not None:
        quantize_onnx(target / MODEL_FILE, target / QUANTIZED_FILE)
        (target / MODEL_FILE).unlink()
    with torch.device("meta"):
        plain = make_dense_model(runner.model)
    plain.config.architectures = [type(plain).__name__]
    plain.config.save_pretrained(target)
    write_beside(model, target, MODEL_FILE if quantize is None else QUANTIZED_FILE, tokenizer, card)
    return target


def quantize_onnx(source: str | Path, target: str | Path) -> Path:
    """Quantize an ONNX file: weights and embeddings to int8, activations as they come.

    Args:
        source: A file that :func:`export_onnx` wrote.
        target: The file to write.

    Returns:
        ``target``.

    Raises:
        ModuleNotFoundError: The packages of the extra "onnx" are not installed.
    """
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm", "Gather"])
    return Path(target)


def require_onnx() -> None:
    """Require the packages of the extra "onnx".

    Raises:
        ModuleNotFoundError: Some are missing, or PyTorch is too old; the message names them and the remedy.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise ModuleNotFoundError(
            f"ONNX export needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, but this is {torch.__version__}; "
            "update it with `pip install 'pgb-lightning[onnx]'`."
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ONNX export needs {', '.join(missing)}; install it with `pip install 'pgb-lightning[onnx]'`."
        )


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Name what a model's head gives.

    Example:
        >>> from transformers import BertConfig, BertForQuestionAnswering
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> output_names(BertForQuestionAnswering(tiny))
        ('start_logits', 'end_logits')
    """
    name = type(model).__name__
    return next((names for end, names in OUTPUTS.items() if name.endswith(end)), ("logits",))


class _Runner(nn.Module):
    """A model with tensors in and tensors out, its grouped layers in onnxruntime's form."""

    def __init__(self, model: PreTrainedModel, weights_right: bool) -> None:
        super().__init__()
        # Through the exported class, so that the layers are this package's plain ones whatever stands in the model.
        exported = to_exported(model)
        self.model = copy.deepcopy(exported) if exported is model else exported
        self.model.to(device="cpu", dtype=torch.float32)  # type: ignore[call-arg]
        self.model.eval()  # type: ignore[no-untyped-call]
        self.model.set_attn_implementation("eager")  # fewer operators than PyTorch's fused attention unfolds to
        use_channel_layers(find_encoder(self.model), weights_right)
        has_types = getattr(self.model.config, "type_vocab_size", 0) > 1
        self.inputs = ("input_ids", "attention_mask", *(["token_type_ids"] if has_types else []))
        self.outputs = output_names(model)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def _write_graph(runner: _Runner, path: Path) -> None:
    """Trace a model and write its graph, weights included."""
    # Sizes above 1, and unequal: what is 1 or alike in the example would become fixed.
    example = torch.full((3, 5), 2)
    axes: dict[int, Any] = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with _quiet():
        program = torch.onnx.export(
            runner,
            (example, torch.ones_like(example), torch.zeros_like(example))[: len(runner.inputs)],
            dynamo=True,
            dynamic_shapes=(tuple(axes for _ in runner.inputs),),
            input_names=list(runner.inputs),
            output_names=list(runner.outputs),
            verbose=False,
        )
        assert program is not None
        program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks of the exporters from users who can do nothing about them; errors still come through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
