"""Run a function around the ``training_step`` of a module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import lightning.pytorch as pl

#: The module's own step with the arguments of one call.
Step = partial[Any]


def wrap_training_step(pl_module: pl.LightningModule, around: Callable[[Step], Any]) -> Callable[[], None]:
    """Replace ``training_step`` of a module.

    Args:
        pl_module: The module.
        around: Called with the module's own step and its arguments; returns the new output.

    Returns:
        A function that restores the module's own step. If something else has wrapped the step since, that wrapper stays
        in place, and then calls the module's own step.
    """
    step, own = pl_module.training_step, vars(pl_module).get("training_step")
    active = True

    @wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        return around(partial(step, *args, **kwargs)) if active else step(*args, **kwargs)

    def undo() -> None:
        nonlocal active
        active = False
        if vars(pl_module).get("training_step") is training_step:
            del pl_module.training_step
            if own is not None:
                pl_module.training_step = own  # type: ignore[method-assign]

    pl_module.training_step = training_step  # type: ignore[method-assign]
    return undo
