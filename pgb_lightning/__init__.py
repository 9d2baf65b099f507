"""One-shot pruning of fine-tuned BERT-like encoders by weight grouping and permutation (PGB).

The method works on any transformers encoder whose family is registered (:mod:`pgb_lightning.encoders`). The Lightning
side is in :mod:`pgb_lightning.callbacks`, :mod:`pgb_lightning.datamodules` and :mod:`pgb_lightning.modules`, which this
module does not import.
"""

# Importing export registers the exported model types, so that transformers' Auto classes load them.
from pgb_lightning import export
from pgb_lightning.config import PruningConfig
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.pruning import prune
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.from_state_dict import follow_state_dict

__version__ = "0.2.0.dev0"

__all__ = [
    "ConstantLinear",
    "GroupedLinear",
    "MatrixPlan",
    "PruningConfig",
    "PruningPlan",
    "apply_plan",
    "dense_twin",
    "export",
    "follow_state_dict",
    "prune",
]
