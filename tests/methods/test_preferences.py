"""Preference objectives against reference values, limits and invariances.

The reference values come from the trainers of TRL 1.16 run on stub models, from the methods' published code, or from
the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trimtab.errors import StageError
from trimtab.methods.preferences._base import PairBatch, PairObjective, Side, log_odds
from trimtab.methods.preferences._losses import LOSSES, SORTS, LossType
from trimtab.methods.preferences.arm import Arm
from trimtab.methods.preferences.asft import Asft
from trimtab.methods.preferences.cpo import Cpo
from trimtab.methods.preferences.cwpo import Cwpo
from trimtab.methods.preferences.dpo import Dpo
from trimtab.methods.preferences.orpo import Orpo
from trimtab.methods.preferences.simpo import Simpo
from trimtab.methods.preferences.softdpo import Softdpo
from trimtab.methods.preferences.wspo import Wspo
from trimtab.spec import methods_in

Floats = Sequence[float]


def named(objective: PairObjective) -> str:
    return "-".join([objective.kind, getattr(objective, "loss_type", "")]).strip("-")


EVERY = methods_in("trimtab.methods.preferences")
PAIRED = [method() for method in EVERY.values() if not method.unpaired]
EVERY_DPO = [Dpo(loss_type=name, label_smoothing=0.1 if name in ("exo_pair", "robust") else 0) for name in LOSSES]
NO_SORT = [objective for objective in PAIRED + EVERY_DPO if not getattr(objective, "sorts", False)]
IMPLICIT = [Dpo(), Dpo(loss_type="hinge"), Dpo(loss_type="ipo"), Softdpo(), Simpo(), Arm(), Cpo(cpo_alpha=0)]


def tokens(sums: Floats, lengths: Sequence[int], width: int) -> Tensor:
    """Each row's sum spread evenly over its tokens, 0 behind them."""
    rows = [[s / n] * n + [0.0] * (width - n) for s, n in zip(sums, lengths, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def pairs(
    chosen: Floats,
    rejected: Floats,
    reference: tuple[Floats, Floats] | None = None,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    **rows: Floats,
) -> PairBatch:
    """Pairs with these summed log-probs."""
    lengths = lengths or ([1] * len(chosen), [1] * len(chosen))
    width = max(*lengths[0], *lengths[1])

    def side(sums: tuple[Floats, Floats]) -> Side:
        return Side(*(tokens(s, n, width) for s, n in zip(sums, lengths, strict=True)))

    return PairBatch(
        policy=side((chosen, rejected)),
        chosen_mask_BT=mask_of(lengths[0], width),
        rejected_mask_BT=mask_of(lengths[1], width),
        reference=None if reference is None else side(reference),
        **{name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()},
    )


def batch_a(**rows: Floats) -> PairBatch:
    return pairs([-12, -20], [-14, -18], ([-13, -19.3], [-13.5, -18.4]), ([6, 10], [7, 9]), **rows)


def batch_b(**rows: Floats) -> PairBatch:
    """Mean log-probs: one token each."""
    return pairs([-0.5, -1.2], [-0.9, -0.8], **rows)


def random_pairs(rows: int = 8, width: int = 6, seed: int = 0) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (2, rows), generator=generator)
    masks_BT = [torch.arange(width) < length_B[:, None] for length_B in lengths]
    models = []
    for _ in range(4):
        drawn = (-3 * torch.rand(2, rows, width, generator=generator, dtype=torch.float64)).unbind()
        models.append(Side(*(x_BT * mask_BT for x_BT, mask_BT in zip(drawn, masks_BT, strict=True))))
    policy = Side(models[0].chosen_BT.requires_grad_(), models[0].rejected_BT.requires_grad_())
    p_B = torch.rand(rows, generator=generator, dtype=torch.float64)
    return PairBatch(policy, *masks_BT, *models[1:], p_B=p_B, margin_B=torch.special.logit(p_B))


def rows_of(batch: PairBatch, rows: slice | Tensor) -> PairBatch:
    def cut(value: object) -> object:
        if isinstance(value, Side):
            return Side(value.chosen_BT[rows], value.rejected_BT[rows])
        return value[rows] if isinstance(value, Tensor) else value

    return PairBatch(**{name: cut(value) for name, value in vars(batch).items()})


def swapped(batch: PairBatch) -> PairBatch:
    def swap(side: Side | None) -> Side | None:
        return side and Side(side.rejected_BT, side.chosen_BT)

    models = {role: swap(getattr(batch, role)) for role in ("policy", "reference", "weak", "weak_reference")}
    masks = {"chosen_mask_BT": batch.rejected_mask_BT, "rejected_mask_BT": batch.chosen_mask_BT}
    return replace(batch, **models, **masks)


def value(objective: PairObjective, batch: PairBatch) -> float:
    return objective(batch).value.item()


def each(objective: PairObjective, batch: PairBatch) -> list[float]:
    return [value(objective, rows_of(batch, slice(i, i + 1))) for i in range(len(batch.chosen_mask_BT))]


def gradients(objective: PairObjective, batch: PairBatch) -> tuple[Tensor, ...]:
    inputs = [batch.policy.chosen_BT, batch.policy.rejected_BT]
    return torch.autograd.grad(objective(batch).value, inputs, materialize_grads=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss_type": "sigmoid"}, 0.685308),
        ({"loss_type": "hinge"}, 0.98),
        ({"loss_type": "ipo"}, 24.416639),
        ({"loss_type": "robust", "label_smoothing": 0.1}, 0.682808),
        ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, 2.729001),
        ({"loss_type": "nca_pair"}, 1.382819),
        ({"loss_type": "bco_pair"}, 1.377482),
        ({"loss_type": "sppo_hard"}, 48.95),
        ({"loss_type": "apo_zero"}, 0.995007),
        ({"loss_type": "apo_down"}, 0.998764),
        ({"loss_type": "aot"}, 0.685308),
        ({"loss_type": "aot_unpaired"}, 0.683397),
        ({"loss_type": "discopop"}, 0.817783),
        ({"loss_type": "sigmoid_norm"}, 0.6901),
        ({"loss_type": "sft"}, 2),
        ({"f_divergence": "forward_kl"}, 0.696864),
        ({"f_divergence": "js_divergence"}, 0.691872),
    ],
)
def test_dpo_reference_values(fields: dict[str, object], expected: float) -> None:
    assert value(Dpo(**fields), batch_a()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Dpo(), [0.620957, 0.749659]),
        (Dpo(loss_type="robust", label_smoothing=0.1), [0.602207, 0.763409]),
        (Dpo(label_smoothing=0.1), [0.635957, 0.738659]),
    ],
)
def test_dpo_reference_values_of_rows(objective: Dpo, expected: list[float]) -> None:
    assert each(objective, batch_a()) == pytest.approx(expected, abs=1e-6)


