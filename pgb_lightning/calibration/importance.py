"""Second-order importance of single weights (Section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pgb_lightning.encoders.base import Encoder


def second_order_importance(weight: Tensor, fisher: Tensor) -> Tensor:
    """Compute the importance of each weight: twice the increase of the loss, to second order, if it is removed.

    With the Hessian approximated by the diagonal of the empirical Fisher information F, setting w to zero increases the
    loss by ½ w² F. The factor ½ does not affect comparisons and is omitted, as in the papers that PGB cites (Hassibi et
    al. 1993; Molchanov et al. 2019; Singh and Alistarh 2020).

    Args:
        weight: W, (M, N).
        fisher: F, the mean over the calibration samples of the squared gradient of each sample's loss, (M, N).

    Returns:
        The importance I, nonnegative, (M, N).

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> second_order_importance(torch.tensor([[2.0, -3.0]]), torch.tensor([[0.5, 1.0]]))
        tensor([[2., 9.]])
    """
    if weight.shape != fisher.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} but fisher has shape {tuple(fisher.shape)}; they must be equal."
        )
    return weight.detach().to(fisher.dtype).square().mul_(fisher)


def encoder_importances(encoder: Encoder, fisher: Mapping[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Compute the second-order importance of every weight of an encoder's matrices.

    Args:
        encoder: A dense encoder.
        fisher: F of each matrix, (M, N), by (layer index, matrix kind), as in ``Calibration.fisher``.

    Returns:
        Importance of each matrix, (M, N), by (layer index, matrix kind).
    """
    return {key: second_order_importance(linear.weight.T, fisher[key]) for key, linear in encoder.linears()}
