"""A dense model with its calibration batches, from which any number of pruned copies can be made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import BASELINES, Calibrated
from pgb_lightning.experiments.metering import Usage, metered
from pgb_lightning.modules import QuestionAnswering, TextClassification
from pgb_lightning.pruning import carry_out, collect_statistics, make_plan, prepare

Module = TextClassification | QuestionAnswering


class CalibratedModel:
    """A dense module with its calibration batches.

    Statistics are collected once for all methods and ratios that use them. The time of a pruned model includes the time
    for its statistics, as if it were the only pruned model.

    Args:
        module: The dense module. It is not changed.
        batches: Labeled calibration batches on its device.
    """

    def __init__(self, module: Module, batches: Sequence[Any]) -> None:
        self.module = module
        self.batches = batches
        self._baselines = Calibrated(module.model, batches)
        self._found: dict[Any, tuple[Any, Usage]] = {}

    def prune(self, method: str, ratio: float, options: dict[str, Any] | None = None) -> tuple[Module, float, Usage]:
        """Prune a copy in one shot.

        Args:
            method: A preset or the name of a baseline.
            ratio: Fraction of the encoder's weights to remove.
            options: Settings that override those of the preset; baselines have none.

        Returns:
            The pruned copy, the fraction that was removed, and the time and memory that it took.
        """
        module = copy.deepcopy(self.module)
        if method in BASELINES:
            _, collecting = self._once(BASELINES[method].collect, lambda: self._baselines.statistics(method))
            with metered() as pruning:
                removed = self._baselines.prune(method, module.model, ratio)
            return module, removed, collecting + pruning
        config = PruningConfig.from_preset(method, pruning_ratio=ratio, **(options or {}))
        with metered() as preparing:
            encoder = prepare(module.model, config)
        key = (
            config.fisher,
            config.fisher_temperature,
            config.fisher_samples,
            config.compensation_tokens,
            config.needs_moments,
        )
        dense = find_encoder(self.module.model)
        (statistics, _), collecting = self._once(
            key, lambda: collect_statistics(self.module.model, dense, self.batches, config)
        )
        with metered() as pruning:
            plan = make_plan(encoder, statistics, config)
            carry_out(encoder, plan, statistics, config)
        return module, plan.pruning_ratio, preparing + collecting + pruning

    def _once(self, key: Any, collect: Callable[[], Any]) -> tuple[Any, Usage]:
        """Return statistics and the time that they took. They are collected on first use."""
        if key not in self._found:
            with metered() as usage:
                statistics = collect()
            self._found[key] = statistics, usage
        return self._found[key]
