"""Export pruned models: a Hugging Face folder, a dense twin, or ONNX.

Importing this package registers the exported model types with transformers. It imports neither Lightning nor ONNX.
"""

from pgb_lightning.export.card import CardFacts
from pgb_lightning.export.huggingface import export_dense, export_huggingface, to_exported
from pgb_lightning.export.onnx import export_onnx, quantize_onnx

__all__ = ["CardFacts", "export_dense", "export_huggingface", "export_onnx", "quantize_onnx", "to_exported"]
