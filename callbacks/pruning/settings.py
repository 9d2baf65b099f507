"""Descriptions of the settings, read from the docstring of ``PruningConfig``, the only place that documents them."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TypeVar

from pgb_lightning.config import PruningConfig

T = TypeVar("T", bound=type)

#: Line of a docstring that :func:`describe_settings` replaces.
PLACEHOLDER = "{settings}"
INDENT = " " * 8


def setting_descriptions() -> dict[str, str]:
    """Return the description of each field of ``PruningConfig``, as one line without breaks.

    Example:
        >>> "max_groups" in setting_descriptions()
        True
    """
    section = (inspect.getdoc(PruningConfig) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def describe_settings(cls: T) -> T:
    """Replace the line ``{settings}`` in the ``Args`` section of a class's docstring by the settings' descriptions.

    Sphinx, ``help()`` and the command line's help read the docstring at run time, so they show all settings.
    """
    if cls.__doc__:  # None under python -OO
        wrapper = textwrap.TextWrapper(width=120, initial_indent=INDENT, subsequent_indent=f"{INDENT}    ")
        entries = [wrapper.fill(f"{name}: {text}") for name, text in setting_descriptions().items()]
        cls.__doc__ = cls.__doc__.replace(f"{INDENT}{PLACEHOLDER}", "\n".join(entries))
    return cls
