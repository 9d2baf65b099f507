"""The latency table: which shapes it distinguishes, how it is cached, and that the encoder is unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from test_candidates import candidates_of, statistics_of

from pgb_lightning import PruningConfig, latency
from pgb_lightning.calibration.collect import Calibration
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.pruning import carry_out, make_plan
from pgb_lightning.search import latency_table, speedup
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.search.costs import candidate_cost, candidate_flops
from pgb_lightning.search.latency_table import cache_folder, measure_table, shape_key, table_setting

#: Settings with few shapes, to measure little.
FEW_SHAPES = PruningConfig(ridge=1e-9, max_groups=2)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return find_encoder(classifier(layers=1))


@pytest.fixture(scope="module")
def candidates() -> list[list[Candidate]]:
    return candidates_of(classifier(layers=1))


@pytest.fixture(scope="module")
def statistics() -> Calibration:
    return statistics_of(classifier(layers=2), batches(6))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Replace measurements by a function of the parameters; the list holds the candidates that were measured."""
    measured: list[Candidate] = []

    def seconds(_: object, candidates: list[Candidate], *__: object) -> Iterator[float]:
        for candidate in candidates:
            measured.append(candidate)
            yield 1e-9 * (candidate.parameters + 50)

    monkeypatch.setattr(latency_table, "_time_candidates", seconds)
    return measured


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_shape_is_measured_once_and_the_encoder_is_unchanged(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "NUM_CALLS", 1)
    model = classifier(model_type, layers=1)
    encoder, found = find_encoder(model), candidates_of(model, FEW_SHAPES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = measure_table(encoder, found, 1, 8, tmp_path)
    assert all(table(candidate) > 0 for options in found for candidate in options)
    assert len(table.seconds) == len({shape_key(candidate, encoder) for options in found for candidate in options})
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    [path] = tmp_path.iterdir()
    assert json.loads(path.read_text()) == table.seconds


def test_a_cached_table_is_read_and_extended(
    encoder: Encoder, candidates: list[list[Candidate]], clock: list[Candidate], tmp_path: Path
) -> None:
    attention, ffn = candidates
    measure_table(encoder, [attention], 1, 8, tmp_path)
    assert {candidate.sublayer for candidate in clock} == {"attention"}
    clock.clear()
    table = measure_table(encoder, [attention, ffn], 1, 8, tmp_path)
    assert {candidate.sublayer for candidate in clock} == {"ffn"}
    clock.clear()
    assert measure_table(encoder, [attention, ffn], 1, 8, tmp_path) == table
    assert not clock


def other_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "processor_name", lambda: "another processor")


def other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "KERNEL_VERSION", latency_table.KERNEL_VERSION + 1)


def other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)


def other_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 999)


def other_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")


def other_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "0.1")


def other_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")


@pytest.mark.parametrize(
    "change",
    [
        other_processor,
        other_kernels,
        other_threads,
        other_cores,
        other_instructions,
        other_torch,
        other_precision,
    ],
)
def test_a_table_of_another_machine_or_version_is_not_read(
    change: Callable[[pytest.MonkeyPatch], None],
    encoder: Encoder,
    candidates: list[list[Candidate]],
    clock: list[Candidate],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = measure_table(encoder, candidates, 1, 8, tmp_path)
    clock.clear()
    change(monkeypatch)
    assert measure_table(encoder, candidates, 1, 8, tmp_path) == table
    assert clock  # measured again
    assert len(list(tmp_path.iterdir())) == 2


def test_a_table_is_of_one_encoder_shape_and_batch(encoder: Encoder) -> None:
    settings = [
        table_setting(encoder, 1, 8),
        table_setting(encoder, 2, 8),
        table_setting(encoder, 1, 9),
        table_setting(find_encoder(classifier("roberta", layers=1)), 1, 8),
        table_setting(find_encoder(classifier(layers=1, hidden_size=48)), 1, 8),
        table_setting(find_encoder(classifier(layers=1, num_attention_heads=3)), 1, 8),
        table_setting(find_encoder(classifier(layers=1, intermediate_size=48)), 1, 8),
        table_setting(find_encoder(classifier(layers=1).bfloat16()), 1, 8),
        table_setting(find_encoder(classifier(layers=1, attn_implementation="eager")), 1, 8),
    ]
    assert len({json.dumps(setting) for setting in settings}) == len(settings)


def test_without_a_matmul_precision_the_newer_setting_is_used(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError

    monkeypatch.setattr(torch, "get_float32_matmul_precision", fail)
    assert table_setting(encoder, 1, 8)["matmul_precision"] == str(torch.backends.cuda.matmul.fp32_precision)


def test_shape_keys_describe_blocks_gathers_and_scatters(encoder: Encoder, candidates: list[list[Candidate]]) -> None:
    attention, ffn = candidates
    shapes = {str(candidate.shape): shape_key(candidate, encoder) for candidate in (*attention, *ffn)}
    assert shapes["2 heads"] == "attention: 24x24, 24x24, 24x24, 24x24"
    assert shapes["1 heads"] == "attention: 24x12, 24x12, 24x12, 12x24"
    assert shapes["48 neurons"] == "ffn: 24x48, 48x24"
    assert shapes["48 neurons in 1 and 4 groups"].startswith("ffn: 24x48, 4x12x6")
    assert shapes["96 neurons in 6 and 2 groups"].startswith("ffn: <6x4x16, ")
    assert shapes["dropped"] in ("attention: -, -, -, -", "ffn: -, -")


def test_the_cache_folder_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pgb_lightning" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pgb_lightning" / "latency"


@pytest.mark.parametrize("budget", ["flops", "latency"])
@pytest.mark.usefixtures("clock")
def test_a_plan_meets_its_budget(
    budget: str, statistics: Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda _, plan, *__: 1 - plan.pruning_ratio)
    encoder = find_encoder(classifier(layers=2))
    config = PruningConfig(pruning_ratio=0.5, budget=budget, latency_length=9)  # type: ignore[arg-type]
    before = encoder_cost(encoder, 9).flops
    plan = make_plan(encoder, statistics, config)
    carry_out(encoder, plan, statistics, config)
    if budget == "flops":
        assert abs(encoder_cost(encoder, 9).flops / before - 0.5) < 0.02
    else:
        assert abs(plan.pruning_ratio - 0.5) < 0.03
    assert latency.measure_encoder(encoder, 1, 4) > 0


def test_costs_of_dense_candidates_are_those_of_the_encoder(
    encoder: Encoder, candidates: list[list[Candidate]]
) -> None:
    flops = sum(candidate_flops(options[0], 12, 9) for options in candidates)
    assert flops == encoder_cost(encoder, 9).flops
    parameters = candidate_cost(encoder, candidates, PruningConfig())
    assert sum(parameters(options[0]) for options in candidates) == encoder_cost(encoder).parameters


def test_a_shape_that_is_not_faster_than_the_dense_one_is_never_chosen(
    statistics: Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def seconds(_: object, candidates: list[Candidate], *__: object) -> Iterator[float]:
        for candidate in candidates:
            # Pruning attention makes it slower.
            slower = 1.0 if candidate.loss == 0 else 1.5
            yield slower if candidate.sublayer == "attention" else float(candidate.parameters)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_table, "_time_candidates", seconds)
    monkeypatch.setattr(speedup, "measure_latency_ratio", lambda *_: 1 / 1.5)
    plan = make_plan(find_encoder(classifier(layers=2)), statistics, PruningConfig(target_speedup=1.5))
    assert all(plan.matrix(layer, kind).kept_share == 1 for layer in range(2) for kind in "QKVO")
    assert plan.pruning_ratio > 0.1
