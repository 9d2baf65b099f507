"""The command ``pgb prune``: prune a fine-tuned model with a table of texts."""

from pgb_lightning.cli.prune.command import run_prune

__all__ = ["run_prune"]
