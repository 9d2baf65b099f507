"""Where the time of a re-finetuning step goes: dense and pruned models with the same optimizer, in one run.

Example:
    ::

        python -m pgb_lightning.experiments.training_step --model bert-base --num_threads 1

    The demo's model and batches::

        python -m pgb_lightning.experiments.training_step --model minilm-l6 --batch_size 32 --length 32
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pgb_lightning.atomic_write import write_atomically
from pgb_lightning.benchmark.measures import summarize
from pgb_lightning.benchmark.models import random_model
from pgb_lightning.benchmark.tables import format_spread
from pgb_lightning.config import PruningConfig
from pgb_lightning.experiments.families import pruned_copies
from pgb_lightning.experiments.metering import CLOCKS, Clock
from pgb_lightning.layers.fast_dropout import use_default_dropout, use_fast_dropout
from pgb_lightning.modules.optimizer import find_embeddings, parameter_groups
from pgb_lightning.packaged import MINILM_ALIAS, resolve_model

PHASES = ("forward", "backward", "clipping", "optimizer")

#: Operations inside the phases that pruning does not touch, by what they are for.
OPERATIONS = {
    "embedding gradient": ("aten::embedding_dense_backward",),
    "random numbers": ("aten::bernoulli_", "aten::random_"),
}

VariantName = Literal["default", "fast dropout", "frozen embeddings", "both", "bf16", "bf16 and both"]


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Args:
        frozen_embeddings: Whether the embeddings are not trained (``embedding_learning_rate=0``).
        fast_dropout: Whether dropout draws fewer random numbers (the callback ``FastDropout``).
        mixed_precision: Whether products are in bf16 (the Trainer's ``precision="bf16-mixed"``).
    """

    frozen_embeddings: bool = False
    fast_dropout: bool = False
    mixed_precision: bool = False


VARIANTS: dict[VariantName, Variant] = {
    "default": Variant(),
    "fast dropout": Variant(fast_dropout=True),
    "frozen embeddings": Variant(frozen_embeddings=True),
    "both": Variant(frozen_embeddings=True, fast_dropout=True),
    "bf16": Variant(mixed_precision=True),
    "bf16 and both": Variant(frozen_embeddings=True, fast_dropout=True, mixed_precision=True),
}


