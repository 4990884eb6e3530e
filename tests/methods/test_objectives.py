"""Label objectives against reference values, limits and invariances.

The reference values come from the methods' published code run on small tensors, or from the formula.
"""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trimtab.errors import StageError
from trimtab.methods.objectives._base import LabelBatch, Objective
from trimtab.methods.objectives.adaptconf import AdaptConf
from trimtab.methods.objectives.entropy import Entropy
from trimtab.methods.objectives.logconf import LogConf, self_labels
from trimtab.methods.objectives.product import Product
from trimtab.methods.objectives.reverse_ce import ReverseCE
from trimtab.methods.objectives.reverse_kl import ReverseKL
from trimtab.methods.objectives.window import Window
from trimtab.methods.objectives.xent import Xent
from trimtab.spec import methods_in

INPUTS = {
    "A": ([[2, -1], [0.5, 0.2], [-0.3, 0.8], [-1.5, 2.5]], [0.1, 0.6, 0.4, 0.9]),
    "B": (
        [[1, 0], [0.2, 0.4], [-0.5, 1.5], [0, 3], [2, 1], [-1, -0.2], [0.3, 0.1], [1.2, -0.8]],
        [0.2, 0.8, 0.7, 0.95, 0.6, 0.75, 0.55, 0.3],
    ),
    "C": ([[0.4, -0.1]], [0.7]),
    "D": ([[0, 0]] * 4, [0, 1, 1, 0]),
    "E": ([[10, -10], [-10, 10]] * 2, [0, 1, 1, 0]),
}
COMPAT = LogConf(warmup=0.1, ramp="openai_compat")
LINEAR = LogConf(warmup=0.1)
STRONG = LogConf(aux_coef=0.75, warmup=0.2)
STRONG_COMPAT = LogConf(aux_coef=0.75, warmup=0.2, ramp="openai_compat")
EVERY = list(methods_in("trimtab.methods.objectives").values())


def batch_of(name: str, progress: float = 1.0) -> LabelBatch:
    logits, weak = INPUTS[name]
    weak_B = torch.tensor(weak, dtype=torch.float32)
    logits_BC = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    return LabelBatch(logits_BC=logits_BC, weak_BC=torch.stack([1 - weak_B, weak_B], -1), progress=progress)


def random_batch(rows: int, classes: int, seed: int = 0) -> LabelBatch:
    generator = torch.Generator().manual_seed(seed)
    logits_BC, weak_BC = torch.randn(2, rows, classes, generator=generator) * 2
    return LabelBatch(logits_BC=logits_BC.requires_grad_(), weak_BC=weak_BC.softmax(-1), progress=1.0)


def gradient(objective: Objective, batch: LabelBatch) -> Tensor:
    return torch.autograd.grad(objective(batch).value, batch.logits_BC)[0]


@pytest.mark.parametrize(
    ("objective", "progress", "expected"),
    [
        (Xent(), 1, {"A": 0.612107, "B": 0.624543, "D": 0.693147, "E": 10}),
        (Product(), 1, {"A": 0.364322, "B": 0.425190, "D": 0.693147, "E": 10}),
        (Product(beta=0.5), 1, {"A": 0.429910, "B": 0.496501, "D": 0.693147, "E": 10}),
        (Product(alpha=2), 1, {"A": 0.392434, "B": 0.403367, "D": 0.693147, "E": 10}),
        (COMPAT, 0.05, {"A": 0.602482, "B": 0.617356, "D": 0.693147, "E": 9.75}),
        (COMPAT, 0.1, {"A": 0.592857, "B": 0.610168, "D": 0.693147, "E": 9.5}),
        (COMPAT, 0.11, {"A": 0.419607, "B": 0.480793, "D": 0.693147, "E": 5, "C": 0.649077}),
        (LINEAR, 0.05, {"A": 0.515857, "B": 0.552668, "D": 0.693147, "E": 7.5}),
        (LINEAR, 0.1, {"A": 0.419607, "B": 0.480793, "D": 0.693147, "E": 5}),
        (LINEAR, 0.11, {"A": 0.419607, "B": 0.480793, "D": 0.693147, "E": 5, "C": 0.649077}),
        (STRONG_COMPAT, 0.1, {"A": 0.583232, "B": 0.602981, "D": 0.693147, "E": 9.25}),
        (STRONG, 0.1, {"A": 0.467732, "B": 0.516731, "D": 0.693147, "E": 6.25}),
        (LogConf(), 0, {"A": 0.612107, "B": 0.624543}),
        (LogConf(), 0.1, {"A": 0.515857, "B": 0.552668}),
        (LogConf(), 0.2, {"A": 0.419607, "B": 0.480793}),
        (Entropy(), 0.1, {"A": 0.554395, "B": 0.595951}),
        (Entropy(), 0.2, {"A": 0.496682, "B": 0.567359}),
        (Window(radius=0.05), 1, {"A": 0, "B": 0.168285, "E": 0}),
        (Window(), 1, {"A": 0.183589, "B": 0.168285, "E": 0}),
        (Window(radius=0.3), 1, {"A": 0.420423, "B": 0.417988, "E": 0}),
        (Window(radius=0.51), 1, {"A": 0.612107, "B": 0.624543, "E": 10}),
        (ReverseKL(), 1, {"A": 0.097047}),
        (ReverseCE(), 1, {"A": 0.478305}),
    ],
)
def test_reference_values(objective: Objective, progress: float, expected: dict[str, float]) -> None:
    found = {name: objective(batch_of(name, progress)).value.item() for name in expected}
    assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("name", "divergence"), [("A", 0.113060), ("B", 0.081476), ("D", 0.693147), ("E", 10)])
