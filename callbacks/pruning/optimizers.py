"""Make optimizers hold the parameters of the pruned module."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear

#: The parameters of a module by name. The references are weak, so that replaced parameters can be freed.
Parameters = Mapping[str, "weakref.ref[Tensor]"]


def list_parameters(module: nn.Module) -> Parameters:
    """Return the parameters of a module, to be passed to :func:`update_optimizers` after it is pruned."""
    return {name: weakref.ref(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}


def update_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule, before: Parameters) -> None:
    """Replace parameters from before the pruning in the optimizers by those of the pruned layers, in the same groups.

    An optimizer holds such parameters if it was created before the fit, as that of a ``LightningCLI`` with the argument
    ``--optimizer``. Must be called before the states of optimizers are restored.

    Args:
        trainer: The Trainer, with its optimizers.
        pl_module: The pruned module.
        before: Its parameters before the pruning.
    """
    if shards_before_restore(trainer):  # Optimizers then hold shards, which are not the module's parameters.
        return
    now = dict(pl_module.named_parameters())
    own = {id(parameter) for parameter in now.values()}
    alive = {name: found for name, ref in before.items() if (found := ref()) is not None}
    known = {id(parameter) for parameter in alive.values()}
    replaced = {name: old for name, old in alive.items() if id(old) not in own}
    successors: dict[int, list[Tensor]] = {id(old): [] for old in replaced.values()}
    for name, parameter in now.items():
        origin = None if id(parameter) in known else _origin(name, replaced)
        if origin is not None:
            successors[id(replaced[origin])].append(parameter)
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [new for old in group["params"] for new in successors.get(id(old), [old])]
        for old in replaced.values():
            optimizer.state.pop(old, None)


def _origin(name: str, replaced: Mapping[str, Tensor]) -> str | None:
    """Return the replaced parameter whose place a new parameter takes, or ``None``.

    It is the weight or bias of the same layer or, for a part of a fused layer, of the whole layer. A bias that the
    layer did not have takes the place of the weight.
    """
    layer, _, kind = name.rpartition(".")
    layers = (layer, layer.rpartition(".")[0])
    candidates = [f"{each}.{attribute}" for each in layers for attribute in (kind, "weight")]
    return next((candidate for candidate in candidates if candidate in replaced), None)


def check_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule, name: str | None) -> None:
    """Refuse optimizers that hold parameters from before the pruning; warn of those without the pruned layers.

    Args:
        trainer: The Trainer, with its optimizers.
        pl_module: The pruned module.
        name: Attribute path of the encoder; ``None`` for the only one.

    Raises:
        MisconfigurationException: If an optimizer holds a parameter that the pruned module does not use.
    """
    if shards_before_restore(trainer):
        return
    own = {id(parameter) for parameter in pl_module.parameters()}
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    unknown = len(held - own)
    if unknown:
        raise MisconfigurationException(
            f"PGBCallback: {type(pl_module).__name__}.configure_optimizers returned optimizers with {unknown} "
            "parameters that are not the module's. Pruning replaces parameters: create the optimizers in "
            "configure_optimizers, from self.parameters()."
        )
    forgotten = _forgotten(pl_module, name, held)
    if forgotten:
        rank_zero_warn(
            f"PGB: {type(pl_module).__name__}.configure_optimizers returned optimizers without {len(forgotten)} "
            f"parameters of pruned layers, such as {forgotten[0]!r}, which are therefore not trained. Pruned layers "
            "may be GroupedLinear or ConstantLinear instead of nn.Linear: select parameters by name, not by the type "
            "of their layer."
        )


def _forgotten(pl_module: pl.LightningModule, name: str | None, held: set[int]) -> list[str]:
    """Return the parameters that no optimizer holds because their layers are no longer ``nn.Linear``.

    These are weights (or biases) of pruned layers without any optimizer, if one holds a weight (or a bias) of another
    module in the same encoder layer.
    """
    names = {id(parameter): path for path, parameter in pl_module.named_parameters()}
    forgotten: list[Tensor] = []
    for layer in find_encoder(pl_module, name).layers:
        trained = {path.rpartition(".")[2] for path, p in layer.named_parameters() if id(p) in held}
        for module in layer.modules():
            if isinstance(module, (GroupedLinear, ConstantLinear)):
                own = module.named_parameters(recurse=False)
                forgotten += [p for kind, p in own if kind in trained and p.requires_grad and id(p) not in held]
    return [names[id(parameter)] for parameter in forgotten]
