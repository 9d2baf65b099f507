"""Other runtimes than PyTorch: their packages, the layers that they run fastest, and modules loaded in them."""

from typing import Literal

#: What can run the layers when latency is measured: the values of ``latency_runtime`` of
#: :class:`~pgb_lightning.config.PruningConfig`.
Runtime = Literal["torch", "onnxruntime"]

__all__ = ["Runtime"]
