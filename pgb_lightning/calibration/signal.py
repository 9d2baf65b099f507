"""Check that calibration found usable gradients, on which every plan is based."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.encoders.base import Encoder

#: Where users can replace the loss, for messages.
WHERE = "(loss= of prune(), calibration_step of a LightningModule)"


@dataclass
class Counts:
    """Counts of the batches and samples that calibration has read.

    Args:
        batches: All batches, including the skipped and unused ones.
        skipped: Batches whose loss was ``None``.
        unused: Batches whose loss was computed without a differentiable pass through the encoder.
        samples: Samples that passed through the encoder.
        with_gradient: Samples whose loss has a gradient whose square is not zero.
        squared: Samples whose gradients are in the sums of squared gradients.
    """

    batches: int = 0
    skipped: int = 0
    unused: int = 0
    samples: int = 0
    with_gradient: int = 0
    squared: int = 0

    def reduced(self, all_reduce: AllReduce, device: torch.device) -> Counts:
        """Return the sums over all processes."""
        names = [each.name for each in fields(self)]
        counts = torch.tensor([float(getattr(self, name)) for name in names], dtype=torch.float32, device=device)
        return Counts(**dict(zip(names, map(int, all_reduce(counts).tolist()), strict=True)))

    def check(self, encoder: str) -> None:
        """Raise if no sample has a gradient.

        Args:
            encoder: The encoder's attribute path, for the message.

        Raises:
            ValueError: If there are no batches, the loss of all of them was ``None``, or no sample has a gradient.
        """
        if not self.batches:
            raise ValueError("The calibration loader is empty: it yielded no batches. Provide at least one batch.")
        if self.skipped == self.batches:
            raise ValueError(
                f"The loss is None for all {self.batches} calibration batches, so all of them were skipped. Provide "
                "batches whose loss is a tensor."
            )
        if not self.with_gradient:
            raise ValueError(
                f"No calibration sample has a gradient ({self.samples} samples in {self.batches - self.skipped} "
                f"batch(es)), so the weights of the encoder {encoder!r} cannot be scored. Its loss is constant, "
                "saturated or zero (such as a margin that is met), or does not depend on this encoder. Use samples and "
                f"a loss {WHERE} with a gradient, or select the encoder that the loss depends on with encoder=."
            )

    def warning(self) -> str | None:
        """Return a warning if some samples have no gradient, else ``None``."""
        if self.with_gradient == self.samples and not self.unused:
            return None
        unused = f", and {self.unused} batch(es) have none in the encoder" if self.unused else ""
        return (
            f"Only {self.with_gradient} of {self.samples} calibration samples have a gradient{unused}. The importance "
            "of weights depends on these samples alone. The loss of the others is constant, saturated or zero, or does "
            f"not depend on the encoder. Use more samples, or a loss {WHERE} with a gradient on all of them."
        )


def check_differentiable(encoder: Encoder) -> None:
    """Check that gradients can be computed with the encoder's weights.

    Raises:
        ValueError: If inference mode is on, or weights are inference tensors or on the meta device.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode() is on, in which there are no gradients. Prune (or calibrate) outside of it; "
            "torch.no_grad() is allowed."
        )
    for name, parameter in encoder.model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"{name} of the encoder at {encoder.where} is on the meta device and has no values: it was not loaded, "
                "or accelerate has offloaded it (device_map, cpu_offload). Load the whole model to one device first."
            )
        if parameter.is_inference():
            raise ValueError(
                f"{name} of the encoder at {encoder.where} was created in torch.inference_mode(), so it has no "
                "gradients. Build and load the model outside of it."
            )


def check_usable(name: str, values: Iterable[Tensor]) -> None:
    """Raise if the values that a plan is based on are all zero or not finite, so that weights cannot be compared.

    Args:
        name: Name of the values, in the plural, for the message.
        values: The values, such as a statistic of every matrix.

    Raises:
        ValueError: If a value is NaN or infinite, or all are zero.
    """
    all_values = list(values)
    if not all(each.isfinite().all() for each in all_values):
        problem = "contain NaN or infinity: squares of the gradients overflow"
    elif not any(each.any() for each in all_values):
        problem = "are all zero: squares of the gradients underflow, or all samples are the same"
    else:
        return
    raise ValueError(
        f"The {name} {problem}. Use different samples, or multiply the loss {WHERE} by a constant such that its "
        "gradients are of the order of 1; a plan depends only on the ratios of gradients."
    )
