"""Random pruned models, and the dense models that have equal outputs."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

from helpers.families import tiny_model
from helpers.plans import masked, random_plan
from helpers.tiny import batches
from pgb_lightning import PruningPlan, apply_plan, follow_state_dict
from pgb_lightning.encoders.find import find_encoder

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Situation:
    """A random plan for a random model, the pruned model, and the dense model with equal outputs.

    Args:
        model_type: The family.
        seed: Determines the weights and the plan.
    """

    def __init__(self, model_type: str, seed: int) -> None:
        self.model_type = model_type
        self.rng = random.Random(f"{model_type} {seed}")
        self.original = self.fresh(seed)
        self.plan = random_plan(find_encoder(self.original), self.rng)
        self.expected = masked(self.original, self.plan)
        self.pruned = copy.deepcopy(self.original)
        apply_plan(self.pruned, self.plan)

    def fresh(self, seed: int = 99, **settings: Any) -> Any:
        """Return a dense model with other weights, which follows state dicts."""
        model = tiny_model(self.model_type, seed=seed, **settings)
        follow_state_dict(model)
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the pruned state dict."""
        return self.pruned.state_dict()

    def other(self) -> PruningPlan:
        """Return another plan for the same encoder."""
        return random_plan(find_encoder(self.original), self.rng)


def run(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(**{k: v for k, v in batches(1, 4)[0].items() if k != "labels"}).logits.to(dtype)  # type: ignore[no-any-return]


def assert_outputs(model: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    """Compare in every grad mode in which torch can run the model."""
    with torch.no_grad():
        right = run(expected)
    is_inference = any(value.is_inference() for value in (*model.parameters(), *model.buffers()))
    for mode in ("inference_mode",) if is_inference else MODES:
        with MODES[mode]():
            torch.testing.assert_close(run(model.eval()).detach().clone(), right, rtol=tolerance, atol=tolerance)


def assert_same_entries(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value.to(own[name].dtype)) for name, value in state.items())
