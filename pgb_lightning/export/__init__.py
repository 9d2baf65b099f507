"""Export pruned models: Hugging Face folders, dense twins, ONNX, OpenVINO, and programs of ``torch.export``.

Importing this package registers the exported model types with transformers. It imports neither Lightning nor the
runtimes.
"""

from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.huggingface import export_dense, export_huggingface, to_exported
from pgb_lightning.export.onnx import export_onnx
from pgb_lightning.export.onnx_quantization import quantize_onnx
from pgb_lightning.export.openvino import export_openvino
from pgb_lightning.export.push import push_to_hub
from pgb_lightning.export.torch_program import export_torch

__all__ = [
    "CardFacts",
    "export_dense",
    "export_huggingface",
    "export_onnx",
    "export_openvino",
    "export_torch",
    "push_to_hub",
    "quantize_onnx",
    "to_exported",
]
