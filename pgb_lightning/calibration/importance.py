"""Second-order importance of single weights (Section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pgb_lightning.encoders.base import Encoder


def second_order_importance(weight: Tensor, fisher: Tensor) -> Tensor:
    """Score each weight by the rise of the loss that removing it would cause, to second order.

    With the Hessian replaced by the diagonal of the empirical Fisher information F, the loss rises by half of
    w² · F when w is set to zero; the constant half does not change any comparison and is left out, as in the
    sources that the paper cites (Hassibi et al. 1993; Molchanov et al. 2019; Singh and Alistarh 2020).

    Args:
        weight: W, of shape (M, N).
        fisher: Mean over the calibration samples of the squared gradient of each sample's loss, (M, N).

    Returns:
        Importance I of shape (M, N), never negative.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> second_order_importance(torch.tensor([[2.0, -3.0]]), torch.tensor([[0.5, 1.0]]))
        tensor([[2., 9.]])
    """
    if weight.shape != fisher.shape:
        raise ValueError(f"weight is {tuple(weight.shape)} but fisher is {tuple(fisher.shape)}.")
    return weight.detach().to(fisher.dtype).square().mul_(fisher)


def encoder_importances(encoder: Encoder, fisher: Mapping[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Compute the second-order importance of every weight of an encoder's matrices.

    Args:
        encoder: A dense encoder.
        fisher: F of each matrix, of shape (M, N), by (layer index, matrix kind), as in ``Calibration.fisher``.

    Returns:
        Importance of each matrix, of shape (M, N), by (layer index, matrix kind).
    """
    return {key: second_order_importance(linear.weight.T, fisher[key]) for key, linear in encoder.linears()}
