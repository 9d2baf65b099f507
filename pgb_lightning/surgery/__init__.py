"""Change an encoder's structure: from a plan, a state dict or a record, and back to a dense twin."""

from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.checks import check_plan, check_prunable, is_pruned, matches
from pgb_lightning.surgery.dense_twin import dense_twin
from pgb_lightning.surgery.folding import Folded, fold
from pgb_lightning.surgery.from_state_dict import StructureError, follow_state_dict
from pgb_lightning.surgery.structure import Structure, SublayerStructure

__all__ = [
    "Folded",
    "Structure",
    "StructureError",
    "SublayerStructure",
    "apply_plan",
    "check_plan",
    "check_prunable",
    "dense_twin",
    "fold",
    "follow_state_dict",
    "is_pruned",
    "matches",
]