def test_dpo_reference_metrics() -> None:
    assert Dpo()(batch_a()).metrics == pytest.approx(
        {
            "rewards/chosen": 0.015,
            "rewards/rejected": -0.005,
            "rewards/margins": 0.02,
            "rewards/accuracies": 0.5,
            "logps/chosen": -16,
            "logps/rejected": -16,
        }
    )


@pytest.mark.parametrize(("beta", "mean", "weighted"), [(0.1, 0.670332, 0.151367), (0.5, 0.621093, 0.098684)])
def test_confidence_weighted_reference_values(beta: float, mean: float, weighted: float) -> None:
    p = torch.tensor([1.5, 0.2, 0]).sigmoid().tolist()
    batch = pairs([-8, -11, -9.5], [-10] * 3, ([-10] * 3, [-10] * 3), p_B=p)
    assert value(Dpo(beta=beta), batch) == pytest.approx(mean, abs=1e-6)
    loss = Cwpo(base=Dpo(beta=beta))(batch)
    assert loss.value.item() == pytest.approx(weighted, abs=1e-6)
    assert loss.metrics["confidence"] == pytest.approx((0.635149 + 0.099668 + 0) / 3, abs=1e-6)
    if beta == 0.1:
        assert each(Dpo(beta=beta), batch) == pytest.approx([0.598139, 0.744397, 0.668460], abs=1e-6)


