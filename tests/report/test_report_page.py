"""The page is valid, self-contained, correct and escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from helpers.kinds import MATRICES

from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.report import Facts, render_page
from pgb_lightning.report.summary import split_removed
from pgb_lightning.report.tables import format_number

Make = Callable[..., tuple[PruningPlan, Facts]]

#: Elements without an end tag.
VOID = {"meta", "link", "image", "rect"}


class Page(HTMLParser):
    """Parse a page into elements and table cells, and check that all tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.open: list[str] = []
        self.section = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"]
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[self.section][-1][-1] += data.strip()

    def all(self, *tags: str) -> Iterator[dict[str, str]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_page_loads_no_file_and_runs_no_script(preset: str, plan_and_facts: Make) -> None:
    html = render_page(*plan_and_facts(preset))
    page = Page(html)
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not list(page.all("script", "iframe", "object", "embed", "form"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_the_page_shows_the_numbers_of_the_plan(preset: str, plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts(preset)
    page = Page(render_page(plan, facts))
    heat = page.tables["groups"]
    assert heat[0] == ["layer", *MATRICES]
    for layer, row in enumerate(heat[1:]):
        matrices = [plan.matrix(layer, kind) for kind in MATRICES]
        assert row == [str(layer), *(f"{m.num_groups}{m.kept_share:.0%}" for m in matrices)]
    rows = page.tables["numbers"][1:]
    assert len(rows) == len(plan.matrices)
    for row, matrix in zip(rows, plan.matrices, strict=True):
        measured = facts.matrix_errors[f"{matrix.layer}.{matrix.kind}"]
        assert row[:3] == [f"{matrix.layer} {matrix.kind}", f"{matrix.rows} × {matrix.columns}", str(matrix.num_groups)]
        fractions = [f"{matrix.kept_share:.1%}", f"{matrix.importance_kept:.1%}"]
        assert row[4:] == [*fractions, format_number(matrix.predicted_error, 3), format_number(measured, 3)]
    split = split_removed(plan)
    for row, part in zip(page.tables["split"][1:], split.values(), strict=True):
        assert row[3:] == [f"{part.kept_share:.1%}", f"{part.points:.1f}", f"{part.fraction:.1%}"]
    for layer, row in enumerate(page.tables["errors"][2:]):
        measured_errors = [facts.sublayer_errors[f"{layer}.{name}"] for name in ("attention", "ffn")]
        assert row[2::2] == [format_number(error, 3) for error in measured_errors]


def test_blocks_are_drawn_at_their_positions(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts("paper")
    page = Page(render_page(plan, facts))
    area = sum(float(each["width"]) * float(each["height"]) / 1e4 for each in page.all("rect"))
    assert area == pytest.approx(sum(matrix.kept_share for matrix in plan.matrices), abs=1e-3)
    assert len(list(page.all("image"))) == len(plan.matrices)
    labels = [each["aria-label"] for each in page.all("svg")]
    assert len(labels) == len(plan.matrices)
    assert labels[0].startswith("Layer 0 Q, 24 × 24: ")


def test_scores_and_latency_are_shown_beside_the_dense_model(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts()
    results = Page(render_page(plan, facts)).tables["results"]
    by_name = {row[0]: row[1:] for row in results}
    assert by_name["val_accuracy"] == ["0.9125", "not measured", "0.8875", ""]
    assert by_name["encoder ms, 8 × 128 tokens"] == ["110", "55", "55", "50.0%"]
    assert by_name["pruned"] == ["", "55 ms"]


def test_missing_measurements_are_marked(plan_and_facts: Make) -> None:
    plan, _ = plan_and_facts()
    html = render_page(plan)
    page = Page(html)
    assert not list(page.all("image"))
    assert {row[-1] for row in page.tables["numbers"][1:]} == {"not measured"}
    assert page.tables["results"][1][1:4] == ["not measured"] * 3
    assert "calibration samples" in html  # the plan records their number
    assert "calibration samples" not in render_page(replace(plan, num_samples=0)).partition("</header>")[0]


def test_a_dense_plan_without_facts() -> None:
    dense = PruningPlan("bert", tuple(MatrixPlan(0, kind, 8, 8, None, None) for kind in MATRICES))
    html = render_page(dense)
    assert "bert encoder" in html
    assert "100.0%" in html
    assert "<dt><code>" not in html  # no settings


def test_names_are_escaped(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts()
    evil = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }} &amp;"
    scores = {"dense": {evil: 0.5}}
    latency = tuple(replace(each, device=evil) for each in facts.latency)
    html = render_page(replace(plan, config={evil: evil}), replace(facts, name=evil, scores=scores, latency=latency))
    page = Page(html)
    assert not list(page.all("script"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "49" not in html.partition("</title>")[0]
    assert evil in [row[0] for row in page.tables["results"]]  # shown verbatim


def test_the_page_is_accessible_to_screen_readers(plan_and_facts: Make) -> None:
    page = Page(render_page(*plan_and_facts()))
    assert next(page.all("html"))["lang"] == "en"
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(page.headings, page.headings[1:], strict=False))
    assert all(each.get("scope") in ("row", "col", "colgroup") for each in page.all("th"))
    images = [each for each in page.all("svg", "div") if each.get("role") == "img"]
    assert all(each["aria-label"] for each in images)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [value for _, a in page.elements for name, value in a.items() if name == "aria-labelledby"]
    targets = [each["href"][1:] for each in page.all("a")]
    assert {*references, *targets} <= set(ids)
    assert all(each.get("tabindex") == "0" for each in page.all("div") if each.get("role") == "region")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors, #RRGGBB, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        channels = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_enough_contrast_in_both_color_schemes(plan_and_facts: Make) -> None:
    css = render_page(*plan_and_facts())
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in css.split("prefers-color-scheme: dark")[:2]]
    assert len(schemes) == 2
    for colors in schemes:
        for ground in ("page", "surface"):
            assert all(contrast(colors[text], colors[ground]) >= 4.5 for text in ("ink", "muted", "attention"))
        assert contrast(colors["ink"], colors["heat"]) >= 4.5
        assert all(contrast(colors[bar], colors["surface"]) >= 3 for bar in ("attention", "ffn"))


def test_the_page_of_a_base_size_encoder_is_small(plan_and_facts: Make) -> None:
    plan, facts = plan_and_facts("paper")
    noise = "0123456789abcdef" * 6
    rows = tuple(noise[shift % 16 :] + noise[: shift % 16] for shift in range(96))
    matrices = tuple(replace(matrix, layer=layer) for layer in range(12) for matrix in plan.matrices[:6])
    keys = [f"{matrix.layer}.{matrix.kind}" for matrix in matrices]
    html = render_page(replace(plan, matrices=matrices), replace(facts, maps=dict.fromkeys(keys, rows)))
    assert html.count("<image") == 72
    assert len(html) < 3_000_000
