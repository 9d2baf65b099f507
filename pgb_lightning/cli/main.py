"""The console command ``pgb``: fit, validate, test and predict from YAML files, and export, benchmark and report."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
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
from pgb_lightning.cli.configs import ConfigFileAction
from pgb_lightning.cli.parser import PGBArgumentParser
from pgb_lightning.cli.prune import run_prune
from pgb_lightning.export.command import run_export
from pgb_lightning.process_group import close_process_group
from pgb_lightning.report.command import run_report
from pgb_lightning.surgery.from_state_dict import StructureError

#: Commands that do not take a trainer, a model or data, which LightningCLI would require.
COMMANDS: dict[str, Callable[..., Any]] = {
    "prune": run_prune,
    "export": run_export,
    "benchmark": benchmark.run,
    "report": run_report,
}

#: Values of ``ckpt_path`` other than local paths: Lightning's keywords and remote locations.
CHECKPOINT_KEYWORDS = r"best|last|hpc|registry(:.*)?|\w+://.*"

#: Files that identify a folder as a sharded checkpoint of FSDP, torch or DeepSpeed.
SHARDED_CHECKPOINT_FILES = ("meta.pt", ".metadata", "latest")

#: A command-line argument that sets a hyperparameter of the model or (second group) a part of one.
MODEL_SETTING = r"--model\.(?:init_args\.)?(\w+)([.+][^=]*)?"

#: The help text of ``--config``.
CONFIG_HELP = "A YAML file, or the name of a packaged configuration such as glue/sst2/prune."

#: Descriptions of the Trainer's commands.
DESCRIPTIONS = {
    "fit": "Train a model. With PGBCallback among the callbacks, prune it first and then re-finetune it.",
    "validate": "Score a model or a checkpoint on the validation set.",
    "test": "Score a model or a checkpoint on the test set.",
    "predict": "Predict with a model or a checkpoint. With PredictionWriter or AnswerWriter among the callbacks, write "
    "the benchmark's official files.",
}


@connect_cli_hooks
class PGBCLI(LightningCLI):
    """Lightning's command line with support for resuming and evaluating checkpoints of pruned models."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser whose ``--config`` also takes the names of packaged configurations."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={version('lightning')}"])
        parser: LightningArgumentParser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFileAction, help=CONFIG_HELP)
        return parser

    def add_commands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add all commands with their descriptions, including those that :func:`main` runs without a Trainer.

        By default, LightningCLI uses the first line of the Trainer's docstrings, which ends in mid-sentence.
        """
        assert isinstance(self.trainer_class, type)  # Lightning's Trainer
        commands = parser.add_subcommands(title="commands", description="Each has its own --help.")
        for name in self.subcommands():
            usage = f"pgb {name} --config FILE_OR_NAME [--ckpt_path FILE] [--SETTING VALUE ...]"
            settings = {"description": DESCRIPTIONS[name], "usage": usage, **kwargs.get(name, {})}
            commands.add_subcommand(name, make_trainer_parser(self, name, **settings), help=DESCRIPTIONS[name])
        for name, command in COMMANDS.items():
            description = (inspect.getdoc(command) or "").partition("\n\n")[0]
            command_parser = self.init_parser(description=description)
            command_parser.add_function_arguments(command, as_group=False)
            commands.add_subcommand(name, command_parser, help=description)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and check the command and ``ckpt_path``.

        Raises:
            MisconfigurationException: If a command without a Trainer is not the first argument, or ``ckpt_path`` does
                not exist or is a folder that is not a checkpoint.
        """
        super().parse_arguments(parser, args)
        name = self.config.get("subcommand")
        if name in COMMANDS:
            raise MisconfigurationException(f"{name} must be the first argument: `pgb {name} --config FILE ...`.")
        self._arguments = sys.argv[1:] if args is None else args
        ckpt_path = self.config[name].get("ckpt_path") if name else None
        if not ckpt_path or re.fullmatch(CHECKPOINT_KEYWORDS, str(ckpt_path)):
            return
        path = Path(ckpt_path).expanduser()
        self.config[name].ckpt_path = str(path)
        is_sharded = path.is_dir() and any((path / file).exists() for file in SHARDED_CHECKPOINT_FILES)
        if not path.exists() or (path.is_dir() and not is_sharded):
            raise MisconfigurationException(
                f"ckpt_path={ckpt_path!r} {'is a folder' if path.exists() else 'does not exist'}. Pass a checkpoint "
                "file from a fit (best.ckpt or last.ckpt), or omit ckpt_path to start from the configured model."
            )

    def apply_checkpoint(self) -> None:
        """Apply the checkpoint's hyperparameters, which override the files and are overridden by the command line.

        Raises:
            MisconfigurationException: If a command-line argument would change only a part of a hyperparameter that is
                taken from the checkpoint.
        """
        before = self._model_settings()
        self._merge_checkpoint()
        if not self._has_checkpoint_file():
            return
        after = self._model_settings()
        matches = [re.match(MODEL_SETTING, str(argument)) for argument in self._arguments]
        for name, part in (match.groups() for match in matches if match):
            if name not in before or name not in after:
                continue
            if part:
                raise MisconfigurationException(
                    f"--model.{name}{part} changes only a part of {name}, which is taken from ckpt_path. Pass --model."
                    f"{name} completely, or omit it."
                )
            after[name] = before[name]

    def _model_settings(self) -> Any:
        command = self.config.get(self.config.get("subcommand") or "") or {}
        return (command.get("model") or {}).get("init_args") or {}

    def _merge_checkpoint(self) -> None:
        """Merge the checkpoint's hyperparameters into the configuration.

        Lightning does this only for checkpoints written by LightningCLI, which name the module's class. For checkpoints
        written by a Python program, the class in the configuration is used.
        """
        config = self.config[self.config.subcommand]
        model = config.get("model")
        if model and self._has_checkpoint_file():
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
        """Skip ``fine_tuned_ckpt`` when a checkpoint provides all weights."""
        model = self.config[self.subcommand].get("model")
        if model and self._has_checkpoint_file() and "fine_tuned_ckpt" in model.get("init_args", {}):
            model.init_args.fine_tuned_ckpt = None

    def before_fit(self) -> None:
        """Let pruning callbacks check the model before any data is prepared."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.PGBCallback):
                callback.check(self.model)

    def instantiate_classes(self) -> None:
        """Create the objects, and report an invalid setting without the parser's context.

        Raises:
            MisconfigurationException: If a module, data module or callback rejects a setting.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MisconfigurationException):
                cause = cause.__cause__
            raise cause or error from None

    def _has_checkpoint_file(self) -> bool:
        """Return whether ``ckpt_path`` is a file and not one of Lightning's keywords, such as "last"."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        return bool(path) and Path(path).is_file()


def run(args: list[str] | None = None) -> PGBCLI:
    """Run a command and return its objects.

    Args:
        args: The command-line arguments, or ``None`` for those of the process.

    Returns:
        The command line object with the attributes ``trainer``, ``model`` and ``datamodule``.

    Example:
        >>> cli = run(["fit", "--config", "demo/prune"])  # doctest: +SKIP
    """
    if find_spec("shtab"):
        set_parsing_settings(add_print_completion_argument=True)
    return PGBCLI(
        parser_class=PGBArgumentParser,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=42,
        parser_kwargs={
            "description": "Fine-tune BERT-like encoders, prune them in one shot, re-finetune them and export them. "
            "Settings come from YAML files (--config takes a path or a name such as glue/sst2/prune) and from the "
            "command line, which takes precedence."
        },
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """Run the console command, and exit with one line if a setting is invalid.

    Args:
        args: The command-line arguments, or ``None`` for those of the process.
    """
    arguments = list(map(_expand_home, sys.argv[1:] if args is None else args))
    # Make users' own classes in the working directory importable, without shadowing installed packages.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    is_plain_command = bool(arguments) and arguments[0] in COMMANDS
    try:
        if is_plain_command:
            auto_cli(COMMANDS[arguments[0]], args=arguments[1:], as_positional=False, prog=f"pgb {arguments[0]}")
        else:
            run(arguments)
            close_process_group()
    except (MisconfigurationException, FileNotFoundError, IsADirectoryError, StructureError) as error:
        sys.exit(f"pgb: {error}")
    except ValueError as error:
        if is_plain_command:  # other commands run user code, whose errors need their traceback
            sys.exit(f"pgb: {error}")
        raise


def _expand_home(argument: str) -> str:
    """Expand ``~`` in ``--name=~/path``. Shells only expand it at the start of an argument."""
    name, separator, value = argument.partition("=")
    return f"{name}={Path(value).expanduser()}" if separator and value.startswith("~/") else argument
