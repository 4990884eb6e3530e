"""What objectives on pairs share: the logistic loss, the mean over rows, and the check that rows fit. B pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.errors import StageError
from trimtab.methods._torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def log_loss(z_B: Tensor, p: Tensor | float = 1.0) -> Tensor:
    """-p log s(z) - (1 - p) log s(-z) of every row, s the logistic function: (B,)."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return -p * log_sigmoid(z_B) - (1 - p) * log_sigmoid(-z_B)


def row_mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """(1/B) sum_i w_i l_i, w = 1 where unset. The weights are not normalised, so micro-batches add up."""
    return (loss_B if weight_B is None else weight_B * loss_B).mean()


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises StageError where a tensor is given and its shape is another one."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise StageError(f"{name} has shape {tuple(tensor.shape)}, but the batch's rows need {shape}")
