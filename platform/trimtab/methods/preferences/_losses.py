"""The losses of DPO and its relatives, one function a loss, named as in TRL 1.16. B pairs; every function gives (B,).

s is the logistic function, c and r the log-ratios log pi - log ref of chosen and rejected, D = f'(c) - f'(r) the
difference of their scores under the divergence f, which is c - r for the reverse KL divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from trimtab.methods._pairs import log_loss
from trimtab.methods._torch import torch
from trimtab.methods.preferences._base import PairBatch, Side

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence"]


@dataclass(frozen=True)
class Terms:
    """What a loss reads: pairs with a reference, and DPO's hyperparameters (e: label smoothing, tau: DiscoPOP's)."""

    batch: PairBatch
    beta: float
    e: float
    tau: float
    divergence: Divergence

    @cached_property
    def ratio(self) -> Side:
        return self.batch.ratio()

    @property
    def c_B(self) -> Tensor:
        return self.ratio.chosen_B

    @property
    def r_B(self) -> Tensor:
        return self.ratio.rejected_B

    @property
    def z_B(self) -> Tensor:
        """beta D."""
        return self.beta * (self.score(self.c_B) - self.score(self.r_B))

    @property
    def mean_D_B(self) -> Tensor:
        """D of scores a token."""
        return self.score(self.c_B) / self.batch.chosen_length_B - self.score(self.r_B) / self.batch.rejected_length_B

    def score(self, ratio_B: Tensor) -> Tensor:
        """f-DPO (Wang et al. 2023): f'(pi / ref) less its constant, zero where pi = ref."""
        if self.divergence == "forward_kl":
            return -torch.expm1(-ratio_B)
        if self.divergence == "js_divergence":
            return math.log(2) + torch.nn.functional.logsigmoid(ratio_B)
        return ratio_B


def sigmoid(t: Terms) -> Tensor:
    """Rafailov et al. 2023, eq. 7: -log s(beta D); with e > 0 conservative DPO, where TRL leaves e unused."""
    return log_loss(t.z_B, 1 - t.e)


def hinge(t: Terms) -> Tensor:
    """Zhao et al. 2023 (SLiC): max(0, 1 - beta D)."""
    return (1 - t.z_B).relu()


def ipo(t: Terms) -> Tensor:
    """Azar et al. 2023, eq. 17, with scores a token: (D - 1 / (2 beta))^2."""
    return (t.mean_D_B - 0.5 / t.beta) ** 2


def exo_pair(t: Terms) -> Tensor:
    """Ji et al. 2024, eq. 16: KL([s(beta D), s(-beta D)] || [1 - e, e])."""
    log_sigmoid = torch.nn.functional.logsigmoid
    chosen_B = t.z_B.sigmoid() * (log_sigmoid(t.z_B) - math.log1p(-t.e))
    return chosen_B + (-t.z_B).sigmoid() * (log_sigmoid(-t.z_B) - math.log(t.e))


def nca_pair(t: Terms) -> Tensor:
    """Chen et al. 2024 (NCA): -log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2."""
    c_B, r_B = t.beta * t.c_B, t.beta * t.r_B
    return log_loss(c_B) + (log_loss(-c_B) + log_loss(-r_B)) / 2


def robust(t: Terms) -> Tensor:
    """Chowdhury et al. 2024: unbiased where labels are flipped with probability e; negative where D is large."""
    return ((1 - t.e) * log_loss(t.z_B) - t.e * log_loss(-t.z_B)) / (1 - 2 * t.e)


def bco_pair(t: Terms) -> Tensor:
    """Jung et al. 2024 (BCO) without its running shift: -log s(beta c) - log s(-beta r)."""
    return log_loss(t.beta * t.c_B) + log_loss(-t.beta * t.r_B)


def sppo_hard(t: Terms) -> Tensor:
    """Wu et al. 2024, eq. 4.7 with P in {0, 1}: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2."""
    return (t.c_B - 0.5 / t.beta) ** 2 + (t.r_B + 0.5 / t.beta) ** 2


def aot(t: Terms) -> Tensor:
    """Melnyk et al. 2024: the batch's policy differences and reference differences, each sorted, are compared."""
    policy, reference = t.batch.policy, t.batch.needed("reference")
    own_B, other_B = policy.chosen_B - policy.rejected_B, reference.chosen_B - reference.rejected_B
    return log_loss(t.beta * (own_B.sort().values - other_B.sort().values), 1 - t.e)


def aot_unpaired(t: Terms) -> Tensor:
    """Melnyk et al. 2024: the batch's log-ratios of chosen and of rejected, each sorted, are compared."""
    return log_loss(t.beta * (t.c_B.sort().values - t.r_B.sort().values), 1 - t.e)


def apo_zero(t: Terms) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7: 1 - s(beta c) + s(beta r), for chosen better than what the policy writes."""
    return (-t.beta * t.c_B).sigmoid() + (t.beta * t.r_B).sigmoid()


def apo_down(t: Terms) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 8: s(beta c) + 1 - s(beta (c - r)), for chosen worse than the policy's own."""
    return (t.beta * t.c_B).sigmoid() + (t.beta * (t.r_B - t.c_B)).sigmoid()


def discopop(t: Terms) -> Tensor:
    """Lu et al. 2024, eq. 5: -log s(z) and exp(-z) mixed by s(z / tau), z = beta D."""
    share_B = (t.z_B / t.tau).sigmoid()
    return (1 - share_B) * log_loss(t.z_B) + share_B * (-t.z_B).exp()


def sft(t: Terms) -> Tensor:
    """-log pi of chosen, averaged over each row's tokens, where TRL averages over those of the batch."""
    return -t.batch.chosen_mean_B


def sigmoid_norm(t: Terms) -> Tensor:
    """Sigmoid of scores a token: -log s(beta D)."""
    return log_loss(t.beta * t.mean_D_B)


SCORED = (sigmoid, hinge, ipo, exo_pair, robust, discopop, sigmoid_norm)
PLAIN = (nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, sft)
LOSSES: dict[str, Callable[[Terms], Tensor]] = {loss.__name__: loss for loss in (*SCORED, *PLAIN)}
LossType = Literal[
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]
TAKES_DIVERGENCE = {loss.__name__ for loss in SCORED}
TAKES_SMOOTHING = {"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"}
SORTS = {"aot", "aot_unpaired"}
