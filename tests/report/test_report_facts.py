"""Facts survive a checkpoint."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import torch

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts
from pgb_lightning.report.facts import digest


def test_facts_go_through_json_and_checkpoints(made: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    _, facts = made()
    assert facts.maps
    assert facts.latency
    assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    buffer = io.BytesIO()
    torch.save(facts.to_dict(), buffer)
    buffer.seek(0)
    assert Facts.from_dict(torch.load(buffer, weights_only=True)) == facts  # primitives only


def test_what_a_newer_release_knows_is_left_out() -> None:
    assert Facts.from_dict({"name": "a", "invented_later": 1}) == Facts(name="a")


def test_plans_are_told_apart(made: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    (paper, facts), (other, _) = made("paper"), made("default")
    assert facts.plan == digest(paper) != digest(other)
    assert digest(PruningPlan.from_json(paper.to_json())) == digest(paper)


def test_of_a_plan_alone_nothing_else_is_known(made: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    plan, _ = made()
    assert Facts.of(plan) == Facts(plan=digest(plan))