def test_forward_kl_is_cross_entropy_less_the_labels_entropy(name: str, divergence: float) -> None:
    batch = batch_of(name)
    entropy = torch.special.entr(batch.weak_BC).sum(-1).mean()
    assert (Xent()(batch).value - entropy).item() == pytest.approx(divergence, abs=2e-6)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Xent(), [0.013144, 0.043611, -0.087565, -0.020503]),
        (LogConf(), [0.000644, -0.031389, -0.012565, -0.008003]),
        (Product(), [-0.010481, 0.025196, -0.020821, 0.003989]),
        (Entropy(), [-0.010369, 0.012638, -0.018019, -0.001420]),
        (Window(), [0, 0.043611, 0, 0]),
    ],
)
def test_reference_gradients(objective: Objective, expected: list[float]) -> None:
    found_BC = gradient(objective, batch_of("A"))
    assert found_BC[:, 0].tolist() == pytest.approx(expected, abs=2e-6)
    assert found_BC[:, 1].tolist() == pytest.approx([-g for g in expected], abs=2e-6)


def test_entropy_penalty_is_more_than_a_smaller_cross_entropy() -> None:
    batch = batch_of("A")
    assert not torch.allclose(gradient(Entropy(), batch), gradient(Xent(), batch) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "classes"), [("A", [0, 0, 1, 1]), ("B", [0, 1, 1, 1, 0, 1, 1, 0]), ("D", [0] * 4), ("E", [0, 1, 0, 1])]
)
def test_self_labels_are_the_published_ones(name: str, classes: list[int]) -> None:
    batch = batch_of(name)
    assert self_labels(batch.seen_logits(), batch.seen_weak()).tolist() == classes


@pytest.mark.parametrize(("temperature", "kd", "own"), [(0.5, 0.377957, 0.240680), (4, 0.248570, 0.284105)])
def test_adaptive_reference_values(temperature: float, kd: float, own: float) -> None:
    loss = AdaptConf(temperature=temperature)(three_classes(progress=0.0))
    assert (loss.metrics["kd"], loss.metrics["self"]) == pytest.approx((kd, own), abs=2e-6)
    assert loss.value.item() == pytest.approx(kd + own, abs=2e-6)
    share = {0.5: (0.047426 + 0.5) / 2, 4: (0.407333 + 0.5) / 2}[temperature]
    assert loss.metrics["aux_weight"] == pytest.approx(share, abs=2e-6)


def test_ramped_adaptive_reference_values() -> None:
    loss = AdaptConf(weighting="ramp")(three_classes(progress=0.1))
    assert (loss.metrics["kd"], loss.metrics["self"]) == pytest.approx((0.358761, 0.098429), abs=2e-6)


def test_adaptive_weights_are_constants_to_the_gradient() -> None:
    batch = batch_of("A")
    p_BC = batch.logits_BC.detach().softmax(-1)
    own_BC = torch.nn.functional.one_hot(p_BC.argmax(-1), 2).float()
    own_B, weak_B = (-p_BC.log()[torch.arange(4), x_BC.argmax(-1)] for x_BC in (own_BC, batch.weak_BC))
    weight_B1 = ((own_B / 0.5).exp() / ((own_B / 0.5).exp() + (weak_B / 0.5).exp()))[:, None]
    expected_BC = (p_BC - (1 - weight_B1) * batch.weak_BC - weight_B1 * own_BC) / 4
    torch.testing.assert_close(gradient(AdaptConf(kd_temperature=1), batch), expected_BC)


def three_classes(progress: float) -> LabelBatch:
    weak_BC = torch.tensor([[0.5, 1.5, 0], [-0.5, 1, 0.3]]).softmax(-1)
    logits_BC = torch.tensor([[2, 0.5, -1], [0.2, 0.4, 0.1]])
    return LabelBatch(logits_BC=logits_BC, weak_BC=weak_BC, progress=progress)


