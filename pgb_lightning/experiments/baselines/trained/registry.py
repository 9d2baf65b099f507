"""Registry of the methods that train masks, with their published epochs and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pgb_lightning.experiments.baselines.trained.callback import MaskTraining
from pgb_lightning.experiments.baselines.trained.cofi import CoFi
from pgb_lightning.experiments.baselines.trained.dynabert import DynaBert
from pgb_lightning.experiments.baselines.trained.ebert import Ebert
from pgb_lightning.experiments.baselines.trained.identity_prior import IdentityPrior
from pgb_lightning.experiments.baselines.trained.layer_drop import DroppedLayers, LayerDrop
from pgb_lightning.experiments.baselines.trained.movement import BlockMovement
from pgb_lightning.experiments.baselines.trained.platon import Platon


@dataclass(frozen=True)
class TrainedBaseline:
    """A method that trains masks and, optionally, the smaller model afterwards.

    Args:
        make: Creates the callback for a fraction of weights to remove.
        epochs: Published number of epochs with the callback.
        final_epochs: Published number of epochs of training the smaller model; 0 if there are none.
        learning_rate: Published peak learning rate of the model's weights with the callback.
        final_learning_rate: Published peak learning rate of training the smaller model.
        is_taught: Whether the dense model is the teacher in both.
        kind: ``"shapes"`` if layers become smaller; ``"masks"`` if single weights become zero.
    """

    make: Callable[[float], MaskTraining]
    epochs: float
    final_epochs: float = 0
    learning_rate: float = 2e-5
    final_learning_rate: float = 2e-5
    is_taught: bool = False
    kind: Literal["shapes", "masks"] = "shapes"


TRAINED: dict[str, TrainedBaseline] = {
    "cofi": TrainedBaseline(partial(CoFi, distillation=False), 20, 20),
    "cofi, distilled": TrainedBaseline(CoFi, 20, 20, is_taught=True),
    # 20 epochs as in the paper on PGB; the rest from nn_pruning.
    "block movement": TrainedBaseline(BlockMovement, 20, 10, learning_rate=3e-5, final_learning_rate=3e-5),
    "block movement, distilled": TrainedBaseline(
        partial(BlockMovement, distillation=True), 20, 10, 3e-5, final_learning_rate=3e-5, is_taught=True
    ),
    "block movement, not filled": TrainedBaseline(
        partial(BlockMovement, filled=False), 20, learning_rate=3e-5, kind="masks"
    ),
    "platon": TrainedBaseline(Platon, 6, learning_rate=8e-5, kind="masks"),
    "platon, structured": TrainedBaseline(partial(Platon, structured=True), 6, learning_rate=8e-5),
    "layerdrop": TrainedBaseline(LayerDrop, 3),
    "dropped layers, top": TrainedBaseline(DroppedLayers, 3),
    "dropped layers, alternate": TrainedBaseline(partial(DroppedLayers, order="alternate"), 3),
    "dropped layers, contribution": TrainedBaseline(partial(DroppedLayers, order="contribution"), 3),
    "identity prior": TrainedBaseline(IdentityPrior, 3, 3),
    "dynabert": TrainedBaseline(partial(DynaBert, distillation=False), 3, 3),
    "dynabert, distilled": TrainedBaseline(DynaBert, 3, 3, is_taught=True),
    "ebert": TrainedBaseline(Ebert, 3, 3),
}
"""Names end with what differs from the first entry of a method; ``distilled`` means the dense model as teacher."""
