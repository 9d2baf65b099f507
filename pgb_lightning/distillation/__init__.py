"""Distillation from the dense model: losses between a pruned model and its teacher, and a cache of its answers."""

from pgb_lightning.distillation.losses import hidden_loss, logits_loss
from pgb_lightning.distillation.teacher import Teacher
from pgb_lightning.distillation.teacher_cache import TeacherCache

__all__ = [
    "Teacher",
    "TeacherCache",
    "hidden_loss",
    "logits_loss",
]
