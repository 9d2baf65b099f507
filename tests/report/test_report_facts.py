"""Facts are restored from JSON and from checkpoints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import torch

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts
from pgb_lightning.report.facts import plan_digest


def test_facts_are_restored_from_json_and_checkpoints(plan_and_facts: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    _, facts = plan_and_facts()
    assert facts.maps
    assert facts.latency
    assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    buffer = io.BytesIO()
    torch.save(facts.to_dict(), buffer)
    buffer.seek(0)
    assert Facts.from_dict(torch.load(buffer, weights_only=True)) == facts  # primitives only


def test_unknown_entries_are_ignored() -> None:
    assert Facts.from_dict({"name": "a", "invented_later": 1}) == Facts(name="a")


def test_the_digest_identifies_a_plan(plan_and_facts: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    (paper, facts), (other, _) = plan_and_facts("paper"), plan_and_facts("default")
    assert facts.plan == plan_digest(paper) != plan_digest(other)
    assert plan_digest(PruningPlan.from_json(paper.to_json())) == plan_digest(paper)


def test_facts_of_a_plan_alone_are_empty(plan_and_facts: Callable[..., tuple[PruningPlan, Facts]]) -> None:
    plan, _ = plan_and_facts()
    assert Facts.of(plan) == Facts(plan=plan_digest(plan))
