"""The console command `pgb`: fit, validate, test and predict from YAML."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported so that the command line knows them by their short names: `--model TextClassification`.


class PGBCLI(LightningCLI):
    """Lightning's command line, made to resume and evaluate the checkpoints of pruned models."""

    def before_instantiate_classes(self) -> None:
        """Leave `fine_tuned_ckpt` unread when a checkpoint brings all the weights anyway."""
        config = self.config[self.config.subcommand]
        if (
            config.get("ckpt_path")
            and Path(config.ckpt_path).is_file()
            and "fine_tuned_ckpt" in config.model.init_args
        ):
            config.model.init_args.fine_tuned_ckpt = None


def run(args: list[str] | None = None) -> PGBCLI:
    """Run a command and return what it made.

    Args:
        args: The command line's words; None takes them from the process.

    Returns:
        The command line object, with `trainer`, `model` and `datamodule`.

    Example:
        >>> cli = run(["fit", "--config", "configs/demo/prune.yaml"])  # doctest: +SKIP
    """
    return PGBCLI(save_config_kwargs={"overwrite": True}, seed_everything_default=42, args=args)


def main(args: list[str] | None = None) -> None:
    """Be the console command: run, and end with one line where a setting is wrong.

    Args:
        args: The command line's words; None takes them from the process.
    """
    try:
        run(args)
    except MisconfigurationException as error:
        sys.exit(f"pgb: {error}")
