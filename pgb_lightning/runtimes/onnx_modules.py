"""Load PyTorch modules in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgb_lightning.runtimes.silence import silence_exporters

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "hidden_states"


def onnx_session(model: Path | bytes) -> InferenceSession:
    """Load an ONNX model in onnxruntime on the CPU, with PyTorch's number of threads.

    Args:
        model: The file, or its content.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def load_onnx_modules(modules: Sequence[nn.Module], hidden: Tensor) -> list[Callable[[], Tensor]]:
    """Export modules to ONNX, and load each of them in onnxruntime.

    Args:
        modules: Modules from a tensor to a tensor, in single precision on the CPU and in eval mode.
        hidden: The input of all of them.

    Returns:
        For each module a function that runs it on the input.
    """
    import onnx.utils

    names = [f"output_{number}" for number in range(len(modules))]
    with silence_exporters():
        program = torch.onnx.export(
            _SideBySide(modules),
            (hidden,),
            dynamo=True,
            input_names=[INPUT],
            output_names=names,
            verbose=False,
        )
    assert program is not None
    if len(modules) == 1:  # a whole encoder may be too large for one protobuf
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            program.save(path, external_data=True)
            return [_runner(onnx_session(path), hidden)]
    split = onnx.utils.Extractor(program.model_proto)
    graphs = (split.extract_model([INPUT], [name]).SerializeToString() for name in names)
    return [_runner(onnx_session(graph), hidden) for graph in graphs]


def _runner(session: InferenceSession, hidden: Tensor) -> Callable[[], Tensor]:
    feed = {INPUT: hidden.numpy()}

    def run() -> Tensor:
        [output] = session.run(None, feed)
        return torch.from_numpy(output)

    return run


class _SideBySide(nn.Module):
    """Modules that all read the same input."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(hidden) for part in self.parts)