def test_soft_label_reference_values() -> None:
    assert value(Softdpo(), batch_a(p_B=[0.7, 0.4])) == pytest.approx(0.674808, abs=1e-6)
    assert value(Softdpo(margin_scale=1), batch_a(margin_B=[1, 0.2])) == pytest.approx(1.032988, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Orpo(), 0.921504),
        (Orpo(odds_coef=1), 1.565035),
        (Asft(), 0.990923),
        (Asft(odds_coef=1), 2.259227),
        (Asft(ce_coef=0, odds_coef=1, beta=0.1), 1.382652),
        (Simpo(), 1.375558),
        (Simpo(beta=10), 5.156693),
        (Simpo(alpha=0.25), 1.434021),
        (Cpo(loss_type="ipo", cpo_alpha=0), 25.16),
    ],
)
def test_reference_free_reference_values(objective: PairObjective, expected: float) -> None:
    assert value(objective, batch_b()) == pytest.approx(expected, abs=1e-6)


def test_reference_free_reference_values_of_rows() -> None:
    odds_B = log_odds(batch_b().chosen_mean_B) - log_odds(batch_b().rejected_mean_B)
    assert odds_B.tolist() == pytest.approx([0.810917, -0.638235], abs=1e-6)
    assert each(Asft(ce_coef=0, odds_coef=1), batch_b()) == pytest.approx([1.021835, 1.796618], abs=1e-6)
    assert each(Simpo(), batch_b()) == pytest.approx([0.798139, 1.952978], abs=1e-6)
    mean = pairs([-0.8, -1.2, -0.5], [-1.1, -0.9, -0.6])
    assert each(Simpo(), mean) == pytest.approx([0.913015, 1.783901, 1.171101], abs=1e-6)
    assert value(Simpo(), mean) == pytest.approx(1.289339, abs=1e-6)


def test_cpo_reference_values() -> None:
    assert value(Cpo(cpo_alpha=0), batch_a()) == pytest.approx(0.698139, abs=1e-6)
    assert value(Cpo(), batch_a()) == pytest.approx(0.698139 + 2, abs=1e-6)
    assert value(Simpo(), batch_b()) + Cpo()(batch_b()).metrics["nll_loss"] == pytest.approx(2.225558, abs=1e-6)
    assert value(Cpo(loss_type="hinge", cpo_alpha=0), batch_a()) == pytest.approx((0.8 + 1.2) / 2)


@pytest.mark.parametrize(
    ("beta_r", "chosen", "rejected", "expected"),
    [(0.05, -12, -15, 0.620957), (0.5, -12, -15, 0.201413), (0.01, -40, -33, 0.728760), (0.1, -100, -130, 0.048587)],
)
def test_arm_reference_values(beta_r: float, chosen: float, rejected: float, expected: float) -> None:
    assert value(Arm(beta_r=beta_r), pairs([chosen], [rejected])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 1.200985), (0.5, 1.615460), (1, 2.258150)])
def test_wspo_reference_values(beta: float, expected: float) -> None:
    place_TV = 5 * torch.arange(5.0).double()[:, None] + torch.arange(5)
    logps = [(place_TV * (0.7 + 0.1 * i)).sin().log_softmax(-1) for i in range(4)]
    sides = [Side(*2 * [logp_TV[[1, 2, 3], [3, 1, 4]][None]]) for logp_TV in logps]
    assert sides[0].chosen_BT[0].tolist() == pytest.approx([-1.744995, -1.212912, -0.793006], abs=1e-6)
    assert sides[3].chosen_BT[0].tolist() == pytest.approx([-0.994126, -2.748864, -1.393822], abs=1e-6)
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    batch = PairBatch(sides[0], mask_BT, mask_BT, *sides[1:])
    assert value(Wspo(beta=beta), batch) == pytest.approx(expected, abs=2e-6)  # the reference ran in fp32


