"""The command ``pgb prune``: from a fine-tuned model and a table of texts to a smaller model, in one line."""

from pgb_lightning.cli.prune.command import run_prune

__all__ = ["run_prune"]
