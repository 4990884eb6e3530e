"""Objectives: losses of a classifier trained on (weak) labels. B batch, C classes, N context rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from trimtab.errors import StageError
from trimtab.methods._torch import torch
from trimtab.spec import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LabelBatch:
    """What an objective sees: the student's logits, the weak probabilities, the fraction of training done.

    `context_logits_NC` and `context_weak_NC` hold further rows without gradient (other workers, other micro-batches,
    or a ring buffer of recent rows); statistics of the batch are taken over them and the batch together.
    Raises StageError where logits and labels differ in shape, or only one half of the context is given.
    """

    logits_BC: Tensor
    weak_BC: Tensor
    progress: float
    context_logits_NC: Tensor | None = None
    context_weak_NC: Tensor | None = None

    def __post_init__(self) -> None:
        _same_shape("logits_BC", self.logits_BC, "weak_BC", self.weak_BC)
        _same_shape("context_logits_NC", self.context_logits_NC, "context_weak_NC", self.context_weak_NC)

    def seen_logits(self) -> Tensor:
        """Logits of the batch, then of the context, without gradient: (B + N, C)."""
        return _with_context(self.logits_BC, self.context_logits_NC)

    def seen_weak(self) -> Tensor:
        """Weak labels of the batch, then of the context: (B + N, C)."""
        return _with_context(self.weak_BC, self.context_weak_NC)


@dataclass(frozen=True)
class Loss:
    """Mean loss over the batch, and detached metrics."""

    value: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(Method):
    """A label loss. `whole_batch`: it takes statistics over the effective batch, so trainers give it the context."""

    whole_batch: ClassVar[bool] = False

    def __call__(self, batch: LabelBatch) -> Loss:
        raise TypeError(f"{type(self).__name__} has no loss of its own")


def cross_entropy(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """-sum_c t_c log p_c of every row, in fp32: (B,)."""
    return torch.nn.functional.cross_entropy(logits_BC.float(), target_BC.float(), reduction="none")


def one_hot(class_B: Tensor, classes: int) -> Tensor:
    """Rows with all mass on one class, in fp32: (B, C)."""
    return torch.nn.functional.one_hot(class_B, classes).float()


def ramp(progress: float, warmup: float) -> float:
    """Rises from 0 to 1 over the first `warmup` of training, then stays at 1."""
    return 1.0 if progress >= warmup else progress / warmup


def log_weak(weak_BC: Tensor, *, clamp: float, temperature: float) -> Tensor:
    """log of weak labels softened by `temperature`, kept above `clamp`, renormalised: (B, C)."""
    soft_BC = (weak_BC.float().log() / temperature).softmax(-1)
    return soft_BC.clamp_min(clamp).log().log_softmax(-1)


def _with_context(rows_BC: Tensor, context_NC: Tensor | None) -> Tensor:
    rows_BC = rows_BC.detach()
    return rows_BC if context_NC is None else torch.cat([rows_BC, context_NC.detach()])


def _same_shape(left_name: str, left: Tensor | None, right_name: str, right: Tensor | None) -> None:
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (left, right)]
    if shapes[0] != shapes[1]:
        raise StageError(
            f"{left_name} has shape {shapes[0]}, {right_name} {shapes[1]}: give one label row per logit row"
        )
