"""What a preference objective sees and gives.

B pairs, T positions of the longest completion. Log-probs are natural, in fp32, one a completion token, 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from trimtab.errors import StageError
from trimtab.methods._pairs import check_shape
from trimtab.methods._torch import torch
from trimtab.methods.objectives._base import Loss
from trimtab.spec import Method

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["reference", "weak", "weak_reference"]
ROUNDING = 1e-3  # a token that is certain may come out of a log-softmax this far above 0


@dataclass(frozen=True)
class Side:
    """One model's log-probs of the tokens of both completions: chosen_BT and rejected_BT, 0 where there is no token."""

    chosen_BT: Tensor
    rejected_BT: Tensor

    @property
    def chosen_B(self) -> Tensor:
        """log pi(chosen | prompt), summed over tokens."""
        return self.chosen_BT.sum(-1)

    @property
    def rejected_B(self) -> Tensor:
        """log pi(rejected | prompt), summed over tokens."""
        return self.rejected_BT.sum(-1)

    def __sub__(self, other: Side) -> Side:
        """Log-ratios, token by token."""
        return Side(self.chosen_BT - other.chosen_BT, self.rejected_BT - other.rejected_BT)


@dataclass(frozen=True)
class PairBatch:
    """Pairs as the policy and the frozen models see them.

    `p_B` is the (weak) probability that the chosen completion is the better one, 1 where unset; `margin_B` is by how
    much its score is higher; `weight_B` scales a row's loss, 1 where unset; `weak` and `weak_reference` are a weak
    policy after and before its alignment.
    Raises StageError where shapes differ, or where a log-prob is positive.
    """

    policy: Side
    chosen_mask_BT: Tensor
    rejected_mask_BT: Tensor
    reference: Side | None = None
    weak: Side | None = None
    weak_reference: Side | None = None
    p_B: Tensor | None = None
    margin_B: Tensor | None = None
    weight_B: Tensor | None = None

    def __post_init__(self) -> None:
        sides = {role: getattr(self, role) for role in ("policy", *get_args(Role))}
        given = {role: side for role, side in sides.items() if side is not None}
        for role, side in given.items():
            check_shape(f"{role}.chosen_BT", side.chosen_BT, tuple(self.chosen_mask_BT.shape))
            check_shape(f"{role}.rejected_BT", side.rejected_BT, tuple(self.rejected_mask_BT.shape))
        for name in ("p_B", "margin_B", "weight_B"):
            check_shape(name, getattr(self, name), (len(self.chosen_mask_BT),))
        chosen = {f"{role}.chosen_BT": side.chosen_BT for role, side in given.items()}
        check_log_probs(chosen | {f"{role}.rejected_BT": side.rejected_BT for role, side in given.items()})

    @property
    def chosen_length_B(self) -> Tensor:
        """Tokens of the chosen completion, at least 1."""
        return self.chosen_mask_BT.sum(-1).clamp_min(1).float()

    @property
    def rejected_length_B(self) -> Tensor:
        """Tokens of the rejected completion, at least 1."""
        return self.rejected_mask_BT.sum(-1).clamp_min(1).float()

    @property
    def chosen_mean_B(self) -> Tensor:
        """log pi(chosen | prompt), averaged over tokens."""
        return self.policy.chosen_B / self.chosen_length_B

    @property
    def rejected_mean_B(self) -> Tensor:
        """log pi(rejected | prompt), averaged over tokens."""
        return self.policy.rejected_B / self.rejected_length_B

    def needed(self, role: Role) -> Side:
        """A frozen model's log-probs. Raises StageError where the batch has none."""
        side = getattr(self, role)
        if side is None:
            raise StageError(
                f"the batch has no log-probs of the {role} model, which this objective needs: compute them"
            )
        return side

    def ratio(self) -> Side:
        """log pi - log ref, token by token. Raises StageError without a reference."""
        return self.policy - self.needed("reference")


@dataclass(frozen=True)
class UnpairedBatch:
    """Single completions, each good (`desirable_B`) or not, by policy and reference.

    `kl_policy_N` and `kl_reference_N` are summed log-probs of completions under prompts they do not belong to, those
    of all ranks: they estimate how far the policy has moved.
    Raises StageError where shapes differ, or where a log-prob is positive.
    """

    policy_BT: Tensor
    reference_BT: Tensor
    mask_BT: Tensor
    desirable_B: Tensor
    kl_policy_N: Tensor
    kl_reference_N: Tensor
    weight_B: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("policy_BT", "reference_BT"):
            check_shape(name, getattr(self, name), tuple(self.mask_BT.shape))
        for name in ("desirable_B", "weight_B"):
            check_shape(name, getattr(self, name), (len(self.mask_BT),))
        check_shape("kl_policy_N", self.kl_policy_N, tuple(self.kl_reference_N.shape))
        names = ("policy_BT", "reference_BT", "kl_policy_N", "kl_reference_N")
        check_log_probs({name: getattr(self, name) for name in names})


class PairObjective(Method):
    """Trains a policy on preferences: row losses, their mean, and what is worth watching.

    `needs` names the frozen models whose log-probs it reads; an `unpaired` objective takes an UnpairedBatch, every
    other one a PairBatch, of which a `chosen_only` one reads no rejected completion.
    """

    needs: ClassVar[tuple[Role, ...]] = ()
    unpaired: ClassVar[bool] = False
    chosen_only: ClassVar[bool] = False

    def __call__(self, batch: Any) -> Loss:
        raise TypeError(f"{type(self).__name__} has no loss of its own")


def check_log_probs(named: dict[str, Tensor]) -> None:
    """Raises StageError naming the tensors that hold a value above 0, beyond rounding."""
    highest = torch.stack([x.detach().amax() if x.numel() else x.new_zeros(()) for x in named.values()]).tolist()
    wrong = [f"{name} ({value:.4g})" for name, value in zip(named, highest, strict=True) if value > ROUNDING]
    if wrong:
        raise StageError(
            f"log-probs are never above 0, but the highest of {', '.join(wrong)} is: give log-softmax values"
        )


def log_odds(mean_B: Tensor) -> Tensor:
    """log p / (1 - p) of the likelihood of a token, p = exp(mean_B), 1 - p kept above 1e-7: (B,)."""
    return mean_B - (-torch.expm1(mean_B.clamp_max(-1e-7))).log()


def watched(batch: PairBatch, chosen_B: Tensor, rejected_B: Tensor) -> dict[str, float]:
    """TRL's metrics, from (implicit) rewards of both completions; logps are summed over tokens."""
    means = {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).to(chosen_B),
        "rewards/margins": chosen_B - rejected_B,
        "logps/chosen": batch.policy.chosen_B,
        "logps/rejected": batch.policy.rejected_B,
    }
    found = torch.stack([value_B.detach().mean() for value_B in means.values()]).tolist()
    return dict(zip(means, found, strict=True))
