"""What was probably meant by a setting that there is not."""

from __future__ import annotations

import re

import pytest

from pgb_lightning.cli.suggestions import check_options, suggestion
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
    ("key", "path", "option", "expected"),
    [
        (
            "trainer.callbacks",
            "pgb_lightning.callbacks.PGBCallback",
            "pruning_ration",
            "'pruning_ration' is no setting of PGBCallback. Did you mean 'pruning_ratio'? All settings: "
            "--trainer.callbacks.help PGBCallback",
        ),
        (
            "data",
            "pgb_lightning.datamodules.GLUEDataModule",
            "xyzzy",
            "'xyzzy' is no setting of GLUEDataModule. All settings: --data.help GLUEDataModule",
        ),
        (  # a setting that goes through **kwargs
            "data",
            "pgb_lightning.datamodules.SQuADDataModule",
            "batch_siz",
            "'batch_siz' is no setting of SQuADDataModule. Did you mean 'batch_size'? All settings: "
            "--data.help SQuADDataModule",
        ),
        (  # **kwargs themselves are no setting
            "data",
            "pgb_lightning.datamodules.GLUEDataModule",
            "loadin",
            "'loadin' is no setting of GLUEDataModule. All settings: --data.help GLUEDataModule",
        ),
        (
            "model",
            "test_suggestions.Outer.Inner",
            "widht",
            "'widht' is no setting of Inner. Did you mean 'width'? All settings: --model.help Inner",
        ),
        (
            "model",
            "collections.OrderedDict",
            "x",
            "'x' is no setting of OrderedDict. All settings: --model.help OrderedDict",
        ),
        ("model", "no.such.Module", "x", "'x' is no setting of Module. All settings: --model.help Module"),
    ],
)
def test_the_nearest_setting_is_named(key: str, path: str, option: str, expected: str) -> None:
    assert suggestion(MESSAGE.format(key=key, path=path, option=option)) == f"\n{expected}"


def test_other_messages_stay_as_they_are() -> None:
    assert suggestion("Parser key \"trainer\": Expected a <class 'float'>") == ""


def test_options_that_a_class_does_not_take_are_refused() -> None:
    check_options("data_options", {"group_by_length": True, "batch_size": 8}, GLUEDataModule, taken=("seed",))
    for option, message in {
        "group_by_lenght": "is no setting of GLUEDataModule. Did you mean 'group_by_length'?",
        "xyzzy": "is no setting of GLUEDataModule.",
        "loading": "is no setting of GLUEDataModule.",  # its **kwargs
        "seed": "is decided by another argument: give that one (see --help), and leave 'seed' out of data_options.",
    }.items():
        expected = re.escape(f"data_options names {option!r}, which {message}")
        with pytest.raises(ValueError, match=rf"^{expected}$"):
            check_options("data_options", {"batch_size": 8, option: 1}, GLUEDataModule, taken=("seed",))
