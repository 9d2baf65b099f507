"""The console command `pgb`: fit, validate, test and predict from YAML, export, benchmark and report."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# Imported so that the command line knows their classes by short names: `--model TextClassification`.
from pgb_lightning import benchmark, callbacks
from pgb_lightning._compat import CLASS_PATH_KEY, apply_lightning_checkpoint, connect_cli_hooks, make_trainer_parser
from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.cli.suggestions import SuggestingParser
from pgb_lightning.export.command import run_export
from pgb_lightning.process_group import close_process_group
from pgb_lightning.report.command import run_report
from pgb_lightning.surgery.from_state_dict import StructureError

#: Commands that take no trainer, model or data, which LightningCLI would ask for.
COMMANDS: dict[str, Callable[..., Any]] = {
    "export": run_export,
    "benchmark": benchmark.run,
    "report": run_report,
}

#: What may stand for a checkpoint's path beside a file: Lightning's own words, and places that are not on a disk here.
CHECKPOINT_WORDS = r"best|last|hpc|registry(:.*)?|\w+://.*"

#: What a folder holds that is a checkpoint itself, written in parts: by FSDP, by torch, by DeepSpeed.
CHECKPOINT_PARTS = ("meta.pt", ".metadata", "latest")

#: A word of the command line that sets something of the model, or (second group) a part of something.
MODEL_SETTING = r"--model\.(?:init_args\.)?(\w+)([.+][^=]*)?"

#: What the Trainer's commands do here.
DESCRIPTIONS = {
    "fit": "Train a model. With PGBCallback among the callbacks, prune it first, then re-finetune what is left.",
    "validate": "Score a model or a checkpoint on the validation set.",
    "test": "Score a model or a checkpoint on the test set.",
    "predict": "Predict with a model or a checkpoint. With PredictionWriter or AnswerWriter among the callbacks, write "
    "the benchmark's official files.",
}


@connect_cli_hooks
class PGBCLI(LightningCLI):
    """Lightning's command line, made to resume and evaluate the checkpoints of pruned models."""

    def add_commands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Describe every command in one place, also those that run elsewhere (see :func:`main`).

        Lightning's own takes the first line of the Trainer's docstrings, which breaks off in mid-sentence.
        """
        assert isinstance(self.trainer_class, type)  # Lightning's Trainer
        commands = parser.add_subcommands(title="commands", description="Each has a --help of its own.")
        for name in self.subcommands():
            usage = f"pgb {name} --config FILE [--ckpt_path FILE] [--SETTING VALUE ...]"
            settings = {"description": DESCRIPTIONS[name], "usage": usage, **kwargs.get(name, {})}
            commands.add_subcommand(name, make_trainer_parser(self, name, **settings), help=DESCRIPTIONS[name])
        for name, command in COMMANDS.items():
            description = (inspect.getdoc(command) or "").partition("\n\n")[0]
            command_parser = self.init_parser(description=description)
            command_parser.add_function_arguments(command, as_group=False)
            commands.add_subcommand(name, command_parser, help=description)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep out the commands that take no trainer, model or data.

        Raises:
            MisconfigurationException: One of them was not the first word.
        """
        super().parse_arguments(parser, args)
        name = self.config.get("subcommand")
        if name in COMMANDS:
            raise MisconfigurationException(
                f"{name} takes its settings after its name: `pgb {name} --config FILE ...`."
            )
        self._words = sys.argv[1:] if args is None else args
        path = self.config[name].get("ckpt_path") if name else None
        if not path or re.fullmatch(CHECKPOINT_WORDS, str(path)):
            return
        place = Path(path).expanduser()
        self.config[name].ckpt_path = str(place)
        if not place.exists() or (place.is_dir() and not any((place / part).exists() for part in CHECKPOINT_PARTS)):
            raise MisconfigurationException(
                f"ckpt_path={path!r} is {'a folder' if place.exists() else 'not there'}; give a checkpoint that a fit "
                "left (best.ckpt or last.ckpt in its folder), or leave ckpt_path out to start from the model as it is."
            )

    def apply_checkpoint(self) -> None:
        """Let the checkpoint's hyperparameters replace those of the files, and the command line those of both.

        Raises:
            MisconfigurationException: A word would change a part of a setting, of which the rest is the checkpoint's.
        """
        before = self._model_settings()
        self._merge_checkpoint()
        if not self._checkpoint_file():
            return
        after = self._model_settings()
        for name, part in (match.groups() for word in self._words if (match := re.match(MODEL_SETTING, str(word)))):
            if name not in before or name not in after:
                continue
            if part:
                raise MisconfigurationException(
                    f"--model.{name}{part} would change a part of what ckpt_path brings along; give all of "
                    f"--model.{name}, or leave it out."
                )
            after[name] = before[name]

    def _model_settings(self) -> Any:
        command = self.config.get(self.config.get("subcommand") or "") or {}
        return (command.get("model") or {}).get("init_args") or {}

    def _merge_checkpoint(self) -> None:
        """Merge the checkpoint's hyperparameters into the configuration, whoever wrote the checkpoint.

        Lightning does it for checkpoints that the command line wrote, which say what class they belong to.
        One written by a Python program does not: take the class that the configuration names.
        """
        config = self.config[self.config.subcommand]
        model = config.get("model")
        if model and self._checkpoint_file():
            try:
                checkpoint = load_checkpoint(config.ckpt_path)
            except ValueError as error:
                raise MisconfigurationException(f"ckpt_path={error}") from error
            hparams = checkpoint.get("hyper_parameters", {})
            if CLASS_PATH_KEY not in hparams:
                known = {name: value for name, value in hparams.items() if name in self._model_settings()}
                merged = {"class_path": model.class_path, "init_args": known}
                self.config = self.parser.parse_object({self.config.subcommand: {"model": merged}}, self.config)
                return
        apply_lightning_checkpoint(self)

    def before_instantiate_classes(self) -> None:
        """Leave `fine_tuned_ckpt` unread when a checkpoint brings all the weights anyway."""
        model = self.config[self.subcommand].get("model")
        if model and self._checkpoint_file() and "fine_tuned_ckpt" in model.get("init_args", {}):
            model.init_args.fine_tuned_ckpt = None

    def before_fit(self) -> None:
        """Let callbacks look at the model before any data are prepared."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.PGBCallback):
                callback.check(self.model)

    def instantiate_classes(self) -> None:
        """Make the objects; where a setting is wrong, say just that and not how the parser came upon it.

        Raises:
            MisconfigurationException: What a module, data module or callback says about its settings.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MisconfigurationException):
                cause = cause.__cause__
            raise cause or error from None

    def _checkpoint_file(self) -> bool:
        path = self.config[self.config.subcommand].get("ckpt_path")
        return bool(path) and Path(path).is_file()  # and not one of Lightning's words, such as "last"


