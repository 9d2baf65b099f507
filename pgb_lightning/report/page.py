"""The page of a report: one self-contained HTML file, created without a plotting library."""

from __future__ import annotations

import math
import statistics
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.plotting import HUES
from pgb_lightning.report.facts import STAGES, Facts, Latency
from pgb_lightning.report.maps import blocks_of
from pgb_lightning.report.matrix_image import image_data_url
from pgb_lightning.report.summary import block_size, summarize
from pgb_lightning.report.tables import format_number, metric_names

#: Names of the kinds of sublayers on the page.
SUBLAYER_NAMES = {"attention": "attention", "ffn": "feed-forward"}


def render_page(plan: PruningPlan, facts: Facts | None = None) -> str:
    """Render the page.

    Args:
        plan: The plan.
        facts: The measurements. Missing ones are marked as not measured.

    Returns:
        HTML that loads no other file and runs no script.

    Example:
        >>> dense = [MatrixPlan(0, kind, 8, 8, None, None) for kind in ("Q", "K", "V", "O", "W1", "W2")]
        >>> "<title>" in render_page(PruningPlan("bert", tuple(dense)))
        True
    """
    facts = facts or Facts.of(plan)
    numbers = summarize(plan, facts)
    return (
        _environment()
        .get_template("page.html")
        .render(
            numbers=numbers,
            name=facts.name or f"{plan.model_type} encoder",
            version=_version(),
            names=SUBLAYER_NAMES,
            stages=STAGES,
            metrics=metric_names(facts),
            tiles=_tiles(plan, facts, numbers),
            latency_charts=[_latency_chart(each) for each in facts.latency],
            layers=_layers(numbers),
            largest_error=max(filter(math.isfinite, facts.sublayer_errors.values()), default=0.0),
            matrices=[
                [_matrix(plan, plan.matrix(layer, kind), facts) for kind in plan.kinds]
                for layer in range(plan.num_layers)
            ],
            kinds=plan.kinds,
            has_maps=bool(facts.maps),
            hues=HUES,
            settings=[
                (key, _setting(value)) for key, value in plan.config.items() if not isinstance(value, (list, dict))
            ],
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pgb_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=lambda value, digits: "–" if value is None else format_number(value, digits),
        finite=math.isfinite,
        percent=lambda value: f"{value:.0%}",
        percent1=lambda value: f"{value:.1%}",
        thousands=lambda value: f"{value:,}",
        millions=lambda value: f"{value / 1e6:.2f} M" if value >= 1e4 else f"{value:,}",
    )
    return environment


def _tiles(plan: PruningPlan, facts: Facts, numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the key numbers at the top of the page: label, value and remark."""
    kept, total = plan.kept_parameters, plan.total_parameters
    tiles = [("weights kept", f"{kept / total:.1%}", f"{kept:,} of {total:,}")]
    if facts.flops:
        dense, pruned = facts.flops["dense"], facts.flops["pruned"]
        tiles.append(("FLOPs kept", f"{pruned / dense:.1%}", f"{pruned / 1e9:.3g} of {dense / 1e9:.3g} G, 128 tokens"))
    for each in numbers["latency"][-1:]:
        size = f"{each['batch_size']} × {each['length']} tokens, encoder layers"
        tiles.append(("speedup", f"{each['speedup']:.2f} ×", size))
    if names := metric_names(facts):
        found = {stage: scores[names[0]] for stage, scores in facts.scores.items() if names[0] in scores}
        last = [stage for stage in STAGES if stage in found][-1]
        remark = f"dense: {format_number(found['dense'])}" if "dense" in found and last != "dense" else ""
        tiles.append((f"{names[0]}, {last}", format_number(found[last]), remark))
    return tiles


def _latency_chart(latency: Latency) -> dict[str, Any]:
    """Return the bars of one latency measurement, as fractions of the slowest round."""
    longest = max(*latency.dense, *latency.pruned)
    bars = [
        {
            "name": name,
            "milliseconds": 1000 * statistics.median(seconds),
            "width": statistics.median(seconds) / longest,
            "low": seconds[0] / longest,
            "high": seconds[-1] / longest,
        }
        for name, seconds in (("dense", latency.dense), ("pruned", latency.pruned))
    ]
    return {"batch_size": latency.batch_size, "length": latency.length, "device": latency.device, "bars": bars}


def _layers(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Group the sublayers by layer."""
    layers: dict[int, dict[str, Any]] = {}
    for entry in numbers["sublayers"]:
        layers.setdefault(entry["layer"], {"number": entry["layer"]})[entry["sublayer"]] = entry
    for layer in layers.values():
        layer["total"] = sum(layer[sublayer]["total_parameters"] for sublayer in SUBLAYERS)
        layer["kept"] = sum(layer[sublayer]["kept_parameters"] for sublayer in SUBLAYERS)
    return list(layers.values())


def _matrix(plan: PruningPlan, matrix: MatrixPlan, facts: Facts) -> dict[str, Any]:
    """Return the image, the blocks and the description of one matrix."""
    shades = facts.maps.get(f"{matrix.layer}.{matrix.kind}")
    inputs, outputs = block_size(matrix)
    if matrix.num_groups == 0:
        description = "removed"
    elif matrix.kept_parameters == matrix.total_parameters and matrix.num_groups == 1:
        description = "dense"
    elif matrix.num_groups == 1:
        description = f"one block of {inputs} × {outputs}"
    else:
        description = f"{matrix.num_groups} blocks of {inputs} × {outputs}"
    return {
        "plan": matrix,
        "kept_share": plan.kept_share(matrix),
        "description": description,
        "blocks": blocks_of(matrix),
        "image": image_data_url(matrix, shades) if shades else None,
    }


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return format_number(value) if isinstance(value, float) else str(value)


def _version() -> str:
    try:
        return version("pgb-lightning")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""