def test_losses_have_trl_s_names() -> None:
    assert set(LOSSES) == set(get_args(LossType))
    assert len(LOSSES) == 15


@pytest.mark.parametrize(
    ("name", "at_rest"),
    [
        *[(name, 0.693147) for name in ("sigmoid", "robust", "sigmoid_norm", "aot", "aot_unpaired")],
        *[(name, 2 * 0.693147) for name in ("nca_pair", "bco_pair")],
        *[(name, 1) for name in ("hinge", "apo_zero", "apo_down")],
        *[("ipo", 25), ("sppo_hard", 50), ("discopop", (0.693147 + 1) / 2)],
    ],
)
def test_a_policy_that_is_its_reference_starts_here(name: str, at_rest: float) -> None:
    batch = random_pairs()
    assert value(Dpo(loss_type=name), replace(batch, reference=batch.policy)) == pytest.approx(at_rest, abs=1e-6)


@pytest.mark.parametrize(("divergence", "slope"), [("forward_kl", 1), ("js_divergence", 0.5)])
def test_divergences_differ_in_slope_only_near_the_reference(divergence: str, slope: float) -> None:
    batch = random_pairs()
    still = replace(batch, reference=batch.policy)
    plain, other = gradients(Dpo(), still), gradients(Dpo(f_divergence=divergence), still)
    torch.testing.assert_close(other[0], slope * plain[0])
    torch.testing.assert_close(other[1], slope * plain[1])


def test_limits_of_the_logistic_family() -> None:
    batch = random_pairs()
    sure = replace(batch, p_B=torch.ones(8), margin_B=None)
    for other, given in (
        (Softdpo(), sure),
        (Softdpo(), replace(batch, p_B=None)),
        (Dpo(loss_type="robust"), batch),
        (Cwpo(base=Dpo()), sure),
    ):
        assert value(other, given) == pytest.approx(value(Dpo(), batch))
    doubtful = replace(batch, p_B=torch.full((8,), 0.8))
    assert value(Softdpo(), doubtful) == pytest.approx(value(Dpo(label_smoothing=0.2), batch))
    assert value(Arm(beta_r=0.1), batch) == pytest.approx(value(Cpo(cpo_alpha=0), batch))


def test_an_autoregressive_reward_model_is_dpo_without_a_reference() -> None:
    batch = random_pairs()
    nothing = Side(torch.zeros_like(batch.policy.chosen_BT), torch.zeros_like(batch.policy.rejected_BT))
    for e in (0, 0.1):
        arm, dpo = Arm(beta_r=0.3, label_smoothing=e), Dpo(beta=0.3, label_smoothing=e)
        assert value(arm, batch) == pytest.approx(value(dpo, replace(batch, reference=nothing)))
    assert value(Arm(gamma=0.7), batch) == pytest.approx(
        value(Softdpo(beta=0.05, margin_scale=0.7), replace(batch, reference=nothing, p_B=None, margin_B=torch.ones(8)))
    )


def test_the_robust_loss_has_the_clean_expectation() -> None:
    batch, e = random_pairs(), 0.3
    noisy = Dpo(loss_type="robust", label_smoothing=e)
    expected = (1 - e) * value(noisy, batch) + e * value(noisy, swapped(batch))
    assert expected == pytest.approx(value(Dpo(), batch))


def test_soft_labels_are_the_mean_over_both_orders() -> None:
    batch = random_pairs(1)
    p = batch.p_B.item()
    both = p * value(Dpo(), batch) + (1 - p) * value(Dpo(), swapped(batch))
    assert value(Softdpo(), batch) == pytest.approx(both)
    other_way = replace(swapped(batch), p_B=1 - batch.p_B, margin_B=-batch.margin_B)
    for objective in (Softdpo(), Softdpo(margin_scale=0.5)):
        assert value(objective, batch) == pytest.approx(value(objective, other_way))


def test_soft_labels_are_fitted_where_the_policy_agrees_with_them() -> None:
    batch = random_pairs()
    z_B = (batch.ratio().chosen_B - batch.ratio().rejected_B).detach()
    for gradient_BT in gradients(Softdpo(beta=0.1), replace(batch, p_B=(0.1 * z_B).sigmoid())):
        torch.testing.assert_close(gradient_BT, torch.zeros_like(gradient_BT))


