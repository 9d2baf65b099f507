"""Reports of every family: as many matrices as its layers have, in all tables, figures and on the page."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.families import TINY, tiny_batches, tiny_model

from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.report import Facts, PruningNotes, render_page
from pgb_lightning.report.figures import draw_figures
from pgb_lightning.report.layer_latency import count_flops, measure_layer_latency
from pgb_lightning.report.summary import summarize
from pgb_lightning.report.tables import error_table, plan_table, render


@pytest.mark.parametrize("preset", ["default", "balanced"])
@pytest.mark.parametrize("model_type", TINY)
def test_a_report_has_all_matrices(model_type: str, preset: str) -> None:
    model = tiny_model(model_type)
    encoder, notes = find_encoder(model), PruningNotes()
    config = PruningConfig.from_preset(preset, pruning_ratio=0.4)
    statistics = calibrate(encoder, tiny_batches(4), model_loss(model), moments=config.needs_moments)
    plan = make_plan(encoder, statistics, config)
    notes.record_importance(encoder, plan, statistics.fisher)
    assert notes.maps.keys() == {(matrix.layer, matrix.kind) for matrix in plan.matrices}
    carry_out(encoder, plan, statistics, config, errors=notes.errors)
    layers = range(len(encoder.layers))
    assert notes.errors.sublayers.keys() == {(layer, sublayer) for layer in layers for sublayer in SUBLAYERS}
    latency = measure_layer_latency(encoder, batch_size=2, length=9, repeats=1, min_time=0.0001)
    facts = Facts.of(plan, notes, flops=count_flops(encoder), latency=(latency,))
    assert facts.flops == {"dense": dense_cost(encoder).flops, "pruned": encoder_cost(encoder).flops}

    numbers = summarize(plan, facts)
    kinds = encoder.matrices
    assert [(each["layer"], each["kind"]) for each in numbers["matrices"]] == [
        (n, kind) for n in layers for kind in kinds
    ]
    assert sum(each["kept_parameters"] for each in numbers["matrices"]) == encoder_cost(encoder).parameters
    assert sum(part["total"] for part in numbers["split"].values()) == dense_cost(encoder).parameters
    assert all(each["measured_error"] is not None for each in numbers["sublayers"])

    page = render_page(plan, facts)
    assert f'style="--kinds: {len(kinds)}"' in page
    assert page.count("<figcaption>") == len(plan.matrices)
    for kind in kinds:
        assert page.count(f"<figcaption><b>{kind}</b>") == len(encoder.layers)
    assert re.search(rf"<th scope=\"col\">{kinds[-1]}</th>", page)
    shown = render(plan_table(plan), 140)
    assert re.search(r"layer.*" + ".*".join(kinds) + ".*kept", shown)
    assert "of the encoder" in render(error_table(plan, facts), 140)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_figures_have_a_column_for_each_matrix(model_type: str) -> None:
    pytest.importorskip("matplotlib")
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    config = PruningConfig.from_preset("balanced", pruning_ratio=0.4)
    statistics = calibrate(encoder, tiny_batches(2), model_loss(model), moments=True)
    plan = make_plan(encoder, statistics, config)
    figures = draw_figures(plan, Facts.of(plan))
    assert len(figures["matrices"].axes) == len(plan.matrices)
    ticks = [label.get_text() for label in figures["groups"].axes[0].get_xticklabels()]
    assert ticks == list(encoder.matrices)
    widths = torch.tensor([float(figures[name].get_size_inches()[0]) for name in ("groups", "matrices")])
    assert torch.equal(widths, torch.tensor([1.3 + 0.65 * len(ticks), 1.4 * len(ticks)]))
