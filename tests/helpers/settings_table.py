"""The table of settings in docs/callback.md, made from PruningConfig's docstring.

Run ``python tests/helpers/settings_table.py`` after changing that docstring or a default.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from pgb_lightning import PruningConfig
from pgb_lightning.callbacks.pruning.settings import setting_descriptions

PAGE = Path(__file__).parents[2] / "docs" / "callback.md"
START, END = "<!-- settings: generated -->\n\n", "\n<!-- end of settings -->\n"


def make_table() -> str:
    """Return the Markdown table: name, default and description of each setting."""
    texts = setting_descriptions()
    rows = [
        f"| `{field.name}` | {_default(field.default)} | {texts[field.name].replace('``', '`')} |"
        for field in fields(PruningConfig)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def update_page(text: str) -> str:
    """Return a page with the table between its two markers replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{make_table()}{END}{after}"


def _default(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return "none" if value is None else f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