def test_aligned_fine_tuning_is_cross_entropy_on_likelihoods() -> None:
    batch = random_pairs()
    chosen_B, rejected_B = batch.chosen_mean_B, batch.rejected_mean_B
    expected = -chosen_B - (1 - rejected_B.exp()).log()
    torch.testing.assert_close(Asft(ce_coef=0, odds_coef=1)(batch).value, expected.mean())


def test_odds_ratio_with_its_inner_temperature() -> None:
    batch = batch_b()
    odds = (0.810917, -0.638235)
    expected = -torch.nn.functional.logsigmoid(0.25 * torch.tensor(odds)).mean()
    assert value(Orpo(ce_coef=0, odds_coef=1, temperature=0.25), batch) == pytest.approx(expected.item(), abs=1e-6)
    assert value(Orpo(odds_coef=0), batch) == pytest.approx(0.85)


def test_likelihoods_of_one_have_finite_odds() -> None:
    certain = pairs([0.0, -1e-9], [-1e-9, 0.0])
    certain = replace(certain, policy=Side(*(x.requires_grad_() for x in vars(certain.policy).values())))
    for objective in (Orpo(), Asft()):
        assert objective(certain).value.isfinite()
        assert all(gradient_BT.isfinite().all() for gradient_BT in gradients(objective, certain))


def test_alphapo_ends_in_simpo() -> None:
    batch = random_pairs()
    assert value(Simpo(alpha=1e-6), batch) == pytest.approx(value(Simpo(), batch), abs=1e-5)
    assert Simpo(beta=2.5, gamma_beta_ratio=0.1).gamma == pytest.approx(0.25)


def test_the_weak_shift_is_copied() -> None:
    batch = random_pairs()
    shift = batch.needed("weak") - batch.needed("weak_reference")
    low = Side(*(x_BT - 10 * mask_BT for x_BT, mask_BT in _tokens(batch.needed("reference"), batch)))
    beta = 2.0
    policy = Side(low.chosen_BT + shift.chosen_BT / beta, low.rejected_BT)
    assert value(Wspo(beta=beta), replace(batch, policy=policy, reference=low)) == pytest.approx(0)
    assert value(Wspo(beta=1), replace(batch, policy=policy, reference=low)) > 0.01
    assert (gradients(Wspo(), batch)[1] == 0).all()


def _tokens(side: Side, batch: PairBatch) -> list[tuple[Tensor, Tensor]]:
    return [(side.chosen_BT, batch.chosen_mask_BT), (side.rejected_BT, batch.rejected_mask_BT)]


@pytest.mark.parametrize("base", [Dpo(), Simpo(), Orpo(), Asft(), Cpo(), Arm()])
def test_confidence_weighs_any_base(base: PairObjective) -> None:
    batch = random_pairs()
    rows = torch.tensor(each(base, batch))
    expected = ((2 * batch.p_B - 1).abs() * rows).mean()
    weighted = Cwpo.model_validate({"base": base.model_dump()})
    assert weighted.needs == base.needs
    assert value(weighted, batch) == pytest.approx(expected.item())
    unsure = replace(batch, p_B=torch.full((8,), 0.5))
    assert value(weighted, unsure) == 0
    assert all((gradient_BT == 0).all() for gradient_BT in gradients(weighted, unsure))
    halved = replace(batch, weight_B=torch.full((8,), 0.5))
    assert value(weighted, halved) == pytest.approx(expected.item() / 2)


