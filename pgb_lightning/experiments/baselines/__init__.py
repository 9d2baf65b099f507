"""Other people's ways to prune, in our own words and on our own footing: one a file, to be measured beside PGB."""

from pgb_lightning.experiments.baselines.callback import BaselineCallback
from pgb_lightning.experiments.baselines.masks import make_permanent
from pgb_lightning.experiments.baselines.registry import BASELINES, Baseline, Calibrated

__all__ = ["BASELINES", "Baseline", "BaselineCallback", "Calibrated", "make_permanent"]
