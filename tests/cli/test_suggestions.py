"""Suggestions for unknown settings."""

from __future__ import annotations

import pytest

from pgb_lightning.cli.suggestions import check_options, suggest_setting
from pgb_lightning.datamodules import GLUEDataModule

MESSAGE = """Parser key "{key}":
  Errors:
    - Problem with given class_path '{path}':
        Option '{option}' is not accepted
    - Problem with given class_path 'lightning.Callback':
        Option '{option}' is not accepted"""


class Outer:
    class Inner:
        def __init__(self, width: int = 3) -> None: ...


@pytest.mark.parametrize(
    ("key", "path", "option", "closest"),
    [
        ("trainer.callbacks", "pgb_lightning.callbacks.PGBCallback", "pruning_ration", "pruning_ratio"),
        ("data", "pgb_lightning.datamodules.GLUEDataModule", "xyzzy", None),
        ("data", "pgb_lightning.datamodules.SQuADDataModule", "batch_siz", "batch_size"),  # passed through **kwargs
        ("data", "pgb_lightning.datamodules.GLUEDataModule", "loadin", None),  # the name of **kwargs itself
        ("model", "test_suggestions.Outer.Inner", "widht", "width"),
        ("model", "collections.OrderedDict", "x", None),
        ("model", "no.such.Module", "x", None),
    ],
)
def test_the_closest_setting_is_suggested(key: str, path: str, option: str, closest: str | None) -> None:
    line = suggest_setting(MESSAGE.format(key=key, path=path, option=option))
    name = path.rpartition(".")[2]
    assert line.startswith(f"\n'{option}' ")
    assert line.endswith(f" --{key}.help {name}")
    assert line.count("'") == (2 if closest is None else 4)
    assert closest is None or f"'{closest}'" in line


def test_other_messages_get_no_suggestion() -> None:
    assert suggest_setting("Parser key \"trainer\": Expected a <class 'float'>") == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("group_by_lenght", "'group_by_lenght'.* GLUEDataModule.*'group_by_length'"),
        ("xyzzy", r"'xyzzy'.* GLUEDataModule\.$"),
        ("loading", r"'loading'.* GLUEDataModule\.$"),  # the name of **kwargs itself
        ("seed", "'seed'.*another argument"),
    ],
)
def test_unknown_and_taken_options_are_rejected(option: str, message: str) -> None:
    check_options("data_options", {"group_by_length": True, "batch_size": 8}, GLUEDataModule, taken=("seed",))
    with pytest.raises(ValueError, match=f"^data_options has {message}"):
        check_options("data_options", {"batch_size": 8, option: 1}, GLUEDataModule, taken=("seed",))
