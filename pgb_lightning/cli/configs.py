"""Find the configuration files that come with the package by short names such as ``glue/sst2/prune``."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.fabric.utilities.exceptions import MisconfigurationException

#: Values of ``--config`` that are neither paths nor names: inline YAML, URLs and "-" (standard input).
NO_NAME = re.compile(r"[\n{]|:(\s|$)|://|^-$")

#: The ``config:`` line of a YAML file, by which it reads another file.
CONFIG_LINE = re.compile(r"^config:[ \t]+(?P<quote>['\"]?)(?P<name>[^'\"#\n]+?)(?P=quote)[ \t]*(#.*)?$", re.MULTILINE)

#: Name of the files that other configurations include. They can be passed by name, but are incomplete.
PARTIAL = "base"


class ConfigFileAction(ActionConfigFile):
    """The ``--config`` option, which takes a path or the short name of a packaged configuration."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Parse the configuration.

        Raises:
            MisconfigurationException: If the value is neither a file nor the name of a packaged configuration.
        """
        value = find_config(values) if isinstance(values, str) else values
        super().__call__(parser, cfg, value, option_string)  # type: ignore[no-untyped-call]


def find_config(name: str) -> str:
    """Return the path of a configuration file.

    Args:
        name: A path, or the name of a packaged configuration with or without ``.yaml``. An existing path takes
            precedence. Values that cannot be names, such as inline YAML, are returned unchanged.

    Raises:
        MisconfigurationException: If there is neither such a file nor such a packaged configuration.

    Example:
        >>> Path(find_config("glue/sst2/prune")).parts[-3:]
        ('glue', 'sst2', 'prune.yaml')
    """
    if NO_NAME.search(name) or _is_path(name):
        return name
    packaged = packaged_configs()
    key = _to_key(name)
    if key in packaged:
        return str(packaged[key])
    complete = [known for known in packaged if Path(known).name != PARTIAL]
    near = get_close_matches(key, complete, n=3)
    hint = f"Did you mean {', '.join(map(repr, near))}? " if near else ""
    raise MisconfigurationException(
        f"config={name!r} is neither a file nor a packaged configuration. {hint}"
        f"The packaged configurations are {', '.join(complete)}."
    )


@cache
def packaged_configs() -> dict[str, Path]:
    """Return the packaged configuration files by name, sorted.

    Example:
        >>> [name for name in packaged_configs() if name.startswith("demo/")]
        ['demo/finetune', 'demo/prune', 'demo/recover']
    """
    folder = Path(str(files("pgb_lightning.configs")))
    return {_to_key(str(path.relative_to(folder))): path for path in sorted(folder.rglob("*.yaml"))}


def resolve_config_line(text: str) -> str:
    """Replace the name of a packaged configuration in the ``config:`` line of a YAML file by its path.

    A path that exists (relative to the working directory) is left unchanged.

    Args:
        text: The content of the file.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        path = None if _is_path(name) else packaged_configs().get(_to_key(name))
        return match[0] if path is None else f"config: '{path}'"

    return CONFIG_LINE.sub(replace, text)


def _is_path(name: str) -> bool:
    """Return whether a file or pipe of this name exists."""
    path = Path(name).expanduser()
    return path.exists() and not path.is_dir()


def _to_key(name: str) -> str:
    return Path(name).as_posix().removesuffix(".yaml")
