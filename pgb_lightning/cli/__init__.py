"""The ``pgb`` command."""

from pgb_lightning.cli.main import PGBCLI, main

__all__ = [
    "PGBCLI",
    "main",
]
