"""Checks of the packages that other runtimes, and exports to them, require."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from pgb_lightning.config import LatencyRuntime

#: Oldest supported version. Earlier versions of ``torch.export`` fail on these models or fix the input length.
OLDEST_TORCH = (2, 13)


def require_onnx(purpose: str = "ONNX export", extra: str = "onnx") -> None:
    """Raise if the packages of the extra ``onnx`` are not installed.

    Args:
        purpose: The operation that needs them, for the message.
        extra: The extra to install, for the message.

    Raises:
        ModuleNotFoundError: If packages are missing, or PyTorch is too old.
    """
    require_torch(purpose, extra)
    _require(purpose, extra, ("onnx", "onnxscript", "onnxruntime"))


def require_torch(purpose: str, extra: str = "onnx") -> None:
    """Raise if PyTorch cannot trace these models for any length.

    Args:
        purpose: The operation that needs it, for the message.
        extra: The extra that updates it, for the message.

    Raises:
        ModuleNotFoundError: If PyTorch is too old.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise ModuleNotFoundError(
            f"{purpose} needs torch {'.'.join(map(str, OLDEST_TORCH))} or later, but torch {torch.__version__} is "
            f"installed. Update it with `pip install 'pgb-lightning[{extra}]'`."
        )


def require_openvino() -> None:
    """Raise if the packages of the extra ``openvino`` are not installed.

    Raises:
        ModuleNotFoundError: If packages are missing, or PyTorch is too old.
    """
    purpose, extra = "OpenVINO export", "openvino"
    require_onnx(purpose, extra)
    _require(purpose, extra, ("openvino", "nncf"))


def require_runtime(runtime: LatencyRuntime) -> None:
    """Raise if the packages of a runtime are not installed.

    Args:
        runtime: The runtime.

    Raises:
        ModuleNotFoundError: If packages are missing, or PyTorch is too old.
    """
    if runtime != "torch":
        require_onnx(f"latency_runtime={runtime!r}")


def _require(purpose: str, extra: str, packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{purpose} needs {', '.join(missing)}. Install the extra: `pip install 'pgb-lightning[{extra}]'`."
        )
