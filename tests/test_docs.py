"""The links, code blocks and commands of the documentation are valid."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import jsonargparse
import lightning as L
import pytest
import yaml
from helpers.families import INCLUDED
from helpers.guides import GUIDES, ROOT, anchors, blocks, commands, docstring_commands, links
from helpers.text_tables import reviews, write
from jsonargparse import auto_cli, auto_parser

from pgb_lightning.cli.main import PGBCLI
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.encoders import FAMILIES, Family
from pgb_lightning.experiments import results
from pgb_lightning.experiments.baselines import BASELINES
from pgb_lightning.modules import TextClassification

PAGES = [pytest.param(path, id=path.name) for path in GUIDES]
CONSTRAINTS = ("constraints-oldest.txt", "constraints.txt")
SHELL = sorted({line for path in GUIDES for line in commands(path)})


@pytest.mark.parametrize("path", PAGES)
def test_link_targets_exist(path: Path) -> None:
    for link in links(path):
        target = urlparse(link)
        if target.scheme:  # not fetched: tests run offline
            assert target.scheme == "https", link
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", target.netloc), link
        elif target.path.startswith("api/"):  # written when the site is built
            assert target.path == "api/index.rst" or importlib.import_module(Path(target.path).stem), link
        else:
            file = path.parent / target.path if target.path else path
            assert file.is_file(), link
            assert not target.fragment or target.fragment in anchors(file), link


@pytest.mark.parametrize("path", PAGES)
def test_python_compiles_and_imports_exist(path: Path) -> None:
    for code in blocks(path, "python"):
        for optional in ("onnxruntime", "openvino", "sentence_transformers", "fastapi", "tritonclient"):
            if f"import {optional}" in code or f"from {optional}" in code:
                pytest.importorskip(optional)
        tree = ast.parse(code)
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, type_ignores=[]), str(path), "exec"), {})


@pytest.fixture
def _registries() -> Iterator[None]:
    """Remove what a guide registers."""
    tables: list[dict[str, Any]] = [FAMILIES, BASELINES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("_registries")
@pytest.mark.parametrize("name", ["index.md", "callback.md", "data.md", "extending.md", "plan.md"])
def test_python_runs(
    name: str,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run the blocks of a guide in order, with the names that they assume."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews.csv", reviews(label=lambda row: row % 2))
    model, folder = str(tiny_model_folder("bert")), str(glue_folder("sst2"))
    data = GLUEDataModule("sst2", model, folder, max_length=32, calibration_size=64)
    given = {"module": TextClassification(model, task="sst2"), "datamodule": data, "folder": folder}
    data.prepare_data()
    data.setup("fit")
    given |= {"model": TextClassification(model, task="sst2").model, "batches": list(data.calibration_dataloader())}
    original = L.Trainer.__init__
    quiet = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}

    def trainer(self: L.Trainer, **settings: Any) -> None:
        original(self, **{**settings, **quiet, "logger": False})

    monkeypatch.setattr(L.Trainer, "__init__", trainer)
    if name == "plan.md":
        run("callback.md", dict(given))  # leaves a plan
    run(name, dict(given))


def run(name: str, names: dict[str, Any]) -> None:
    path = ROOT / "docs" / name
    for code in blocks(path, "python"):
        exec(compile(code, str(path), "exec"), names)


# ---- from the paper to the code -------------------------------------------------------------------------------

METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
SYMBOLS = [
    pytest.param(file, re.findall(r"`(\w+)`", names), id=file)
    for file, names in re.findall(r"^\|.*\| `([\w/]+\.py)` \| (.*) \|$", METHOD, re.MULTILINE)
]


@pytest.mark.parametrize(("file", "names"), SYMBOLS)
def test_the_code_of_the_paper_is_where_the_table_says(file: str, names: list[str]) -> None:
    tree = ast.parse((ROOT / "pgb_lightning" / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert names
    assert set(names) <= defined


def test_the_table_names_all_algorithms_and_equations() -> None:
    assert len(SYMBOLS) > 15
    for label in ("Algorithm 1", "Algorithm 2", "Algorithm 3", "Algorithm 4", "Eq. 2", "Eq. 3", "Eq. 4", "τ"):
        assert re.search(rf"^\| .*{label}\b.* \| `", METHOD, re.MULTILINE), label


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`python -m ([\w.]+)`", METHOD))))
def test_the_experiments_of_the_table_exist(name: str) -> None:
    assert importlib.util.find_spec(name)


# ---- commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parser() -> Any:
    """Return the parser of `pgb`, without running a command."""
    made: list[Any] = []

    class Parsed(Exception):
        pass

    class OnlyParser(PGBCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            made.append(parser)
            raise Parsed

    with pytest.raises(Parsed):
        OnlyParser(args=[])
    return made[0]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("pgb ") and "--print_" not in line])
def test_pgb_accepts_the_commands(line: str, parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser.exit_on_error = False
    words = shlex.split(line)[1:]
    assert parser.parse_args(words)["subcommand"] == words[0]


EXPERIMENTS = (ROOT / "pgb_lightning" / "experiments").rglob("*.py")
IN_DOCSTRINGS = {line for path in EXPERIMENTS for line in docstring_commands(path)}
MODULES = sorted({*IN_DOCSTRINGS, *(line for line in SHELL if "python -m pgb_lightning" in line)})


@pytest.mark.parametrize("line", MODULES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_modules_accept_the_commands(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[Any] = []

    def only_parser(function: Callable[..., Any], **settings: Any) -> None:
        parsers.append(auto_parser(function, exit_on_error=False, **settings))

    monkeypatch.setattr(jsonargparse, "auto_cli", only_parser)
    _, _, call = line.partition("python -m ")
    name, *words = shlex.split(call)
    runpy.run_module(name, run_name="__main__")
    assert parsers[0].parse_args(words)


def test_commands_of_docstrings_are_found() -> None:
    assert len(IN_DOCSTRINGS.difference(SHELL)) > 10


TABLES = [
    pytest.param(path, line, id=path.name)
    for path in GUIDES
    for line in commands(path)
    if "pgb_lightning.experiments.results" in line and "--markdown" in line
]


@pytest.mark.parametrize(("path", "line"), TABLES)
def test_tables_equal_the_output_of_their_command(
    path: Path, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _, _, call = line.partition("python -m pgb_lightning.experiments.results ")
    auto_cli(results.run, args=shlex.split(call))
    rows = [row.rstrip() for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(rows) > 4
    assert "\n".join(rows) in path.read_text(encoding="utf-8")


def test_tables_are_checked() -> None:
    assert len(TABLES) == 2


def test_make_has_the_targets() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[-1] for line in SHELL if line.startswith("make")} <= set(targets)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(targets)


def test_no_command_is_untested() -> None:
    known = (". .venv/bin/activate", "pgb ", "make", "pip install ", "python -m pgb_lightning", "OMP_NUM_THREADS=1 ")
    assert [line for line in SHELL if line and not line.startswith(known)] == []


# ---- versions -------------------------------------------------------------------------------------------------


def test_versions_are_those_of_the_constraints() -> None:
    table = (ROOT / "docs" / "versions.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+ \| [\d.]+) \|$", table, re.MULTILINE))
    pins = [dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE)) for name in CONSTRAINTS]
    project = (ROOT / "pyproject.toml").read_text()
    assert len(rows) == 7
    for name, versions in rows.items():
        if name == "Python":
            assert f'requires-python = ">={versions.split()[0]}"' in project
            continue
        assert versions == " | ".join(pin[name] for pin in pins)
        floor = re.search(rf'"{name}(?:\[\w+\])?>=([\d.]+)', project)
        assert floor is not None
        assert versions.split()[0].startswith(floor[1])


# ---- families -------------------------------------------------------------------------------------------------


def test_the_table_of_models_lists_every_family() -> None:
    row = r"^\| `([\w-]+)` \| .* \| (after|before) \| (plain|gated) \| .*\|$"
    rows = re.findall(row, read("models.md"), re.MULTILINE)
    assert dict.fromkeys(model_type for model_type, _, _ in rows).keys() == INCLUDED.keys()
    for model_type, norm, network in rows:
        family = INCLUDED[model_type]
        assert norm == ("before" if family.norms else "after"), model_type
        assert network == ("gated" if "W3" in family.paths else "plain"), model_type


def test_the_table_of_fields_is_complete() -> None:
    fields = re.findall(r"^\| `(\w+)` \| [A-Z].*\.? \|$", read("extending.md"), re.MULTILINE)
    assert fields == [field.name for field in dataclasses.fields(Family)]


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_citation_is_of_a_released_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{citation['version']}] - {citation['date-released']}" in changelog
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == ["Lim", "Lee", "Choi"]
