"""The argument parser of the ``pgb`` command."""

from __future__ import annotations

from os import PathLike
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pgb_lightning.cli.configs import resolve_config_line
from pgb_lightning.cli.suggestions import suggest_setting


class PGBArgumentParser(LightningArgumentParser):
    """Lightning's parser, which also accepts names of packaged configurations and suggests corrections of settings."""

    def parse_string(self, content: str, path: str | PathLike[str] = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parse the content of a configuration file, whose ``config:`` line may name a packaged configuration."""
        namespace: Namespace = super().parse_string(resolve_config_line(content), path, *args, **kwargs)
        return namespace

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the message and, for an unknown setting of a class, the closest existing one."""
        super().error(message + suggest_setting(message), ex)
