"""Say what was probably meant where the command line knows no such setting."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from difflib import get_close_matches
from pydoc import locate
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from pgb_lightning._compat import UNKNOWN_SETTING


class SuggestingParser(LightningArgumentParser):
    """Lightning's parser; after its message about an unknown setting of a class it names the one that comes near."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message, and what was probably meant."""
        super().error(message + suggestion(message), ex)


def suggestion(message: str) -> str:
    """Return a line to add to a message of jsonargparse: the setting that comes near, and where all of them stand.

    Args:
        message: The message; of its unknown settings the first counts.

    Returns:
        Empty if it is about something else.

    Example:
        >>> print(suggestion("class_path 'pgb_lightning.callbacks.PGBCallback': Option 'max_group' is not accepted"))
        <BLANKLINE>
        'max_group' is no setting of PGBCallback. Did you mean 'max_groups'?
    """
    found = list(UNKNOWN_SETTING.finditer(message))
    unknown = next((match for match in found if match["path"]), None)
    if unknown is None:
        return ""
    name = unknown["path"].rpartition(".")[2]
    hints = _near(unknown["option"], _settings(locate(unknown["path"])))
    key = next((match["key"] for match in found if match["key"]), None)
    hints += [f"All settings: --{key}.help {name}"] if key else []
    return "\n" + " ".join([f"{unknown['option']!r} is no setting of {name}.", *hints])


def check_options(name: str, options: Collection[str], cls: type, taken: Collection[str] = ()) -> None:
    """Refuse options that a class does not take.

    Args:
        name: The setting that holds them.
        options: Their names.
        cls: The class that they are for.
        taken: Which of its settings other arguments of the command decide.

    Raises:
        ValueError: One is no setting of the class, or one that another argument of the command decides.

    Example:
        >>> from pgb_lightning.datamodules import SQuADDataModule
        >>> check_options("data_options", {"strides": 64}, SQuADDataModule)
        Traceback (most recent call last):
        ValueError: data_options names 'strides', which is no setting of SQuADDataModule. Did you mean 'stride'?
    """
    known = _settings(cls)
    for option in options:
        if option not in known:
            hints = _near(option, known)
            raise ValueError(" ".join([f"{name} names {option!r}, which is no setting of {cls.__name__}.", *hints]))
        if option in taken:
            raise ValueError(
                f"{name} names {option!r}, which is decided by another argument: give that one (see --help), and leave "
                f"{option!r} out of {name}."
            )


def _near(name: str, known: Collection[str]) -> list[str]:
    near = get_close_matches(name, known, n=1)
    return [f"Did you mean {near[0]!r}?"] if near else []


def _settings(found: object) -> list[str]:
    """List what a class may be given, also through ``**kwargs`` that go to its bases; nothing if that is unknown."""
    names: list[str] = []
    for cls in getattr(found, "__mro__", [found]):
        try:
            parameters = inspect.signature(cls).parameters.values()
        except (TypeError, ValueError):  # of none that is written in C
            break
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names
