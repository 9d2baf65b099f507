"""The command ``pgb prune``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import instantiate_class
from rich.console import Console
from rich.table import Table

from pgb_lightning.atomic_write import replacing, write_atomically, write_json
from pgb_lightning.callbacks import PGBCallback, PGBReport
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.cli.prune.checks import (
    are_finite,
    as_misconfiguration,
    check_inputs,
    check_trainer,
    check_weights,
    finite,
    hash_rows,
)
from pgb_lightning.cli.prune.estimate import estimate
from pgb_lightning.cli.prune.exports import FORMATS, FormatName, make_facts, write_all
from pgb_lightning.cli.prune.settings import FIT_CONFIG, TEACHER_ANSWERS, PruneSettings, Recover
from pgb_lightning.config import LatencyRuntime
from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.distillation.teacher import hash_weights
from pgb_lightning.export import push
from pgb_lightning.export.dense_model import find_dense
from pgb_lightning.export.huggingface import check_folder
from pgb_lightning.export.push import check_repo_id
from pgb_lightning.modules.fine_tuned import require_head
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.scoring import agreement, evaluate
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import prepare
from pgb_lightning.runtimes.requirements import require_runtime
from pgb_lightning.search.costs import check_runtime_device

#: Files in the folder of the run: the settings, the dense model's scores and predictions, and the result.
SETTINGS, DENSE_SCORES, RESULT = "settings.json", "dense.pt", "scores.json"


def run_prune(
    model: str,
    data: str,
    output_dir: str,
    pruning_ratio: float | None = None,
    target_speedup: float | None = None,
    latency_runtime: LatencyRuntime | None = None,
    preset: str = "default",
    recover: Recover = "distill",
    epochs: int | None = None,
    learning_rate: float | None = None,
    text_columns: list[str] | str | None = None,
    label_column: str | None = None,
    use_labels: bool = True,
    label_names: list[str] | None = None,
    label_separator: str | None = None,
    validation_data: str | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    max_train_samples: int | None = None,
    export: list[FormatName] | None = None,
    push_to_hub: str | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    seed: int = 42,
) -> dict[str, Any]:
    """Prune a fine-tuned model with a table of texts, recover it, score it and export it, in one command.

    To continue an interrupted run, repeat the command. ``output_dir`` becomes a Hugging Face folder with ``plan.json``
    and the page ``report/index.html``; its subfolder ``run/`` has the scores, the checkpoints, and ``fit.yaml``, the
    configuration of the same run for ``pgb fit``.

    Args:
        model: The model: a Hugging Face folder, a name on the Hub, or a checkpoint of ``pgb fit``; fine-tuned, or an
            embedding model of sentence-transformers.
        data: A CSV, TSV, JSON lines or parquet file, a folder of them, or the name of a data set on the Hub. Labels
            are not needed.
        output_dir: The folder to write, new or empty.
        pruning_ratio: Fraction of the encoder's weights to remove; 0.5 if there is no target_speedup.
        target_speedup: Speedup of the encoder over the dense one to reach on this machine, such as 2.0.
        latency_runtime: The runtime in which latency is measured for target_speedup: "torch" or "onnxruntime".
        preset: "default", "paper" or "balanced".
        recover: "distill" (from the dense model, without labels), "finetune" (from the labels) or "none".
        epochs: Epochs of recovery; by default ten for distillation with fewer than 10,000 training rows, else three.
        learning_rate: Peak learning rate; by default 1e-4 for distillation and 3e-5 for fine-tuning.
        text_columns: The column of texts (or lists of words), or the two columns of text pairs; detected if there is
            only one choice.
        label_column: The column of labels; detected by common names if omitted.
        use_labels: Whether to use labels at all.
        label_names: Names of the model's classes, in order, if its configuration does not have them.
        label_separator: Separator of multiple labels in one string, such as "|".
        validation_data: A file with validation rows; if omitted, a tenth of the rows is held out.
        max_length: Texts are truncated to this many tokens.
        batch_size: Rows in a training batch.
        max_train_samples: Prune and recover with this many rows, drawn at random.
        export: Additional export formats, each written to a subfolder of the same name: "onnx", "onnx-int8",
            "onnx-int8-dynamic", "openvino" and "openvino-int8".
        push_to_hub: Name of a Hub repository to upload the model to, such as "me/my-model".
        precision: The Trainer's precision in training, such as "bf16-mixed".
        accelerator: The Trainer's accelerator.
        seed: Random seed.

    Returns:
        The content of ``run/scores.json``.

    Raises:
        MisconfigurationException: If a setting, the model or the data cannot be used. All are checked before any work
            starts.
    """
    arguments = dict(locals())
    arguments |= {"model": str(model), "data": str(data), "output_dir": str(Path(output_dir).expanduser())}
    arguments |= {"validation_data": None if validation_data is None else str(validation_data)}
    formats = arguments.pop("export") or []
    arguments.pop("push_to_hub")
    settings = PruneSettings(**arguments)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise MisconfigurationException(f"export has {unknown[0]!r}. Use {', '.join(map(repr, FORMATS))}.")
    config = PGBCallback(
        pruning_ratio=pruning_ratio, target_speedup=target_speedup, latency_runtime=latency_runtime, preset=preset
    ).config
    with as_misconfiguration():
        require_runtime(config.latency_runtime)
        for name in formats:
            FORMATS[name].require()
        if push_to_hub is not None:
            check_repo_id(push_to_hub)
    check_trainer(settings)
    with _opened_run(settings, arguments):
        dense = find_dense(settings.model, settings.run_folder)
        head = require_head(dense)
        rows: TextDataModule = instantiate_class((), settings.data_config(dense, head))
        rows.prepare_data()
        rows.setup("fit")
        is_labeled = rows.is_labeled
        settings.check_recovery(head, is_labeled)
        L.seed_everything(seed)
        module: FineTuning = instantiate_class((), settings.model_config(dense, head))
        with as_misconfiguration():
            prepare(module, config)
        check_inputs(module, rows, settings)
        tester = _tester(settings)
        with as_misconfiguration():
            check_runtime_device(config.latency_runtime, tester.strategy.root_device.type)
    console = Console()
    num_epochs = settings.num_epochs(len(rows.split("train")))
    dense_scores, rows_hash = settings.run_folder / DENSE_SCORES, hash_rows(rows)
    weights_hash = hash_weights(module.model)
    if not dense_scores.is_file():
        module.to(tester.strategy.root_device)
        expected = estimate(module.model, rows, pruning_ratio or 0.5, num_epochs, has_teacher=recover == "distill")
        console.print(expected.describe(), soft_wrap=True)
        scores, predictions = evaluate(tester, module, rows, is_labeled)
        known = {"scores": scores, "predictions": predictions, "rows": rows_hash, "weights": weights_hash}
        with replacing(dense_scores) as unfinished:
            torch.save(known, unfinished)
    known = torch.load(dense_scores, weights_only=True)
    if known["rows"] != rows_hash:
        raise MisconfigurationException(
            f"data={settings.data!r} has other rows than at the start of the run in output_dir={settings.output_dir!r}."
            " Continue it with the same rows, or choose another folder."
        )
    if known.get("weights") != weights_hash:
        raise MisconfigurationException(
            f"model={settings.model!r} has other weights than at the start of the run in output_dir="
            f"{settings.output_dir!r}. Continue it with the same model, or choose another folder."
        )
    fit_config = settings.fit_config(dense, head, is_labeled, finite(known["scores"]), num_epochs)
    _write_config(fit_config, settings.run_folder / FIT_CONFIG, console)
    fitted, plan, report = _fit(fit_config, settings)
    check_weights(fitted, settings)
    after, predictions = evaluate(tester, fitted, rows, is_labeled)
    same = agreement(predictions, known["predictions"], None if head is None else head.problem_type)
    result = {
        "removed": plan.pruning_ratio,
        "dense": known["scores"],
        "pruned": dict(report.facts.scores.get("pruned", {})) if report.facts else {},
        "recovered" if recover != "none" else "exported": after,
        "agreement with dense": same,
    }
    write_json(settings.run_folder / RESULT, result)
    facts = make_facts(fitted, rows, settings, finite(after), finite(known["scores"]), push_to_hub)
    write_all(fitted, plan, rows, settings, formats, facts)
    console.print(_table(result))
    _say(console, f"Model: {settings.output_dir}")
    _say(console, f"Report: {settings.run_folder.parent / 'report' / 'index.html'}")
    if push_to_hub is not None:
        _say(console, f"Pushed: {push.push_to_hub(settings.run_folder.parent, push_to_hub)}")
    return result


@contextmanager
def _opened_run(settings: PruneSettings, arguments: dict[str, Any]) -> Iterator[None]:
    """Create the folder of a run, or reuse that of an unfinished run. A new folder is removed if a check fails.

    Raises:
        MisconfigurationException: If the output folder has other content, or a check fails.
    """
    folder, out = settings.run_folder, settings.run_folder.parent
    file = folder / SETTINGS
    # Converted as in the file, where tuples become lists.
    given = json.loads(json.dumps({name: value for name, value in arguments.items() if name != "output_dir"}))
    is_finished = (out / "config.json").is_file()
    if file.is_file() and not is_finished and not (folder / DENSE_SCORES).is_file():
        shutil.rmtree(folder)  # the run stopped before it computed anything
    is_new, existed = not file.is_file(), out.exists()
    if is_new:
        with as_misconfiguration():
            check_folder(settings.output_dir, name="output_dir")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(given, indent=2) + "\n")
    elif is_finished:
        raise MisconfigurationException(
            f"output_dir={settings.output_dir!r} has the model of a finished run. Choose another folder."
        )
    else:
        _check_same(settings, json.loads(file.read_text()), given)
    try:
        yield
    except BaseException as error:
        if is_new:  # nothing is computed yet, and the next attempt may use other settings
            shutil.rmtree(folder if existed else out)
        if not isinstance(error, MisconfigurationException):
            raise
        # Name the setting and the value of this command: modules call it model_name_or_path, and get a checkpoint's
        # model as a folder.
        text = str(error).replace(repr(str(folder / "dense")), repr(settings.model))
        raise MisconfigurationException(text.replace("model_name_or_path=", "model=")) from error.__cause__


def _check_same(settings: PruneSettings, before: dict[str, Any], given: dict[str, Any]) -> None:
    changed = [f"{name}={given[name]!r}, not {before.get(name)!r}" for name in given if given[name] != before.get(name)]
    if changed:
        raise MisconfigurationException(
            f"output_dir={settings.output_dir!r} has an unfinished run with other settings: {'; '.join(changed)}. "
            "Continue it with the same settings, or choose another folder."
        )


def _tester(settings: PruneSettings) -> L.Trainer:
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def _say(console: Console, text: str) -> None:
    """Print a line verbatim, without reading brackets in paths as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _write_config(config: dict[str, Any], file: Path, console: Console) -> None:
    text = yaml.safe_dump(config, sort_keys=False)
    write_atomically(file, f"# The same run: pgb fit --config {file}\n\n{text}")
    _say(console, text)
    _say(console, f"The same run: pgb fit --config {file}")


