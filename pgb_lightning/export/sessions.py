"""Run exported files in their runtimes on tensors, with the same number of threads in each runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pgb_lightning.export.calibration_feeds import make_feed
from pgb_lightning.runtimes.onnx_modules import onnx_session

Run: TypeAlias = Callable[[Mapping[str, Tensor]], list[Tensor]]


def onnx_run(path: Path) -> Run:
    """Return a function that runs an ONNX file on a batch, with PyTorch's number of threads.

    Args:
        path: The file.

    Returns:
        A function that returns the outputs of the graph, in their order.
    """
    session = onnx_session(path)
    inputs = [value.name for value in session.get_inputs()]

    def call(batch: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, make_feed(batch, inputs))]

    return call


def openvino_run(path: Path, precision: Literal["f32", "bf16"] = "f32") -> Run:
    """Return a function that runs an OpenVINO file on a batch, with PyTorch's number of threads.

    Args:
        path: The ``.xml`` file.
        precision: Data type of the products. A processor without bf16 computes them in single precision.

    Returns:
        A function that returns the outputs of the graph, in their order.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,  # all threads work on one batch
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    inputs = [value.any_name for value in compiled.inputs]

    def call(batch: Mapping[str, Tensor]) -> list[Tensor]:
        found = compiled(make_feed(batch, inputs))
        return [torch.from_numpy(found[output]) for output in compiled.outputs]

    return call


def torch_program_run(program: torch.export.ExportedProgram) -> Run:
    """Return a function that runs a program of ``torch.export`` on a batch.

    Args:
        program: The program, with the token ids, the mask and possibly the token types as positional arguments.

    Returns:
        A function that returns the outputs, in their order.
    """
    module = program.module()
    count = len(program.graph_signature.user_inputs)

    @torch.inference_mode()
    def call(batch: Mapping[str, Tensor]) -> list[Tensor]:
        feed = make_feed(batch, ("input_ids", "attention_mask", "token_type_ids")[:count])
        return list(module(*map(torch.from_numpy, feed.values())))

    return call
