"""Parts of the Markdown files in the documentation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
GUIDES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "measurements").glob("*.md")),
]


def blocks(path: Path, language: str) -> list[str]:
    """Return a file's code blocks in one language, in order."""
    return [token.content for token in _tokens(path) if token.type == "fence" and token.info == language]


def links(path: Path) -> Iterator[str]:
    """Yield the targets of a file's links and images."""
    for token in _tokens(path):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield str(target)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub and the site make them."""
    tokens = _tokens(path)
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(path: Path) -> Iterator[str]:
    """Yield the lines of a file's shell blocks, without comments and with continued lines joined."""
    for block in blocks(path, "bash"):
        yield from _shell_lines(block)


def docstring_commands(path: Path) -> list[str]:
    """Return the lines in the docstring of a Python file that run a module, as :func:`commands` does."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return [line for line in _shell_lines(docstring) if line.startswith("python -m ")]


def _shell_lines(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        yield line.partition(" #")[0].strip()


def _tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
