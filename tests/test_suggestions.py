"""What was probably meant by a setting that there is not."""

from __future__ import annotations

import pytest

from pgb_lightning.suggestions import suggestion

MESSAGE = """Parser key "{key}":
  Errors:
    - Problem with given class_path '{path}':
        Option '{option}' is not accepted
    - Problem with given class_path 'lightning.Callback':
        Option '{option}' is not accepted"""


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
    ],
)
def test_the_nearest_setting_is_named(key: str, path: str, option: str, expected: str) -> None:
    assert suggestion(MESSAGE.format(key=key, path=path, option=option)) == f"\n{expected}"


def test_other_messages_stay_as_they_are() -> None:
    assert suggestion("Parser key \"trainer\": Expected a <class 'float'>") == ""
