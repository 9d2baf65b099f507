"""Published pruning methods reimplemented with the same inputs and budget as PGB, one per file."""

from pgb_lightning.experiments.baselines.masks import make_permanent
from pgb_lightning.experiments.baselines.registry import BASELINES, Baseline, Calibrated

__all__ = ["BASELINES", "Baseline", "Calibrated", "make_permanent"]
