"""``pgb benchmark``: how fast and how large pruned models are, against the dense one in the same run."""

from pgb_lightning.benchmark.command import run

__all__ = ["run"]
