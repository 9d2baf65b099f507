"""Suggest the closest existing setting when a setting is unknown."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from difflib import get_close_matches
from pydoc import locate

from pgb_lightning._compat import UNKNOWN_SETTING


def suggest_setting(message: str) -> str:
    """Return a line to append to an error of jsonargparse: the closest setting, and how to list all of them.

    Args:
        message: The error message. Only its first unknown setting is considered.

    Returns:
        The line, or an empty string if the message is about something else.

    Example:
        >>> message = "class_path 'pgb_lightning.callbacks.PGBCallback': Option 'max_group' is not accepted"
        >>> print(suggest_setting(message))
        <BLANKLINE>
        'max_group' is not a setting of PGBCallback. Did you mean 'max_groups'?
    """
    matches = list(UNKNOWN_SETTING.finditer(message))
    unknown = next((match for match in matches if match["path"]), None)
    if unknown is None:
        return ""
    name = unknown["path"].rpartition(".")[2]
    hints = _suggest_closest(unknown["option"], _list_settings(locate(unknown["path"])))
    key = next((match["key"] for match in matches if match["key"]), None)
    hints += [f"All settings: --{key}.help {name}"] if key else []
    return "\n" + " ".join([f"{unknown['option']!r} is not a setting of {name}.", *hints])


def check_options(name: str, options: Collection[str], cls: type, taken: Collection[str] = ()) -> None:
    """Check that a class accepts the given options.

    Args:
        name: The setting that holds the options, for the message.
        options: The names of the options.
        cls: The class that receives them.
        taken: Settings of the class that other arguments of the command determine.

    Raises:
        ValueError: If an option is not a setting of the class, or another argument of the command determines it.

    Example:
        >>> from pgb_lightning.datamodules import SQuADDataModule
        >>> check_options("data_options", {"strides": 64}, SQuADDataModule)
        Traceback (most recent call last):
        ValueError: data_options has 'strides', which is not a setting of SQuADDataModule. Did you mean 'stride'?
    """
    known = _list_settings(cls)
    for option in options:
        if option not in known:
            hints = _suggest_closest(option, known)
            raise ValueError(" ".join([f"{name} has {option!r}, which is not a setting of {cls.__name__}.", *hints]))
        if option in taken:
            raise ValueError(
                f"{name} has {option!r}, which another argument of this command determines. Set that argument instead "
                f"(see --help), and remove {option!r} from {name}."
            )


def _suggest_closest(name: str, known: Collection[str]) -> list[str]:
    closest = get_close_matches(name, known, n=1)
    return [f"Did you mean {closest[0]!r}?"] if closest else []


def _list_settings(cls: object) -> list[str]:
    """Return the known arguments of a class, including those that it passes to its bases by ``**kwargs``."""
    names: list[str] = []
    for base in getattr(cls, "__mro__", [cls]):
        try:
            parameters = inspect.signature(base).parameters.values()
        except (TypeError, ValueError):  # classes written in C have no signature
            break
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names