@pytest.mark.parametrize(
    "objective",
    [LogConf(aux_coef=0), Entropy(aux_coef=0), Product(beta=0), Window(radius=0.5)]
    + [AdaptConf(weighting="ramp", aux_coef=0, kd_temperature=1)],
)
def test_limit_is_plain_cross_entropy(objective: Objective) -> None:
    batch = batch_of("A")
    torch.testing.assert_close(gradient(objective, batch), gradient(Xent(), batch))
    if not isinstance(objective, AdaptConf):
        torch.testing.assert_close(objective(batch).value, Xent()(batch).value)


def test_no_progress_is_plain_cross_entropy_even_for_the_self_label() -> None:
    batch = batch_of("B", progress=0)
    for objective in (LogConf(), COMPAT, Entropy()):
        torch.testing.assert_close(objective(batch).value, Xent()(batch).value)


def test_full_self_weight_leaves_the_labels_out() -> None:
    batch = batch_of("A")
    own = -batch.logits_BC.log_softmax(-1)[torch.arange(4), torch.tensor([0, 0, 1, 1])].mean()
    torch.testing.assert_close(LogConf(aux_coef=1)(batch).value, own)
    product = Product(alpha=0)(batch).value
    torch.testing.assert_close(product, Entropy(aux_coef=1)(batch).value)


@pytest.mark.parametrize("f", [0.02, 0.05, 0.0999])
def test_linear_ramp_reaches_full_weight_at_the_end_of_the_warmup(f: float) -> None:
    assert LINEAR(batch_of("A", f)).metrics["aux_weight"] == pytest.approx(0.5 * f / 0.1)
    assert LINEAR(batch_of("A", 0.1)).metrics["aux_weight"] == 0.5
    assert COMPAT(batch_of("A", f)).metrics["aux_weight"] == pytest.approx(0.5 * f)
    assert COMPAT(batch_of("A", 0.1)).metrics["aux_weight"] == pytest.approx(0.05)
    assert LogConf(warmup=0)(batch_of("A", 0)).metrics["aux_weight"] == 0.5


def test_disagreement_counts_rows_where_the_student_overrules_its_label() -> None:
    assert LogConf()(batch_of("A")).metrics["self_label_disagreement"] == 0.5


@pytest.mark.parametrize("logits", [[0.4, -0.1], [-0.1, 0.4], [-5, 5]])
def test_one_row_without_context_keeps_its_argmax(logits: list[float]) -> None:
    row = torch.tensor([logits])
    for weak in ([0.3, 0.7], [1.0, 0.0]):
        assert self_labels(row, torch.tensor([weak])).tolist() == [row.argmax().item()]


def test_one_row_with_context_is_measured_against_it() -> None:
    whole = batch_of("A")
    row = LabelBatch(
        logits_BC=whole.logits_BC[1:2].detach(),
        weak_BC=whole.weak_BC[1:2],
        progress=1,
        context_logits_NC=whole.logits_BC[[0, 2, 3]],
        context_weak_NC=whole.weak_BC[[0, 2, 3]],
    )
    target_C = 0.5 * whole.weak_BC[1] + 0.5 * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(LogConf()(row).value, -(target_C * row.logits_BC.log_softmax(-1)[0]).sum())


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_rows_may_come_in_any_order(kind: type[Objective], classes: int) -> None:
    batch, order = random_batch(24, classes), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = LabelBatch(logits_BC=batch.logits_BC[order], weak_BC=batch.weak_BC[order], progress=1)
    torch.testing.assert_close(kind()(batch).value, kind()(shuffled).value)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("cut", [1, 8, 12])
def test_micro_batches_with_context_equal_the_whole_batch(kind: type[Objective], classes: int, cut: int) -> None:
    whole = random_batch(24, classes)
    parts = [slice(0, cut), slice(cut, 24)]
    values = []
    for mine, other in (parts, parts[::-1]):
        part = LabelBatch(
            logits_BC=whole.logits_BC[mine],
            weak_BC=whole.weak_BC[mine],
            progress=1,
            context_logits_NC=whole.logits_BC[other],
            context_weak_NC=whole.weak_BC[other],
        )
        values.append(kind()(part).value * len(part.logits_BC) / 24)
    torch.testing.assert_close(sum(values), kind()(whole).value)
    split_gradient = torch.autograd.grad(sum(values), whole.logits_BC)[0]
    torch.testing.assert_close(split_gradient, gradient(kind(), whole))


@pytest.mark.parametrize("kind", EVERY)
def test_swapping_the_classes_changes_nothing(kind: type[Objective]) -> None:
    batch = random_batch(24, 2)
    swapped = LabelBatch(logits_BC=batch.logits_BC.flip(-1), weak_BC=batch.weak_BC.flip(-1), progress=1)
    torch.testing.assert_close(kind()(batch).value, kind()(swapped).value)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_constant_added_to_a_rows_logits_changes_nothing(kind: type[Objective], classes: int) -> None:
    batch = random_batch(16, classes)
    moved = LabelBatch(
        logits_BC=batch.logits_BC + torch.linspace(-3, 3, 16)[:, None], weak_BC=batch.weak_BC, progress=1
    )
    torch.testing.assert_close(kind()(batch).value, kind()(moved).value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [1, 100])