def run(args: list[str] | None = None) -> PGBCLI:
    """Run a command and return what it made.

    Args:
        args: The command line's words; None takes them from the process.

    Returns:
        The command line object, with `trainer`, `model` and `datamodule`.

    Example:
        >>> cli = run(["fit", "--config", "configs/demo/prune.yaml"])  # doctest: +SKIP
    """
    if find_spec("shtab"):
        set_parsing_settings(add_print_completion_argument=True)
    return PGBCLI(
        parser_class=SuggestingParser,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=42,
        parser_kwargs={
            "description": "Fine-tune BERT-like encoders, prune them in one shot, fine-tune them again, and take them "
            "away. Settings come from YAML files and from the command line, which has the last word."
        },
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """Be the console command: run, and end with one line where a setting is wrong.

    Args:
        args: The command line's words; None takes them from the process.
    """
    words = sys.argv[1:] if args is None else args
    if os.getcwd() not in sys.path:  # classes of one's own lie where one works; at the end, to hide no package
        sys.path.append(os.getcwd())
    try:
        if words and words[0] in COMMANDS:
            auto_cli(COMMANDS[words[0]], args=words[1:], as_positional=False, prog=f"pgb {words[0]}")
        else:
            run(args)
            close_process_group()
    except (MisconfigurationException, FileNotFoundError, IsADirectoryError, StructureError) as error:
        sys.exit(f"pgb: {error}")
    except ValueError as error:  # of a pure function; in a fit it may be anybody's
        if words and words[0] in COMMANDS:
            sys.exit(f"pgb: {error}")
        raise
