"""Calibration: one pass over the samples for the Fisher information, second moments and first-layer inputs."""

from pgb_lightning.calibration.collect import Calibration, LayerInput, Loss, SecondMoments, calibrate
from pgb_lightning.calibration.importance import encoder_importances, second_order_importance
from pgb_lightning.calibration.moments import AllReduce, Covariance, Moments

__all__ = [
    "AllReduce",
    "Calibration",
    "Covariance",
    "LayerInput",
    "Loss",
    "Moments",
    "SecondMoments",
    "calibrate",
    "encoder_importances",
    "second_order_importance",
]
