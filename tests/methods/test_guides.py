"""Guides against reference values, limits and invariances.

The reference values come from the methods' published code or, where there is none, from the formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trimtab.errors import StageError
from trimtab.methods.guides._base import Blend, Linear, fuse
from trimtab.methods.guides.args import Args
from trimtab.methods.guides.contrastive import Contrastive
from trimtab.methods.guides.ensemble import Ensemble
from trimtab.methods.guides.fusion import Fusion
from trimtab.methods.guides.genarm import GenArm
from trimtab.methods.guides.proxy import Proxy
from trimtab.spec import methods_in

LOGITS = {
    "L": [2.10, 1.00, 0.45, 0.00, -1.20, -2.00],
    "S": [1.00, 1.55, 0.10, 0.40, -0.50, -1.00],
    "E1": [0.05, 2.90, 0.00, 0.55, -0.60, -1.90],
    "E2": [1.05, 0.10, 2.45, 0.50, -0.95, -1.10],
}
CFG = "0.737186 0.107538 0.097304 0.042642 0.011055 0.004275"
TABLE = [
    (GenArm(), "L E1", "0.139649 0.803626 0.025512 0.028195 0.002689 0.000329"),
    (GenArm(alpha=0.5), "L E1", "0.362125 0.501192 0.067829 0.056940 0.009650 0.002264"),
    (GenArm(alpha=2), "L E1", "0.009901 0.984980 0.001721 0.003296 0.000100 0.000003"),
    (GenArm(normalize=True), "L E1", "0.224068 0.537510 0.095770 0.100680 0.031092 0.010880"),
    (Ensemble(weights=(0.5, 0.5)), "L E1", "0.224068 0.537510 0.095770 0.100680 0.031092 0.010880"),
    (GenArm(alpha=(0.5, 0.5)), "L E1 E2", "0.422071 0.363280 0.159202 0.050409 0.004138 0.000900"),
    (GenArm(alpha=(0.2, 4)), "L E1 E2", "0.019067 0.000251 0.980396 0.000286 0.000000 0.000000"),
    (GenArm(alpha=(0.8, 1)), "L E1 E2", "0.320962 0.403962 0.240164 0.033829 0.000952 0.000130"),
    (Proxy(alpha=0.5), "L E1 S", "0.380129 0.399619 0.111666 0.080682 0.021445 0.006459"),
    (Proxy(), "L E1 S", "0.190802 0.633484 0.085733 0.070192 0.016465 0.003324"),
    (Proxy(alpha=2), "L E1 S", "0.027403 0.907469 0.028808 0.030285 0.005533 0.000502"),
    (Proxy(alpha=(0.6, 0.4)), "L E1 E2 S", "0.352516 0.255979 0.282901 0.085208 0.017727 0.005669"),
    (Fusion(), "L E1 S", "0.223373 0.589246 0.092189 0.073615 0.017705 0.003872"),
    (Fusion(), "L E2 S", "0.274760 0.017565 0.662419 0.035549 0.005847 0.003861"),
    (Fusion(), "L E1 E2 S", "0.135682 0.713592 0.072263 0.062197 0.013878 0.002388"),
    (Fusion(mode="joint"), "L E1 E2 S", "0.137596 0.274328 0.502364 0.073283 0.010271 0.002158"),
    (Contrastive(), "L S", "0.529788 0.101746 0.250254 0.118212 0 0"),
    (Contrastive(amateur_temperature=0.5), "L S", "0.373245 0.041357 0.433649 0.151750 0 0"),
    (Contrastive(coef=0.5), "L S", "0.581621 0.147057 0.175181 0.096141 0 0"),
    (Contrastive(coef=0.5, form="extrapolation"), "L S", "0.748663 0.109212 0.098819 0.043306 0 0"),
    (Ensemble(mode="mixture"), "L E1", "0.317173 0.498926 0.078526 0.074249 0.022954 0.008173"),
    (
        Contrastive(coef=0.5, mask=0, form="extrapolation"),
        "L S",
        "0.737186 0.107538 0.097304 0.042642 0.011055 0.004275",
    ),
    (Proxy(alpha=-0.5, untuned=False), "L S", "0.737186 0.107538 0.097304 0.042642 0.011055 0.004275"),
]
SEARCHED = [
    ("one_expert", "E1", (0.9,), 0.009109412),
    ("one_expert", "E2", (1.1,), 0.008611941),
    ("one_expert", "E1 E2", (1.2, 0), 0.320322675),
    ("joint", "E1 E2", (1.3, 0.8), 0.311269700),
]
BLENDS = [
    (GenArm(alpha=1.3), 2),
    (GenArm(alpha=(0.2, 4), normalize=True), 3),
    (Proxy(alpha=1.5), 3),
    (Proxy(alpha=(0.6, -0.4)), 4),
    (Proxy(alpha=0.7, untuned=False), 2),
    (Fusion(), 3),
    (Fusion(), 4),
    (Fusion(mode="joint", step=0.5), 4),
    (Contrastive(amateur_temperature=0.5), 2),
    (Contrastive(mask=0), 2),
    (Contrastive(form="extrapolation"), 2),
    (Ensemble(), 4),
    (Ensemble(mode="mixture", weights=(3, 1)), 2),
]
each_blend = pytest.mark.parametrize(("guide", "models"), BLENDS, ids=lambda x: getattr(x, "kind", x))


def models_of(names: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """logprobs_MBV of these models, one row."""
    return torch.tensor([[LOGITS[name]] for name in names.split()], dtype=dtype).log_softmax(-1)


def drawn(models: int, rows: int = 5, width: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(models, rows, width, generator=generator, dtype=torch.float64)).log_softmax(-1)


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def probs(guide: Blend, logprobs_MBV: Tensor) -> list[list[float]]:
    return guide(logprobs_MBV).logprobs_BV.exp().tolist()


@pytest.mark.parametrize(("guide", "names", "expected"), TABLE)
def test_reference_values(guide: Blend, names: str, expected: str) -> None:
    assert probs(guide, models_of(names))[0] == pytest.approx(numbers(expected), abs=1e-6)
    assert probs(guide, models_of(names, torch.float32))[0] == pytest.approx(numbers(expected), abs=1e-4)


def test_temperature_and_filters_come_after_the_guide() -> None:
    fused_BV = GenArm()(models_of("L E1")).logprobs_BV
    cooled = numbers("0.074760 0.910767 0.006591 0.007603 0.000265 0.000013")
    assert (fused_BV / 0.7).softmax(-1)[0].tolist() == pytest.approx(cooled, abs=1e-6)
    top_two = fused_BV.topk(2).values.softmax(-1)[0].tolist()
    assert top_two == pytest.approx([0.851953, 0.148047], abs=1e-6)


def test_contrastive_scores() -> None:
    """0.866882 -0.783118 0.116882 -0.633118, but for one number added to all."""
    fused = Contrastive()(models_of("L S")).logprobs_BV[0]
    assert (fused[:4] - fused[0]).tolist() == pytest.approx([0, -1.65, -0.75, -1.5], abs=1e-6)
    assert fused[4:].tolist() == [-math.inf, -math.inf]


def test_what_each_model_counts() -> None:
    three = models_of("L E1 E2")
    assert GenArm(alpha=(0.2, 4))(three).weights_BM.tolist() == [[1, 0.2, 4]]
    assert GenArm(alpha=3, normalize=True)(three[:2]).weights_BM.tolist() == [[0.25, 0.75]]
    assert Proxy(alpha=0.5)(models_of("L E1 S")).weights_BM.tolist() == [[1, 0.5, -0.5]]
    assert Proxy(alpha=0.5, untuned=False)(three).weights_BM.tolist() == [[0, 0.5, 0.5]]
    assert Contrastive(coef=0.5, form="extrapolation")(three[:2]).weights_BM.tolist() == [[1.5, -0.5]]
    assert Ensemble(mode="mixture", weights=(2, 1, 1))(three).weights_BM.tolist() == [[0.5, 0.25, 0.25]]


# ---- dynamic logit fusion


def kl(left_V: Tensor, right_V: Tensor) -> float:
    return float((left_V.exp() * (left_V - right_V)).sum())


def naive_losses(logprobs_MV: Tensor, alphas: Sequence[Sequence[float]]) -> list[float]:
    """The printed pseudo-code, one alpha after the other."""
    base_V, experts, untuned_V = logprobs_MV[0], logprobs_MV[1:-1], logprobs_MV[-1]
    losses = []
    for alpha in alphas:
        moved = sum((a * (e_V - untuned_V) for a, e_V in zip(alpha, experts, strict=True)), base_V).log_softmax(-1)
        onward, backward = kl(moved, base_V), kl(base_V, moved)
        losses.append(sum((onward - kl(e, untuned_V)) ** 2 + (backward - kl(untuned_V, e)) ** 2 for e in experts))
    return losses


def naive_grid(guide: Fusion, experts: int) -> list[tuple[float, ...]]:
    line = [alpha for i in range(102) if (alpha := guide.min + guide.step * i) < guide.max + 1e-9]
    if guide.mode == "joint":
        return list(itertools.product(line, repeat=experts))
    return [tuple(a if i == t else 0.0 for i in range(experts)) for t in range(experts) for a in line]


def naive_alpha(guide: Fusion, logprobs_MV: Tensor) -> tuple[float, ...]:
    grid = naive_grid(guide, len(logprobs_MV) - 2)
    losses = naive_losses(logprobs_MV, grid)
    return grid[losses.index(min(losses))]


def found(guide: Fusion, logprobs_MBV: Tensor) -> list[list[float]]:
    return guide(logprobs_MBV).weights_BM[:, 1:-1].tolist()


@pytest.mark.parametrize(("mode", "experts", "alpha", "loss"), SEARCHED)
def test_fusion_finds_the_alpha_of_the_reference(
    mode: Any, experts: str, alpha: tuple[float, ...], loss: float
) -> None:
    models = models_of(f"L {experts} S")
    assert found(Fusion(mode=mode), models)[0] == pytest.approx(alpha)
    assert naive_losses(models[:, 0], [alpha]) == pytest.approx([loss], abs=1e-8)
    assert naive_alpha(Fusion(mode=mode), models[:, 0]) == pytest.approx(alpha)


def test_fusion_losses_along_the_grid() -> None:
    losses = naive_losses(models_of("L E1 S")[:, 0], [(a,) for a in (0, 0.5, 0.9, 1, 1.1, 2)])
    assert losses == pytest.approx([0.262753, 0.120588, 0.009109, 0.038596, 0.104651, 2.729030], abs=1e-6)


GRIDS: list[dict[str, Any]] = [
    {},
    {"min": 0.3, "max": 1.7, "step": 0.2},
    {"max": 1.5, "step": 0.03},
    {"max": 4, "step": 0.7},
    {"min": 0.8, "max": 0.8},
    {"mode": "joint", "step": 0.25},
]


@pytest.mark.parametrize("fields", GRIDS, ids=str)
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_fusion_finds_what_the_naive_search_finds(fields: dict[str, Any], experts: int) -> None:
    guide = Fusion(**fields)
    rows = 24 // experts if guide.mode == "one_expert" else 3
    models = drawn(experts + 2, rows=rows, width=9 * experts, seed=experts)
    models[1:-1] = (models[-1] + 0.7 * (models[1:-1] - models[-1])).log_softmax(-1)
    expected = [naive_alpha(guide, models[:, row]) for row in range(rows)]
    assert len({tuple(alpha) for alpha in expected}) > 1 or guide.min == guide.max
    for got, wanted in zip(found(guide, models), expected, strict=True):
        assert got == pytest.approx(wanted)


def test_fusion_is_the_same_in_single_precision_on_a_large_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(6, 20_000, generator=generator)
    untuned = base + 1.5 * torch.randn(6, 20_000, generator=generator)
    expert = untuned + torch.randn(6, 20_000, generator=generator)
    models = torch.stack([base, expert, untuned]).log_softmax(-1)
    expected = [list(naive_alpha(Fusion(), models[:, row].double())) for row in range(6)]
    assert torch.tensor(found(Fusion(), models)).sub(torch.tensor(expected)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["one_expert", "joint"])
def test_fusion_without_a_shift_takes_the_first_alpha(mode: Any, dtype: torch.dtype) -> None:
    base, expert, _, _ = drawn(4, width=3000).to(dtype)
    idle = torch.stack([base, expert, expert])
    assert found(Fusion(), idle) == [[0.0]] * 5
    assert found(Fusion(min=0.5), idle) == [[0.5]] * 5
    fused = Fusion(mode=mode)(torch.stack([base, expert, expert, expert]))
    assert fused.weights_BM.tolist() == [[1, 0, 0, 0]] * 5
    assert fused.logprobs_BV.exp().sub(base.exp()).abs().max() < 1e-6


def test_fusion_of_the_base_into_itself_is_its_expert() -> None:
    """Where the untuned model is the base, alpha 1 moves it exactly as far as the expert moved."""
    base, expert = drawn(2)
    fused = Fusion()(torch.stack([base, expert, base]))
    assert fused.weights_BM.tolist() == [[1, pytest.approx(1), pytest.approx(-1)]] * 5
    assert torch.allclose(fused.logprobs_BV, expert)


def test_fusion_keeps_a_minimum_for_every_row() -> None:
    models = drawn(3, rows=8)
    alphas = found(Fusion(), models)
    assert len({alpha for (alpha,) in alphas}) > 2
    assert [found(Fusion(), models[:, row : row + 1])[0] for row in range(8)] == alphas


def test_fusion_takes_tokens_that_a_model_never_says_as_very_unlikely() -> None:
    for silent in ([0], [1], [2], [1, 2], [0, 1, 2]):
        logits = drawn(3)
        logits[silent, :, 2] = -torch.inf
        models = logits.log_softmax(-1)
        expected = [naive_alpha(Fusion(), models[:, row].clamp(min=-60)) for row in range(5)]
        assert torch.tensor(found(Fusion(), models)).sub(torch.tensor(expected)).abs().max() < 1e-6


# ---- limits and invariances


@pytest.mark.parametrize(
    "guide",
    [
        GenArm(alpha=0),
        GenArm(alpha=0, normalize=True),
        Proxy(alpha=0, untuned=False),
        Contrastive(coef=0, mask=0),
        Contrastive(coef=0, mask=0, form="extrapolation"),
        Ensemble(weights=(1, 0)),
        Ensemble(weights=(1, 0), mode="mixture"),
    ],
)
def test_helpers_without_weight_leave_the_base_alone(guide: Blend) -> None:
    models = drawn(2)
    assert torch.allclose(guide(models).logprobs_BV, models[0], atol=1e-12)


@pytest.mark.parametrize("guide", [Proxy(alpha=0), Fusion(max=0)])
def test_alpha_0_leaves_the_base_alone(guide: Blend) -> None:
    models = drawn(3)
    assert torch.allclose(guide(models).logprobs_BV, models[0], atol=1e-12)


@pytest.mark.parametrize("guide", [Proxy(alpha=3), Proxy(alpha=-3), Fusion()])
def test_an_expert_that_was_not_tuned_changes_nothing(guide: Blend) -> None:
    base, expert = drawn(2)
    assert torch.allclose(guide(torch.stack([base, expert, expert])).logprobs_BV, base, atol=1e-12)


@pytest.mark.parametrize("guide", [GenArm(alpha=4), Contrastive(mask=0)])
def test_a_uniform_helper_changes_nothing(guide: Blend) -> None:
    base = drawn(1)[0]
    assert torch.allclose(guide(torch.stack([base, torch.zeros_like(base).log_softmax(-1)])).logprobs_BV, base)


@pytest.mark.parametrize("mode", ["product", "mixture"])
def test_an_ensemble_of_equals_is_each_of_them(mode: Any) -> None:
    base = drawn(1)[0]
    assert torch.allclose(Ensemble(mode=mode)(torch.stack([base] * 3)).logprobs_BV, base)


@pytest.mark.parametrize(
    ("guide", "turned", "order"),
    [
        (GenArm(alpha=(0.2, 4)), GenArm(alpha=(4, 0.2)), [0, 2, 1]),
        (GenArm(), GenArm(), [0, 2, 1]),
        (Proxy(alpha=(0.6, 0.4)), Proxy(alpha=(0.4, 0.6)), [0, 2, 1, 3]),
        (Proxy(alpha=(2, -1), untuned=False), Proxy(alpha=(-1, 2), untuned=False), [0, 2, 1]),
        (Fusion(), Fusion(), [0, 2, 1, 3]),
        (Fusion(mode="joint", step=0.2), Fusion(mode="joint", step=0.2), [0, 2, 1, 3]),
        (Ensemble(weights=(1, 2, 3)), Ensemble(weights=(3, 1, 2)), [2, 0, 1]),
        (Ensemble(mode="mixture"), Ensemble(mode="mixture"), [2, 1, 0]),
    ],
)
def test_the_order_of_helpers_does_not_matter(guide: Blend, turned: Blend, order: list[int]) -> None:
    models = drawn(len(order))
    fused, other = guide(models), turned(models[order])
    assert torch.allclose(fused.logprobs_BV, other.logprobs_BV)
    assert torch.allclose(fused.weights_BM[:, order], other.weights_BM)


@each_blend
def test_log_probs_are_normalised_and_rows_do_not_touch(guide: Blend, models: int) -> None:
    logprobs = drawn(models)
    fused_BV = guide(logprobs).logprobs_BV
    assert torch.allclose(fused_BV.logsumexp(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    alone = torch.cat([guide(logprobs[:, row : row + 1]).logprobs_BV for row in range(5)])
    assert torch.allclose(fused_BV, alone)


@each_blend
def test_a_token_that_models_never_say_does_no_harm(guide: Blend, models: int) -> None:
    """Each set of models in turn gives token 2 no probability; whatever the base rules out stays out."""
    for dtype in (torch.float32, torch.float64):
        for silent in itertools.product([False, True], repeat=models):
            logits = drawn(models).to(dtype)
            logits[torch.tensor(silent), :, 2] = -torch.inf
            fused_BV = guide(logits.log_softmax(-1)).logprobs_BV
            assert torch.allclose(fused_BV.exp().sum(-1), torch.ones(5, dtype=dtype), atol=1e-5)
            rules_out = not (isinstance(guide, Ensemble) and guide.mode == "mixture")
            rules_out = rules_out and not (isinstance(guide, Proxy) and not guide.untuned)
            if (silent[0] and rules_out) or all(silent):
                assert fused_BV[:, 2].exp().tolist() == [0] * 5


def test_tokens_that_the_small_pair_lacks_keep_the_odds_of_the_base() -> None:
    logits = drawn(3)
    logits[1:, :, 30:] = -torch.inf
    models = logits.log_softmax(-1)
    fused_BV = Proxy(alpha=2)(models).logprobs_BV
    assert torch.allclose(fused_BV[:, 30:].log_softmax(-1), models[0, :, 30:].log_softmax(-1))


def test_rows_may_have_weights_of_their_own() -> None:
    models = drawn(3, rows=2)
    weights_BM = torch.tensor([GenArm(alpha=(0.2, 4)).weights(3), Proxy().weights(3)], dtype=torch.float64)
    fused_BV = fuse(weights_BM, models)
    assert torch.allclose(fused_BV[0], GenArm(alpha=(0.2, 4))(models).logprobs_BV[0])
    assert torch.allclose(fused_BV[1], Proxy()(models).logprobs_BV[1])


# ---- what is refused


@pytest.mark.parametrize(
    ("guide", "models", "message"),
    [
        (GenArm(), 1, "genarm takes at least 1 helpers beside the base, but there are 0"),
        (GenArm(alpha=(1, 2)), 2, "genarm takes 2 helpers beside the base, but there are 1"),
        (Proxy(), 2, "at least 2"),
        (Proxy(alpha=(1, 2)), 3, "takes 3"),
        (Proxy(untuned=False), 1, "at least 1"),
        (Proxy(alpha=(1,), untuned=False), 3, "takes 1"),
        (Fusion(), 2, "at least 2"),
        (Contrastive(), 3, "takes 1"),
        (Ensemble(), 1, "at least 1"),
        (Ensemble(weights=(1, 2)), 3, "takes 1"),
        (GenArm(alpha=10), 6, "come to 51 in all: keep them to 40"),
        (Proxy(alpha=(10, -10, 10)), 5, "come to 41 in all"),
        (Fusion(mode="joint"), 6, "mode: one_expert, or a larger step"),
    ],
)
def test_ensembles_that_do_not_fit(guide: Blend, models: int, message: str) -> None:
    with pytest.raises(StageError, match=message):
        guide(drawn(models))
    with pytest.raises(StageError, match=message):
        guide.check(models)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("genarm", {"alpha": 11}, "less than or equal to 10"),
        ("genarm", {"alpha": (1, -1)}, "greater than or equal to 0"),
        ("genarm", {"alpha": math.nan}, "finite"),
        ("proxy", {"alpha": -11}, "greater than or equal to -10"),
        ("fusion", {"min": 2, "max": 1}, "max is 1, below min, which is 2"),
        ("fusion", {"step": 0.001}, "makes more than 101 alphas"),
        ("fusion", {"step": 0}, "greater than 0"),
        ("fusion", {"min": -1}, "greater than or equal to 0"),
        ("contrastive", {"mask": 1.5}, "less than or equal to 1"),
        ("contrastive", {"coef": -1}, "greater than or equal to 0"),
        ("contrastive", {"amateur_temperature": 0}, "greater than 0"),
        ("ensemble", {"weights": (0, 0)}, "not all of them 0"),
        ("ensemble", {"weights": (1,)}, "the base and to every helper"),
        ("args", {"k": 0}, "greater than or equal to 1"),
        ("args", {"weight": 20}, "less than or equal to 10"),
        ("nudging", {"gamma": 1.1}, "less than or equal to 1"),
        ("nudging", {"window": 0}, "greater than or equal to 1"),
        ("nudging", {"thresholds": 0.3}, "Extra inputs"),
    ],
)
def test_fields_out_of_range(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        methods_in("trimtab.methods.guides")[kind](**fields)


def test_linear_guides_are_those_with_fixed_weights() -> None:
    guides = methods_in("trimtab.methods.guides")
    assert {kind for kind, guide in guides.items() if issubclass(guide, Linear)} == {"genarm", "proxy"}
    assert {kind for kind, guide in guides.items() if not issubclass(guide, Blend)} == {"args", "nudging"}


# ---- ARGS


def test_args_reranks_the_likeliest_tokens() -> None:
    guide, base_BV = Args(k=3), models_of("L")[0]
    ids_BK = guide.candidates(base_BV)
    assert ids_BK.tolist() == [[0, 1, 2]]
    fused = guide(base_BV, ids_BK, torch.tensor([[0.3, 1.2, -0.5]]))
    scores = torch.tensor([2.40, 2.20, -0.05], dtype=torch.float64)
    assert torch.allclose(fused.logprobs_BV[0, :3], scores.log_softmax(-1))
    assert fused.logprobs_BV[0, 3:].tolist() == [-math.inf] * 3
    assert fused.logprobs_BV.argmax(-1).tolist() == [0]
    assert fused.weights_BM.tolist() == [[1, 1]]


def test_args_with_weight_overrules_the_base() -> None:
    base_BV = models_of("L")[0]
    rewards_BK = torch.tensor([[0.3, 1.2, -0.5]])
    assert Args(k=3, weight=2)(base_BV, torch.tensor([[0, 1, 2]]), rewards_BK).logprobs_BV.argmax(-1).tolist() == [1]


def test_args_without_weight_is_the_base_cut_to_its_likeliest() -> None:
    base_BV = drawn(1)[0]
    guide = Args(k=4, weight=0)
    ids_BK = guide.candidates(base_BV)
    fused_BV = guide(base_BV, ids_BK, torch.randn(5, 4)).logprobs_BV
    assert torch.allclose(fused_BV.gather(-1, ids_BK), base_BV.topk(4).values.log_softmax(-1))
    assert fused_BV.isfinite().sum(-1).tolist() == [4] * 5


def test_args_of_a_small_vocabulary_looks_at_all_of_it() -> None:
    assert Args(k=50).candidates(drawn(1)[0]).shape == (5, 40)


def test_args_needs_a_reward_for_each_candidate() -> None:
    base_BV = drawn(1)[0]
    with pytest.raises(StageError, match=r"candidates for \(5, 10\), rewards for \(5, 3\)"):
        Args()(base_BV, Args().candidates(base_BV), torch.zeros(5, 3))