@pytest.mark.parametrize("objective", IMPLICIT, ids=named)
def test_swapping_a_pair_turns_its_margin_and_gradient_around(objective: PairObjective) -> None:
    batch = replace(random_pairs(), p_B=None, margin_B=None)
    metrics, turned = objective(batch).metrics, objective(swapped(batch)).metrics
    assert turned["rewards/margins"] == pytest.approx(-metrics["rewards/margins"])
    assert turned["rewards/chosen"] == pytest.approx(metrics["rewards/rejected"])
    assert turned["rewards/accuracies"] == pytest.approx(1 - metrics["rewards/accuracies"])
    for one in (batch, swapped(batch)):
        chosen, rejected = torch.autograd.grad(
            objective(one).value, [one.policy.chosen_BT, one.policy.rejected_BT], materialize_grads=True
        )
        assert (chosen <= 0).all() and (rejected >= 0).all() and (chosen < 0).any()


@pytest.mark.parametrize("objective", PAIRED + EVERY_DPO, ids=named)
def test_padding_changes_nothing(objective: PairObjective) -> None:
    batch = random_pairs()

    def wider(x_BT: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_BT, (2, 3))

    def wider_side(side: Side) -> Side:
        return Side(wider(side.chosen_BT), wider(side.rejected_BT))

    padded = replace(
        batch,
        **{role: wider_side(getattr(batch, role)) for role in ("policy", "reference", "weak", "weak_reference")},
        chosen_mask_BT=wider(batch.chosen_mask_BT),
        rejected_mask_BT=wider(batch.rejected_mask_BT),
    )
    assert value(objective, padded) == pytest.approx(value(objective, batch))
    assert objective(padded).metrics == pytest.approx(objective(batch).metrics)


RELATIVE = ["sigmoid", "hinge", "robust", "exo_pair", "discopop", "aot"]


@pytest.mark.parametrize("objective", [o for o in EVERY_DPO if o.loss_type in RELATIVE] + [Softdpo()], ids=named)
def test_what_both_completions_gain_changes_nothing(objective: PairObjective) -> None:
    batch = random_pairs()
    lower = replace(batch, reference=lowered(batch.needed("reference"), batch))
    assert value(objective, lower) == pytest.approx(value(objective, batch))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(RELATIVE) - {"sft", "aot_unpaired"}))
def test_other_losses_hold_each_completion_to_the_reference(name: str) -> None:
    batch = random_pairs()
    lower = replace(batch, reference=lowered(batch.needed("reference"), batch))
    assert abs(value(Dpo(loss_type=name), lower) - value(Dpo(loss_type=name), batch)) > 1e-4


def lowered(side: Side, batch: PairBatch, by: float = 2.0) -> Side:
    """Both completions' log-probs lowered by as much, spread over their tokens."""
    lengths = (batch.chosen_length_B[:, None], batch.rejected_length_B[:, None])
    moved = [x - by / n * mask for (x, mask), n in zip(_tokens(side, batch), lengths, strict=True)]
    return Side(*moved)


@pytest.mark.parametrize("objective", NO_SORT, ids=named)
def test_micro_batches_add_up_to_the_whole_batch(objective: PairObjective) -> None:
    whole = replace(random_pairs(), weight_B=torch.linspace(0, 2, 8))
    parts = [rows_of(whole, slice(0, 3)), rows_of(whole, slice(3, 8))]
    total = sum(objective(part).value * len(part.chosen_mask_BT) / 8 for part in parts)
    torch.testing.assert_close(total, objective(whole).value)
    expected = sum(
        w * row for w, row in zip(whole.weight_B, each(objective, replace(whole, weight_B=None)), strict=True)
    )
    assert value(objective, whole) == pytest.approx(expected.item() / 8)


@pytest.mark.parametrize("objective", PAIRED + EVERY_DPO, ids=named)
def test_rows_may_come_in_any_order(objective: PairObjective) -> None:
    batch = random_pairs()
    order_B = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert value(objective, rows_of(batch, order_B)) == pytest.approx(value(objective, batch))


@pytest.mark.parametrize("name", sorted(SORTS))
def test_sorted_losses_see_distributions_not_pairs(name: str) -> None:
    batch = random_pairs()
    order_B = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    other = replace(batch, reference=Side(*(x_BT[order_B] for x_BT in vars(batch.needed("reference")).values())))
    changes = value(Dpo(loss_type=name), other) != pytest.approx(value(Dpo(loss_type=name), batch))
    assert changes == (name == "aot_unpaired")
    with pytest.raises(StageError, match="sorted"):
        Dpo(loss_type=name)(replace(batch, weight_B=torch.ones(8)))
    with pytest.raises(ValidationError, match="sorted"):
        Cwpo(base=Dpo(loss_type=name))


