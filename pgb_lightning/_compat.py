"""Private API of other packages, wrapped in one function (or constant) each.

No other module of this package may use private API. Each entry names the private API that it wraps and says why the
public API is not enough; ``tests/test_compat*.py`` has a test for each, which fails when the private API changes. All
were tested with the versions of ``constraints-oldest.txt`` and ``constraints.txt``: Lightning 2.6.0 to 2.6.6,
jsonargparse 4.51.0 to 4.53.0, transformers 5.0.0 to 5.24.0 and torch 2.6.0 to 2.13.0.

Lightning is imported inside the functions, so that ``import pgb_lightning`` does not import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

T = TypeVar("T", bound="type[LightningCLI]")

# ---- Lightning: Trainer and LightningModule ---------------------------------------------------------------


def training_dataloader(trainer: pl.Trainer) -> Any:
    """Return the training data loader (or collection of loaders) as the user gave it to ``fit``.

    Wraps ``trainer.fit_loop._data_source``, and ``_request_dataloader``, which records how loaders were made, so that
    :func:`disable_shuffling` can make them again. ``trainer.train_dataloader`` is public, but ``None`` until the loop
    starts.
    """
    from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader

    return _request_dataloader(trainer.fit_loop._data_source)


def passed_dataloader(trainer: pl.Trainer, name: str) -> Any:
    """Return the data loader (or collection of loaders) that was passed to ``fit``; ``None`` if a method provides it.

    Wraps the ``_data_source`` of the training loop and of its validation loop. ``trainer.val_dataloaders`` is public,
    but ``None`` until that loop starts.

    Args:
        trainer: The Trainer, with its data attached.
        name: The method of a data module in whose place the loader is used, such as ``"val_dataloader"``.
    """
    for source in (trainer.fit_loop._data_source, trainer.fit_loop.epoch_loop.val_loop._data_source):
        if source.name == name and not source.is_module():
            return source.instance
    return None


def combination_mode(combined: CombinedLoader) -> str:
    """Return the mode of a ``CombinedLoader``, such as ``"min_size"``.

    Wraps ``CombinedLoader._mode``. There is no public attribute.
    """
    return str(combined._mode)


def disable_shuffling(combined: CombinedLoader) -> None:
    """Replace the samplers of a ``CombinedLoader``, as Lightning does for ``overfit_batches``.

    Wraps ``_resolve_overfit_batches``, which only the loops call.
    """
    from lightning.pytorch.trainer.connectors.data_connector import _resolve_overfit_batches
    from lightning.pytorch.trainer.states import RunningStage

    _resolve_overfit_batches(combined, mode=RunningStage.TRAINING)


def follows_its_sampler(loader: DataLoader[Any]) -> bool:
    """Return whether a loader yields the batches of its sampler, and not those of an iterable dataset or a subclass.

    Wraps ``DataLoader._get_iterator``, which subclasses may override to iterate differently.
    """
    kind = type(loader)
    own = kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator
    return own and not isinstance(loader.dataset, IterableDataset)


def provides_data(trainer: pl.Trainer, datamodule: Any) -> bool:
    """Return whether the running loop takes its data loaders from a data module; true if no loop is running.

    Wraps ``trainer._active_loop`` and its ``_data_source``. ``trainer.datamodule`` is public, but keeps the data module
    of the previous run.
    """
    loop = trainer._active_loop
    return loop is None or loop._data_source.instance is datamodule


def restart_training_batches(trainer: pl.Trainer) -> None:
    """Begin the training batches anew, if ``estimated_stepping_batches`` began them before the fit.

    Wraps ``_FitLoop._data_fetcher``. Lightning has no hook between a restored checkpoint and the loader's first draw.
    """
    if trainer.fit_loop._data_fetcher is not None:
        iter(trainer.fit_loop._data_fetcher)


def before_batch_transfer(module: pl.LightningModule, batch: Any) -> Any:
    """Call ``on_before_batch_transfer`` of the data module, where it overrides the hook, or of the module.

    Wraps ``LightningModule._on_before_batch_transfer``. The module's public hook ignores the data module's hook.
    """
    return module._on_before_batch_transfer(batch, dataloader_idx=0)


def launches_child_processes(trainer: pl.Trainer) -> bool:
    """Return whether the strategy forks or spawns processes that work on copies of the module.

    Wraps the class ``_MultiProcessingLauncher``. A strategy does not store the name it was created by, such as
    ``"ddp_fork"``.
    """
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def requires_all_gradients(trainer: pl.Trainer) -> bool:
    """Return whether every trainable parameter must get a gradient in each step, as under ``strategy="ddp"``.

    Wraps ``DDPStrategy._ddp_kwargs``. The model has the public attributes ``find_unused_parameters`` and
    ``static_graph`` only after the strategy has wrapped it.
    """
    from lightning.pytorch.strategies import DDPStrategy

    if not isinstance(trainer.strategy, DDPStrategy):
        return False
    settings = trainer.strategy._ddp_kwargs
    return not (settings.get("find_unused_parameters") or settings.get("static_graph"))


# ---- Lightning: command line ------------------------------------------------------------------------------

#: Key of a checkpoint's hyperparameters under which LightningCLI stores the module's import path.
CLASS_PATH_KEY = "_class_path"


def connect_cli_hooks(cls: T) -> T:
    """Make a subclass of LightningCLI call its ``add_commands`` and ``apply_checkpoint`` methods.

    They replace ``LightningCLI._add_subcommands(parser, **kwargs)`` and ``LightningCLI._parse_ckpt_path()``. The public
    hooks run before the subcommands are added, or after the configuration has been checked.
    """
    cls._add_subcommands = cls.add_commands  # type: ignore[attr-defined, method-assign]
    cls._parse_ckpt_path = cls.apply_checkpoint  # type: ignore[attr-defined, method-assign]
    return cls


def make_trainer_parser(cli: LightningCLI, name: str, **settings: Any) -> LightningArgumentParser:
    """Make and register the parser of a subcommand that is a method of the Trainer, such as ``"fit"``.

    Wraps ``LightningCLI._prepare_subcommand_parser`` and ``_subcommand_parsers``. Only ``_add_subcommands``, which this
    package replaces, uses them.
    """
    parsers = vars(cli).setdefault("_subcommand_parsers", {})
    trainer_class: Any = cli.trainer_class
    parsers[name] = cli._prepare_subcommand_parser(trainer_class, name, **settings)
    return parsers[name]  # type: ignore[no-any-return]


def apply_lightning_checkpoint(cli: LightningCLI) -> None:
    """Merge the hyperparameters of ``ckpt_path`` into the configuration, as LightningCLI does by itself.

    Wraps ``LightningCLI._parse_ckpt_path``, which :func:`connect_cli_hooks` replaces in a subclass.
    """
    from lightning.pytorch.cli import LightningCLI

    LightningCLI._parse_ckpt_path(cli)


#: jsonargparse's message about an unknown setting: its exceptions have no field with the setting's name.
UNKNOWN_SETTING = re.compile(
    r"""Parser key "(?P<key>[\w.]+)"|class_path '(?P<path>[\w.]+)':\s+Option '(?P<option>\w+)' is not accepted"""
)

# ---- torch, transformers ----------------------------------------------------------------------------------


def allow_clipping(optimizer: torch.optim.Optimizer) -> None:
    """Let Lightning clip the gradients of a fused optimizer in mixed precision.

    Wraps ``Optimizer._step_supports_amp_scaling``, by which a gradient scaler recognizes fused optimizers. Lightning's
    ``MixedPrecision`` refuses to clip their gradients, also where there is no scaler (bfloat16).
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether forward hooks or forward pre-hooks are registered on a module itself (not on its children).

    Wraps ``_forward_hooks`` and ``_forward_pre_hooks``. The public API of torch can register hooks, but not list them.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Make the hooks registered on a module run on another one too; their handles then remove them from both.

    Wraps the dictionaries of hooks of ``nn.Module``. The public API of torch can only register hooks, and a handle
    removes its hook from the one dictionary to which the hook was added.
    """
    for name in vars(nn.Module()):
        if "forward" in name or "backward" in name:  # such as _forward_hooks_with_kwargs and _is_full_backward_hook
            vars(new)[name] = vars(old)[name]


def has_hooks(tensor: Tensor) -> bool:
    """Return whether hooks are registered on a tensor that requires gradients.

    Wraps ``_backward_hooks`` and ``_post_accumulate_grad_hooks`` of ``Tensor``. The public API can only register hooks.
    """
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


#: Attribute that holds the module inside torch's wrapper for activation checkpointing. Its state dict leaves it out.
CHECKPOINT_WRAPPED = "_checkpoint_wrapped_module"

#: Attribute that holds the module inside the result of ``torch.compile``.
COMPILED = "_orig_mod"


def is_transformed() -> bool:
    """Return whether a ``torch.func`` transform or forward-mode differentiation is active.

    Wraps ``torch._C._are_functorch_transforms_active`` and ``torch.autograd.forward_ad._current_level``. There is no
    public way to ask.
    """
    return bool(torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0)


#: Method by which ``nn.DataParallel`` copies a module, with its attributes; there is no public hook to change them.
REPLICATE = "_replicate_for_data_parallel"


def save_tensor_hooks(tensor: Tensor) -> Callable[[], None]:
    """Return a function that restores the hooks that are registered on a tensor now.

    Wraps ``Tensor._backward_hooks`` and ``_post_accumulate_grad_hooks``. The public API of torch can register hooks,
    but not list them.
    """
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    saved = [(name, getattr(tensor, name), dict(getattr(tensor, name) or {})) for name in names]

    def restore() -> None:
        for name, hooks, members in saved:
            now = getattr(tensor, name)
            if now is not hooks and now is not None:
                now.clear()  # autograd may hold a reference to it
                setattr(tensor, name, hooks)
            if hooks is not None and dict(hooks) != members:
                hooks.clear()
                hooks.update(members)

    return restore


def state_dict_versions(state_dict: Mapping[str, Any]) -> dict[str, int]:
    """Return the layout version that each module stored in a state dict, by module name.

    Wraps the attribute ``_metadata`` of the mapping that ``state_dict()`` returns. torch passes each module its own
    entry only, in ``_load_from_state_dict``.
    """
    metadata: Mapping[str, Mapping[str, Any]] = getattr(state_dict, "_metadata", {})
    return {name: int(entry.get("version", 1)) for name, entry in metadata.items()}


def forget_output_hooks(model: nn.Module) -> None:
    """Make a transformers model register its hooks for hidden states and attention weights again.

    Wraps the attribute ``_output_capturing_hooks_installed``, which remains set when the modules with the hooks are
    replaced. transformers 5.0 uses no such hooks and does not have the attribute.
    """
    vars(model).pop("_output_capturing_hooks_installed", None)


def is_fsdp_name(name: str) -> bool:
    """Return whether a module's qualified name shows that FSDP (version 1) wraps the module or one of its parents.

    Wraps the attribute name ``_fsdp_wrapped_module``. A module inside a wrapper is not an instance of the public class.
    """
    return "_fsdp_wrapped_module" in name


def attention_implementation(config: Any) -> str | None:
    """Return a transformers configuration's attention implementation, such as ``"sdpa"``.

    Wraps ``PreTrainedConfig._attn_implementation``. There is no public attribute to read it.
    """
    return getattr(config, "_attn_implementation", None)


def leave_uninitialized(module: nn.Module) -> None:
    """Keep transformers from initializing the submodules of a module whose weights are all loaded.

    ``from_pretrained`` calls the model's ``_init_weights`` for every module that is not marked as initialized, and
    ``_init_weights`` expects the layers of the dense model (``Wqkv.weight``). Modules with non-persistent buffers are
    not marked, so that these buffers are initialized.
    """
    for part in module.modules():
        if not part._non_persistent_buffers_set:
            part._is_hf_initialized = True  # type: ignore[assignment]


def registered_models(auto: Any, config: type | None) -> tuple[type, ...]:
    """Return the model classes that an ``Auto`` class of transformers knows for a configuration's class.

    The mappings are public, but which of them belongs to an ``Auto`` class is not.
    """
    found = None if config is None else auto._model_mapping.get(config, None)
    models = found if isinstance(found, (tuple, list)) else (found,)
    # transformers looks up classes by name, so it also finds its own model class for a user's configuration class
    # that has the name of one of its own.
    return tuple(model for model in models if model is not None and model.config_class is config)


def number_in_table(rows: Any, row: int) -> int:
    """Return the number in the table of a row of a ``datasets.Dataset``, from which rows may have been selected.

    Wraps ``Dataset._indices``.
    """
    return row if rows._indices is None else int(rows._indices.column(0)[row].as_py())