def run(
    model: str = "bert-base",
    num_layers: int | None = None,
    batch_size: int = 8,
    length: int = 128,
    plan: Literal["default", "narrow"] = "default",
    pruning_ratios: tuple[float, ...] = (0.5, 0.88),
    variants: tuple[VariantName, ...] = ("default", "both"),
    rounds: int = 9,
    num_samples: int = 16,
    clock: Clock = "wall",
    num_threads: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measure training steps on random tokens in interleaved rounds, and print medians, quartiles and shares.

    A step is forward, backward, clipping to norm 1 and fused AdamW, with dropout, on the CPU.

    Args:
        model: "minilm-l6" for the packaged model, or the name of a published encoder or a model type, for random
            weights.
        num_layers: Number of layers of a model with random weights; by default that of the encoder.
        batch_size: Sequences per batch.
        length: Tokens per sequence, without padding.
        plan: "default" searches over shapes, as the default preset does; "narrow" keeps fewer heads and neurons, the
            same number in every layer.
        pruning_ratios: Fractions of the encoder's weights to remove.
        variants: Ways to train: "default"; "fast dropout", with the callback ``FastDropout``; "frozen embeddings", with
            ``embedding_learning_rate=0``; "both"; and "bf16" and "bf16 and both" in mixed precision, which is slow on
            processors without instructions for bf16.
        rounds: Number of interleaved rounds. Each has one step of every model and variant.
        num_samples: Calibration samples of the default plan, of 128 random tokens.
        clock: "wall", or "process" for the time that the process computes, which other programs affect less. It adds
            up all threads, so compare models under it with one thread only.
        num_threads: Number of CPU threads; by default chosen by torch.
        out: JSON file for the results.

    Returns:
        By variant and model: median and quartiles of the step in seconds, speedup over the dense model of the same
        variant, and the shares of phases and operations.

    Raises:
        ValueError: If a setting is out of range.
    """
    for name, value in {"batch_size": batch_size, "length": length, "rounds": rounds}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range. Use 1 or more.")
    for ratio in pruning_ratios:
        PruningConfig(pruning_ratio=ratio)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    dense = _load(model, num_layers)
    models = {"dense": dense}
    for name, (pruned, _) in pruned_copies(dense, (plan,), pruning_ratios, num_samples):
        models[name] = pruned
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, int(dense.config.vocab_size), (batch_size, length), generator=generator)
    batch = {"input_ids": tokens, "labels": torch.randint(2, (batch_size,), generator=generator)}
    optimizers = {name: make_optimizer(each.train()) for name, each in models.items()}
    steps: dict[str, dict[str, TrainingStep]] = {
        variant: {name: TrainingStep(each, batch, optimizers[name], VARIANTS[variant]) for name, each in models.items()}
        for variant in variants
    }
    found = measure(steps, rounds, CLOCKS[clock])
    if out is not None:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found, indent=2) + "\n")
    title = f"{model}, {batch_size} x {length} tokens, {torch.get_num_threads()} threads, {clock} time"
    Console(width=150).print(_table(title, found))
    return found


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Create a fused AdamW, as the modules of this package do."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-6, fused=True)


class TrainingStep:
    """A training step of one model.

    Args:
        model: The model, in training mode. It may be that of several steps.
        batch: Its arguments, with labels.
        optimizer: Its optimizer.
        variant: How it is trained.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        variant: Variant = VARIANTS["default"],
    ) -> None:
        self.model = model
        self.batch = batch
        self.optimizer = optimizer
        self.variant = variant

    def __call__(self, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        """Run the step, and return the seconds of each phase."""
        with self._prepared():
            times = [clock()]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.variant.mixed_precision):
                loss = self.model(**self.batch).loss
            times.append(clock())
            loss.backward()
            times.append(clock())
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            times.append(clock())
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(clock())
        return {phase: end - start for phase, start, end in zip(PHASES, times[:-1], times[1:], strict=True)}

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        embeddings = find_embeddings(self.model).requires_grad_(not self.variant.frozen_embeddings)
        layers = use_fast_dropout(self.model) if self.variant.fast_dropout else []
        try:
            yield
        finally:
            use_default_dropout(layers)
            embeddings.requires_grad_(True)

    def operation_shares(self) -> dict[str, float]:
        """Run the step under the profiler, and return the fractions of its time that :data:`OPERATIONS` take."""
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            self()
        events = recorded.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        return {
            name: sum(event.cpu_time_total for event in events if event.key in keys) / total
            for name, keys in OPERATIONS.items()
        }


def measure(
    steps: Mapping[str, Mapping[str, TrainingStep]], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, Any]]:
    """Measure steps in interleaved rounds, after one step of each to warm up.

    Args:
        steps: The steps by variant and model, the first of which is ``"dense"``.
        rounds: Number of rounds.
        clock: Returns the time in seconds.

    Returns:
        By variant and model: median, quartiles and speedup of the step, and the shares of its phases and operations.
    """
    single = [step for models in steps.values() for step in models.values()]
    for step in single:
        step()
    measured: list[list[dict[str, float]]] = [[] for _ in single]
    for _ in range(rounds):
        for step, found in zip(single, measured, strict=True):
            found.append(step(clock))
    times = iter(measured)
    results: dict[str, dict[str, Any]] = {}
    for variant, models in steps.items():
        phases = {name: next(times) for name in models}
        totals = {name: [sum(each.values()) for each in found] for name, found in phases.items()}
        results[variant] = {
            name: {**summary, "phases": _shares(phases[name]), "operations": models[name].operation_shares()}
            for name, summary in summarize(totals).items()
        }
    return results


def _shares(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each phase as a fraction of their sum."""
    medians = {phase: statistics.median(each[phase] for each in measured) for phase in PHASES}
    return {phase: seconds / sum(medians.values()) for phase, seconds in medians.items()}


def _load(name: str, num_layers: int | None) -> PreTrainedModel:
    if name != MINILM_ALIAS:
        return random_model(name, num_layers)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(resolve_model(name), num_labels=2)
    model.train(False)
    return model


def _table(title: str, results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in ("variant", "model", "step, ms (quartiles)", "speedup", *PHASES, *OPERATIONS):
        table.add_column(column, justify="left" if column in ("variant", "model") else "right")
    for variant, models in results.items():
        for name, each in models.items():
            shares = [*each["phases"].values(), *each["operations"].values()]
            cells = (f"{share:.1%}" for share in shares)
            table.add_row(variant, name, format_spread(each), f"{each['speedup']:.2f}", *cells)
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.training_step")
