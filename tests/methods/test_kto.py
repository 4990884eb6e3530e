"""KTO, the objective without pairs, against reference values and limits. The values come from TRL 1.16's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.errors import StageError
from trimtab.methods.preferences._base import UnpairedBatch
from trimtab.methods.preferences.kto import Kto


def unpaired(kl: Sequence[float] = (-13, -18, -13, -19), **rows: Tensor) -> UnpairedBatch:
    column = {"policy_BT": [-12, -20, -14, -18], "reference_BT": [-13, -19.3, -13.5, -18.4]}
    return UnpairedBatch(
        **{name: torch.tensor(sums, dtype=torch.float64)[:, None].requires_grad_() for name, sums in column.items()},
        mask_BT=torch.ones(4, 1, dtype=torch.bool),
        desirable_B=torch.tensor([True, True, False, False]),
        kl_policy_N=torch.tensor(kl, dtype=torch.float64).requires_grad_(),
        kl_reference_N=torch.tensor([-13.4, -18.2, -13.1, -19.3], dtype=torch.float64),
        **rows,
    )


def value_of(objective: Kto, batch: UnpairedBatch) -> float:
    return objective(batch).value.item()


def test_kto_reference_values() -> None:
    assert value_of(Kto(), unpaired()) == pytest.approx(0.4975, abs=1e-6)
    assert value_of(Kto(desirable_weight=1.33), unpaired()) == pytest.approx(0.580412, abs=1e-6)
    assert value_of(Kto(loss_type="apo_zero_unpaired"), unpaired()) == pytest.approx(0.497504, abs=1e-6)
    assert Kto()(unpaired()).metrics["kl"] == pytest.approx(0.25)
    far = Kto()(unpaired(kl=[-14] * 4))
    assert (far.metrics["kl"], far.value.item()) == pytest.approx((2, 0.497495), abs=1e-6)


def test_kto_s_reference_point_has_no_gradient_and_no_sign() -> None:
    batch = unpaired()
    value = Kto()(batch).value
    assert torch.autograd.grad(value, batch.kl_policy_N, allow_unused=True, retain_graph=True) == (None,)
    policy_B = torch.autograd.grad(value, batch.policy_BT)[0][:, 0]
    assert (policy_B[:2] < 0).all() and (policy_B[2:] > 0).all()
    near = Kto()(unpaired(kl=[-30] * 4))
    assert near.metrics["kl"] == 0
    assert near.value.item() == pytest.approx(value_of(Kto(loss_type="apo_zero_unpaired"), batch))


def test_kto_s_metrics_leave_out_what_the_batch_lacks() -> None:
    both = Kto()(unpaired()).metrics
    assert (both["rewards/chosen"], both["rewards/rejected"]) == pytest.approx((0.015, -0.005))
    assert both["rewards/margins"] == pytest.approx(0.02)
    good = Kto()(replace(unpaired(), desirable_B=torch.ones(4))).metrics
    assert set(good) == {"kl", "rewards/chosen", "logps/chosen"}


def test_kto_s_rows_are_weighted() -> None:
    weighted = value_of(Kto(), unpaired(weight_B=torch.tensor([2.0, 2, 0, 0])))
    assert weighted == pytest.approx(value_of(Kto(desirable_weight=2, undesirable_weight=0), unpaired()))


def test_it_is_said_to_take_single_completions() -> None:
    assert Kto.unpaired and Kto.needs == ("reference",)


def test_padding_changes_nothing() -> None:
    batch = unpaired()
    wide = {
        name: torch.nn.functional.pad(getattr(batch, name), (1, 2)) for name in ("policy_BT", "reference_BT", "mask_BT")
    }
    assert value_of(Kto(), replace(batch, **wide)) == pytest.approx(value_of(Kto(), batch))


def test_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StageError, match="kl_policy_N"):
        unpaired(kl=[1, 0, 0, 0])
    with pytest.raises(StageError, match="desirable_B"):
        replace(unpaired(), desirable_B=torch.ones(3))
    with pytest.raises(StageError, match="reference_BT"):
        replace(unpaired(), reference_BT=torch.zeros(4, 2))