def _fit(config: dict[str, Any], settings: PruneSettings) -> tuple[FineTuning, PruningPlan, PGBReport]:
    """Run a configuration as ``pgb fit`` does, and return the best module, the plan and the report callback."""
    L.seed_everything(config["seed_everything"])
    trainer_config = dict(config["trainer"])
    callbacks = [instantiate_class((), each) for each in trainer_config.pop("callbacks")]
    logger = instantiate_class((), trainer_config.pop("logger"))
    module: FineTuning = instantiate_class((), config["model"])
    data = instantiate_class((), config["data"])
    trainer = L.Trainer(**trainer_config, callbacks=callbacks, logger=logger)
    last = settings.run_folder / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    best = settings.run_folder / "best.ckpt"
    # A recovery that diverged is refused later, unless one of its epochs was better than the pruned weights.
    if best.is_file() and (are_finite(module) or load_checkpoint(best)["global_step"] > 0):
        module = type(module).load_from_checkpoint(best, map_location="cpu")
    [pgb] = [each for each in callbacks if isinstance(each, PGBCallback)]
    [report] = [each for each in callbacks if isinstance(each, PGBReport)]
    assert pgb.plan is not None
    shutil.rmtree(settings.run_folder / TEACHER_ANSWERS, ignore_errors=True)
    return module.eval(), pgb.plan, report


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['removed']:.1%} of the encoder's weights removed")
    stages = [name for name in ("dense", "pruned", "recovered", "exported") if result.get(name)]
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")
    for name in dict.fromkeys(name for stage in stages for name in result[stage]):
        table.add_row(name, *(f"{result[stage][name]:.4g}" if name in result[stage] else "" for stage in stages))
    table.caption = f"agreement with dense: {result['agreement with dense']:.1%}"
    return table