@pytest.mark.parametrize("objective", PAIRED + EVERY_DPO, ids=named)
def test_losses_have_gradients_and_metrics_have_none(objective: PairObjective) -> None:
    batch = random_pairs()
    loss = objective(batch)
    assert loss.value.shape == () and loss.value.isfinite()
    assert all(isinstance(metric, float) for metric in loss.metrics.values())
    compares = {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected"}
    assert getattr(objective, "chosen_only", False) or compares <= set(loss.metrics)
    assert loss.metrics["logps/chosen"] == pytest.approx(batch.policy.chosen_B.mean().item())
    assert any((gradient_BT != 0).any() for gradient_BT in gradients(objective, batch))


@pytest.mark.parametrize("objective", PAIRED, ids=named)
def test_only_the_models_named_are_read(objective: PairObjective) -> None:
    batch = random_pairs()
    bare = replace(batch, reference=None, weak=None, weak_reference=None)
    enough = replace(bare, **{role: getattr(batch, role) for role in objective.needs})
    assert value(objective, enough) == value(objective, batch)
    for role in objective.needs:
        with pytest.raises(StageError, match=f"{role} model"):
            objective(replace(enough, **{role: None}))


def test_what_an_objective_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(StageError, match="cwpo"):
        Cwpo()(replace(random_pairs(), p_B=None))
    with pytest.raises(StageError, match="margin"):
        Softdpo(margin_scale=1)(replace(random_pairs(), margin_B=None))
    with pytest.raises(TypeError, match="no loss"):
        PairObjective(kind="none")(random_pairs())


def test_probabilities_in_place_of_log_probs_are_refused() -> None:
    batch = random_pairs()
    wrong = Side(batch.policy.chosen_BT, batch.policy.rejected_BT.exp())
    with pytest.raises(StageError, match=r"reference.rejected_BT \(1\)"):
        replace(batch, reference=wrong)
    hair_above = Side(batch.policy.chosen_BT.detach() * 0 + 1e-6, batch.policy.rejected_BT)
    assert Dpo()(replace(batch, policy=hair_above)).value.isfinite()


def test_tensors_that_do_not_fit_are_refused() -> None:
    batch = random_pairs()
    short = Side(batch.policy.chosen_BT.sum(-1, keepdim=True), batch.policy.rejected_BT)
    for wrong in (
        {"weak": short},
        {"p_B": batch.p_B[:, None]},
        {"weight_B": batch.p_B[:3]},
        {"margin_B": short.chosen_BT},
    ):
        name = next(iter(wrong))
        with pytest.raises(StageError, match=name):
            replace(batch, **wrong)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (Dpo, {"loss_type": "robust", "label_smoothing": 0.5}),
        (Dpo, {"loss_type": "exo_pair"}),
        (Dpo, {"loss_type": "ipo", "label_smoothing": 0.1}),
        (Dpo, {"loss_type": "bco_pair", "f_divergence": "forward_kl"}),
        (Dpo, {"loss_type": "kto"}),
        (Dpo, {"beta": 0}),
        (Cpo, {"loss_type": "hinge", "label_smoothing": 0.1}),
        (Simpo, {"gamma": 1}),
        (Cwpo, {"base": {"kind": "kto"}}),
        (Cwpo, {"base": {"kind": "cwpo"}}),
    ],
)
def test_unusable_fields_are_refused(method: type[PairObjective], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        method.model_validate(fields)


def test_each_file_is_one_kind() -> None:
    kinds = {"dpo", "softdpo", "simpo", "orpo", "asft", "cpo", "kto", "wspo", "arm", "cwpo"}
    assert kinds <= set(EVERY)
    assert {kind: method().kind for kind, method in EVERY.items()} == {kind: kind for kind in EVERY}
