"""Reward objectives against reference values, limits and invariances.

The reference values come from TRL 1.16, from the methods' published code, or from the formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trimtab.errors import StageError
from trimtab.methods.rewards._base import RewardBatch, RewardObjective
from trimtab.methods.rewards.bradley_terry import BradleyTerry
from trimtab.methods.rewards.conflict import Conflict
from trimtab.methods.rewards.ordinal import Ordinal
from trimtab.spec import methods_in

EVERY = [method() for method in methods_in("trimtab.methods.rewards").values()]


def named(objective: RewardObjective) -> str:
    return objective.kind


def batch_of(chosen: Sequence[float], rejected: Sequence[float], **rows: Sequence[float]) -> RewardBatch:
    columns = {"chosen_B": chosen, "rejected_B": rejected} | rows
    return RewardBatch(**{name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()})


def two(**rows: Sequence[float]) -> RewardBatch:
    return batch_of([1.5, -0.3], [0.2, 0.4], **rows)


def four() -> RewardBatch:
    return batch_of([1.2, -0.4, 0.1, 2.0], [0] * 4, p_B=[1, 0, 0.7, 0.2], truth_B=[1, 1, 0, 0])


def random_batch(rows: int = 16, seed: int = 0) -> RewardBatch:
    generator = torch.Generator().manual_seed(seed)
    chosen_B, rejected_B = (2 * torch.randn(2, rows, generator=generator, dtype=torch.float64)).unbind()
    p_B = torch.rand(rows, generator=generator, dtype=torch.float64)
    return RewardBatch(
        chosen_B=chosen_B.requires_grad_(),
        rejected_B=rejected_B.requires_grad_(),
        p_B=p_B,
        truth_B=torch.rand(rows, generator=generator) < 0.5,
    )


def swapped(batch: RewardBatch) -> RewardBatch:
    p_B, truth_B = 1 - batch.preference_B, ~batch.truth_B.bool()
    return replace(batch, chosen_B=batch.rejected_B, rejected_B=batch.chosen_B, p_B=p_B, truth_B=truth_B)


def gradients(objective: RewardObjective, batch: RewardBatch) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(objective(batch).value, [batch.chosen_B, batch.rejected_B])


def test_bradley_terry_reference_values() -> None:
    assert BradleyTerry(margin_scale=1)(two(margin_B=[0.5, 0])).value.item() == pytest.approx(0.737143, abs=1e-6)
    centred = BradleyTerry(center_rewards_coefficient=0.01)(two())
    assert centred.value.item() == pytest.approx(0.686597, abs=1e-6)
    assert BradleyTerry()(two(p_B=[0.7, 0.4])).value.item() == pytest.approx(0.657097, abs=1e-6)
    assert BradleyTerry()(four()).value.item() == pytest.approx(0.794406, abs=1e-6)


def test_conflict_reference_values() -> None:
    loss = Conflict()(four())
    assert loss.metrics["conflict"] == pytest.approx(0.321085, abs=1e-6)
    assert loss.metrics["conflict_share"] == 0.75
    assert loss.value.item() == pytest.approx(0.954948, abs=1e-6)


def test_metrics() -> None:
    found = BradleyTerry()(two()).metrics
    assert found == pytest.approx({"accuracy": 0.5, "margin": (1.3 - 0.7) / 2, "mean_reward": 0.45})
    assert BradleyTerry()(two(p_B=[0.9, 0.1])).metrics["accuracy"] == 1
    assert BradleyTerry()(two(p_B=[0.2, 0.6])).metrics["accuracy"] == 0


def test_a_conflict_pays_for_the_worse_completion_where_it_wins() -> None:
    batch = random_batch()
    assert Conflict(conflict_coef=0)(batch).value.item() == pytest.approx(BradleyTerry()(batch).value.item())
    plain, paid = gradients(BradleyTerry(), batch)[0], gradients(Conflict(conflict_coef=2), batch)[0]
    wrong_B = (batch.difference_B > 0) != batch.truth_B
    assert (plain[~wrong_B] == paid[~wrong_B]).all() and wrong_B.any()
    towards_worse = torch.where(batch.truth_B, paid - plain, plain - paid)
    assert (towards_worse[wrong_B] > 0).all()
    with pytest.raises(StageError, match="truth_B"):
        Conflict()(replace(batch, truth_B=None))


def test_truth_is_read_by_the_conflict_alone() -> None:
    batch = random_batch()
    for objective in (BradleyTerry(), Ordinal()):
        assert objective(replace(batch, truth_B=None)).value == objective(batch).value


def test_centring_pulls_the_sum_of_rewards_to_zero() -> None:
    batch = random_batch()
    higher = replace(batch, chosen_B=batch.chosen_B + 3, rejected_B=batch.rejected_B + 3)
    assert BradleyTerry()(higher).value.item() == pytest.approx(BradleyTerry()(batch).value.item())
    k = BradleyTerry(center_rewards_coefficient=0.1)
    drawn = k(higher).value - k(batch).value
    sums_B = batch.chosen_B + batch.rejected_B
    assert drawn.item() == pytest.approx(0.1 * ((sums_B + 6) ** 2 - sums_B**2).mean().item())


def test_a_margin_asks_for_a_larger_difference() -> None:
    batch = replace(random_batch(), p_B=None, margin_B=torch.full((16,), 2.0))
    asked = BradleyTerry(margin_scale=0.5)(batch).value.item()
    moved = replace(batch, chosen_B=batch.chosen_B - 1)
    assert asked == pytest.approx(BradleyTerry()(moved).value.item())
    with pytest.raises(StageError, match="margin"):
        BradleyTerry(margin_scale=1)(replace(batch, margin_B=None))


def test_two_grades_are_bradley_terry_on_hard_labels() -> None:
    batch = random_batch()
    hard = replace(batch, p_B=(batch.preference_B > 0.5).double())
    for given in (batch, hard):
        assert Ordinal(levels=2)(given).value.item() == pytest.approx(BradleyTerry()(hard).value.item())


def test_grades_are_equal_bins_of_p() -> None:
    def grade(p: float) -> float:
        return Ordinal(levels=5)(batch_of([0], [0], p_B=[p])).metrics["grade"]

    assert [grade(p) for p in (0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.61, 0.79, 0.81, 1)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [Ordinal(levels=4)(batch_of([0], [0], p_B=[p])).metrics["grade"] for p in (0.25, 0.5, 0.75)] == [1, 2, 3]
    assert Ordinal(levels=5)(batch_of([0], [0])).metrics["grade"] == 4


@pytest.mark.parametrize("levels", [2, 3, 5, 8])
@pytest.mark.parametrize("difference", [-2.5, 0, 0.3, 40])
def test_probabilities_of_grades_add_up_to_one(levels: int, difference: float) -> None:
    grades = [(g + 0.5) / levels for g in range(levels)]
    losses = [Ordinal(levels=levels)(batch_of([difference], [0], p_B=[p])).value.item() for p in grades]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_ordinal_values_by_hand() -> None:
    t = Ordinal(levels=4).thresholds()
    assert t[1:4] == pytest.approx([-math.log(3), 0, math.log(3)])
    assert [-x for x in t] == pytest.approx(t[::-1])

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    loss = Ordinal(levels=4)(batch_of([0.4, 0.4], [0, 0], p_B=[0.6, 0.9])).value.item()
    expected = -(math.log(s(math.log(3) - 0.4) - s(-0.4)) + math.log(1 - s(math.log(3) - 0.4))) / 2
    assert loss == pytest.approx(expected)
    wide = Ordinal(levels=4, spread=2).thresholds()
    assert wide[1:4] == pytest.approx([2 * x for x in t[1:4]])


def test_a_middle_grade_wants_a_difference_in_its_middle() -> None:
    def pull(difference: float) -> float:
        batch = random_batch(1)
        batch = replace(batch, p_B=torch.tensor([0.5]), chosen_B=batch.rejected_B.detach() + difference)
        batch.chosen_B.requires_grad_()
        return gradients(Ordinal(), batch)[0].item()

    assert pull(0) == pytest.approx(0)
    assert pull(1) > 0 > pull(-1)


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_the_order_of_a_pair_does_not_matter(objective: RewardObjective) -> None:
    batch = random_batch()
    assert objective(swapped(batch)).value.item() == pytest.approx(objective(batch).value.item())
    assert objective(swapped(batch)).metrics["accuracy"] == objective(batch).metrics["accuracy"]


@pytest.mark.parametrize("objective", EVERY, ids=named)
def test_rows_are_weighted_and_micro_batches_add_up(objective: RewardObjective) -> None:
    whole = replace(random_batch(), weight_B=torch.linspace(0, 2, 16))

    def cut(rows: slice) -> RewardBatch:
        return RewardBatch(**{name: x if x is None else x[rows] for name, x in vars(whole).items()})

    parts = [cut(slice(i, i + 1)) for i in range(16)]
    unweighted = [objective(replace(part, weight_B=None)).value.item() for part in parts]
    value = objective(whole).value.item()
    assert value == pytest.approx(sum(objective(part).value.item() for part in parts) / 16)
    assert value == pytest.approx((whole.weight_B * torch.tensor(unweighted)).mean().item())


@pytest.mark.parametrize("objective", EVERY, ids=named)
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_losses_and_gradients_stay_finite(objective: RewardObjective, size: float) -> None:
    drawn = random_batch()
    batch = replace(drawn, chosen_B=(drawn.chosen_B.detach() * size).requires_grad_())
    assert objective(batch).value.isfinite()
    assert all(gradient_B.isfinite().all() for gradient_B in gradients(objective, batch))


def test_unusable_fields_and_batches_are_refused() -> None:
    for method, fields in (
        (Ordinal, {"levels": 1}),
        (Ordinal, {"spread": 0}),
        (BradleyTerry, {"center_rewards_coefficient": -1}),
        (Conflict, {"alpha": 0.5}),
    ):
        with pytest.raises(ValidationError):
            method.model_validate(fields)
    with pytest.raises(StageError, match="truth_B"):
        two(truth_B=[1])
    with pytest.raises(StageError, match="rejected_B"):
        batch_of([1, 2], [1])
    with pytest.raises(TypeError, match="no loss"):
        RewardObjective(kind="none")(two())


def test_each_file_is_one_kind() -> None:
    assert {"bradley_terry", "ordinal", "conflict"} <= {objective.kind for objective in EVERY}