def test_hard_labels_and_sure_students_stay_finite(kind: type[Objective], classes: int, size: float) -> None:
    drawn = random_batch(16, classes)
    hard_BC = torch.nn.functional.one_hot(drawn.weak_BC.argmin(-1), classes).float()
    batch = LabelBatch(logits_BC=(drawn.logits_BC.detach() * size).requires_grad_(), weak_BC=hard_BC, progress=1)
    value = kind()(batch).value
    assert value.isfinite() and gradient(kind(), batch).isfinite().all()


@pytest.mark.parametrize("kind", EVERY)
def test_half_precision_logits_give_a_full_precision_loss(kind: type[Objective]) -> None:
    drawn = random_batch(8, 2)
    logits_BC = drawn.logits_BC.detach().bfloat16()
    low = LabelBatch(logits_BC=logits_BC, weak_BC=drawn.weak_BC, progress=1)
    full = LabelBatch(logits_BC=logits_BC.float(), weak_BC=drawn.weak_BC, progress=1)
    assert kind()(low).value.dtype == torch.float32
    assert kind()(low).value.item() == kind()(full).value.item()


@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_shares_of_self_labels_follow_the_weak_mean(classes: int, seed: int) -> None:
    batch = random_batch(200, classes, seed)
    lopsided_NC = batch.seen_logits() + torch.linspace(0, 4, classes)
    count_C = torch.bincount(self_labels(lopsided_NC, batch.weak_BC), minlength=classes)
    assert (count_C - 200 * batch.weak_BC.mean(0)).abs().max() <= 3


def test_no_row_takes_a_class_that_no_label_has() -> None:
    logits_NC = random_batch(32, 4).seen_logits()
    one_NC, two_NC = (torch.nn.functional.one_hot(torch.arange(32) % k + 1, 4).float() for k in (1, 2))
    assert set(self_labels(logits_NC, one_NC).tolist()) == {1}
    assert torch.bincount(self_labels(logits_NC, two_NC), minlength=4).tolist() == [0, 16, 16, 0]


def test_two_classes_are_the_many_class_rule() -> None:
    batch = random_batch(25, 2)
    padded = [torch.nn.functional.pad(x, (0, 1), value=v) for x, v in ((batch.seen_logits(), -1e4), (batch.weak_BC, 0))]
    assert self_labels(*padded).tolist() == self_labels(batch.seen_logits(), batch.weak_BC).tolist()


def test_soft_weak_temperature_flattens_reverse_losses() -> None:
    batch = batch_of("A")
    flat = ReverseCE(temperature=10)(batch).value
    assert abs(flat.item() - 0.693147) < abs(ReverseCE()(batch).value.item() - 0.693147)
    sharp_BC = batch.weak_BC**2 / (batch.weak_BC**2).sum(-1, keepdim=True)
    sharp = LabelBatch(logits_BC=batch.logits_BC, weak_BC=sharp_BC, progress=1)
    torch.testing.assert_close(ReverseKL(temperature=0.5)(batch).value, ReverseKL()(sharp).value)


def test_reverse_kl_is_reverse_cross_entropy_less_the_students_entropy() -> None:
    batch = random_batch(16, 4)
    difference = ReverseCE()(batch).value - Entropy(aux_coef=1)(batch).value
    torch.testing.assert_close(ReverseKL()(batch).value, difference)


def test_each_file_is_one_kind() -> None:
    found = methods_in("trimtab.methods.objectives")
    assert set(found) == {
        *("xent", "logconf", "product", "window", "reverse_ce", "reverse_kl", "entropy", "adaptconf"),
    }
    assert {kind: method().kind for kind, method in found.items()} == {kind: kind for kind in found}


@pytest.mark.parametrize(
    "values", [{"aux_coef": 1.5}, {"warmup": -0.1}, {"buffer": -1}, {"ramp": "cosine"}, {"aux": 1}]
)
def test_unusable_fields_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LogConf.model_validate(values)


def test_batches_that_do_not_fit_are_refused() -> None:
    rows_BC = torch.full((4, 2), 0.5)
    with pytest.raises(StageError, match="weak_BC"):
        LabelBatch(logits_BC=rows_BC, weak_BC=rows_BC[:3], progress=0)
    with pytest.raises(StageError, match="context_weak_NC"):
        LabelBatch(logits_BC=rows_BC, weak_BC=rows_BC, progress=0, context_logits_NC=rows_BC)
