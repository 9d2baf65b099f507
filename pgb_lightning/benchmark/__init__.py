"""``pgb benchmark``: latency, size and memory of pruned models, compared with the dense model in the same run."""

from pgb_lightning.benchmark.command import run

__all__ = ["run"]
