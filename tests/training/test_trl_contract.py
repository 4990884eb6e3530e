"""Our objectives against the losses of TRL 1.16's own trainers, called on drawn log-probs in place of a model's."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor

from trimtab.methods.preferences._base import PairBatch, Side, UnpairedBatch
from trimtab.methods.preferences._losses import TAKES_DIVERGENCE, LossType
from trimtab.methods.preferences.cpo import Cpo
from trimtab.methods.preferences.dpo import Dpo
from trimtab.methods.preferences.kto import Kto
from trimtab.methods.preferences.orpo import Orpo
from trimtab.methods.preferences.simpo import Simpo
from trimtab.methods.rewards._base import RewardBatch
from trimtab.methods.rewards.bradley_terry import BradleyTerry

pytestmark = pytest.mark.slow

ROWS, PROMPT, WIDTH = 6, 3, 7
KEYS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
NEEDS_SMOOTHING = {"robust": 0.2, "exo_pair": 0.01, "aot": 0.1, "aot_unpaired": 0.1}


def drawn(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log-probs of completions, 0 behind their end, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (rows, 1), generator=generator)
    return -2 * torch.rand(rows, WIDTH, generator=generator) * mask_BT, mask_BT


def trainer(**fields: object) -> SimpleNamespace:
    """What a trainer's loss reads of it: one process, precomputed reference."""
    alone = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    usual = {
        "model": SimpleNamespace(training=True),
        "accelerator": alone,
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }
    flags = {"aux_loss_enabled": False, "precompute_ref_logps": True, "_total_train_tokens": 0, "_tp_size": 1}
    return SimpleNamespace(**usual, **flags, **fields)


def said(stub: SimpleNamespace) -> dict[str, float]:
    return {name: values[-1] for name, values in stub._metrics["train"].items() if name in KEYS}


def model_of(logps_BT: Tensor) -> object:
    """A model that knows these log-probs of the tokens behind the prompt."""
    all_BT = torch.nn.functional.pad(logps_BT, (PROMPT - 1, 0))
    outputs = SimpleNamespace(
        log_probs=all_BT, entropy=all_BT * 0, mean_logits=all_BT * 0, is_top1=torch.zeros_like(all_BT, dtype=torch.bool)
    )
    return lambda **_: outputs


def inputs_of(mask_BT: Tensor) -> dict[str, Tensor]:
    completion_BT = torch.nn.functional.pad(mask_BT.long(), (PROMPT, 0))
    attention_BT = torch.nn.functional.pad(mask_BT.long(), (PROMPT, 0), value=1)
    return {"input_ids": attention_BT, "attention_mask": attention_BT, "completion_mask": completion_BT}


def pairs() -> tuple[PairBatch, Tensor, Tensor]:
    """Pairs, and their log-probs and mask as TRL stacks them."""
    (logps_BT, mask_BT), (reference_BT, _) = drawn(2 * ROWS, 0), drawn(2 * ROWS, 1)
    policy, reference, masks = logps_BT.chunk(2), (reference_BT * mask_BT).chunk(2), mask_BT.chunk(2)
    return PairBatch(Side(*policy), *masks, reference=Side(*reference)), logps_BT, mask_BT


def trl_dpo(loss_type: str, divergence: str = "reverse_kl", smoothing: float = 0.0) -> tuple[float, dict[str, float]]:
    from trl.trainer.dpo_trainer import DPOTrainer

    batch, logps_BT, mask_BT = pairs()
    stub = trainer(
        **{"loss_types": [loss_type], "loss_weights": [1.0], "beta": 0.3, "label_smoothing": smoothing},
        **{"f_divergence_type": divergence, "ld_alpha": None, "use_weighting": False},
        args=SimpleNamespace(discopop_tau=0.05),
    )
    reference = {"ref_chosen_logps": batch.reference.chosen_B, "ref_rejected_logps": batch.reference.rejected_B}
    loss = DPOTrainer._compute_loss(stub, model_of(logps_BT), inputs_of(mask_BT) | reference, False)
    return loss.item(), said(stub)


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_every_dpo_loss_and_its_metrics_are_trl_s(loss_type: str) -> None:
    smoothing = NEEDS_SMOOTHING.get(loss_type, 0)
    value, metrics = trl_dpo(loss_type, smoothing=smoothing)
    batch = pairs()[0]
    if loss_type == "sft":  # TRL's mean is over the tokens of the batch, so that long rows count more
        batch = replace(batch, weight_B=batch.chosen_length_B / batch.chosen_length_B.mean())
    ours = Dpo(loss_type=loss_type, beta=0.3, label_smoothing=smoothing)(batch)
    assert ours.value.item() == pytest.approx(value, rel=2e-6)
    assert ours.metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert set(metrics) == set(KEYS)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence"])
@pytest.mark.parametrize("loss_type", sorted(TAKES_DIVERGENCE))
def test_divergences_are_trl_s(loss_type: str, divergence: str) -> None:
    smoothing = NEEDS_SMOOTHING.get(loss_type, 0)
    ours = Dpo(loss_type=loss_type, beta=0.3, label_smoothing=smoothing, f_divergence=divergence)(pairs()[0])
    assert ours.value.item() == pytest.approx(trl_dpo(loss_type, divergence, smoothing)[0], rel=1e-5)


def test_trl_knows_no_loss_that_we_lack() -> None:
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trl_dpo("none")
    known = str(error.value).split("[")[1].split("]")[0]
    assert {name.strip("' ") for name in known.split(",")} == set(get_args(LossType))


def test_trl_s_sigmoid_still_leaves_label_smoothing_unused() -> None:
    assert trl_dpo("sigmoid", smoothing=0.2)[0] == trl_dpo("sigmoid")[0]


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("kl_shift", [0.4, -0.4])
def test_kto_is_trl_s(loss_type: str, kl_shift: float) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    (logps_BT, mask_BT), (reference_BT, _) = drawn(ROWS, 2), drawn(ROWS, 3)
    kl_reference_N = drawn(ROWS, 4)[0].sum(-1) - 1
    desirable_B = torch.tensor([True, False, True, True, False, False])
    batch = UnpairedBatch(
        **{
            "policy_BT": logps_BT,
            "reference_BT": reference_BT * mask_BT,
            "mask_BT": mask_BT,
            "desirable_B": desirable_B,
        },
        **{"kl_policy_N": kl_reference_N + kl_shift, "kl_reference_N": kl_reference_N},
    )
    stub = trainer(
        **{"loss_type": loss_type, "calculate_KL": loss_type == "kto", "beta": 0.3},
        **{"desirable_weight": 1.2, "undesirable_weight": 0.9},
        _compute_kl_logps=lambda *_: batch.kl_policy_N,
    )
    rows = {"label": desirable_B, "ref_logps": batch.reference_BT.sum(-1), "ref_KL_logps": kl_reference_N}
    theirs = KTOTrainer._compute_loss(stub, model_of(logps_BT), inputs_of(mask_BT) | rows, False)
    ours = Kto(loss_type=loss_type, beta=0.3, desirable_weight=1.2, undesirable_weight=0.9)(batch)
    assert ours.value.item() == pytest.approx(theirs.item(), rel=2e-6)
    metrics = said(stub) | {"kl": stub._metrics["train"]["kl"][-1]}
    assert ours.metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "fields"),
    [
        (Cpo(beta=0.3, cpo_alpha=0), {"loss_type": "sigmoid"}),
        (Cpo(beta=0.3, cpo_alpha=0, label_smoothing=0.1), {"loss_type": "sigmoid", "label_smoothing": 0.1}),
        (Cpo(beta=0.3, cpo_alpha=0, loss_type="hinge"), {"loss_type": "hinge"}),
        (Cpo(beta=0.3, cpo_alpha=0, loss_type="ipo"), {"loss_type": "ipo"}),
        (Simpo(beta=0.3, gamma_beta_ratio=2), {"loss_type": "simpo", "simpo_gamma": 0.6}),
        (Simpo(beta=0.3, gamma_beta_ratio=2, alpha=0.25), {"loss_type": "simpo", "simpo_gamma": 0.6, "alpha": 0.25}),
    ],
)
def test_cpo_and_simpo_are_trl_s(ours: Cpo | Simpo, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    batch = pairs()[0]
    side = (batch.policy.chosen_B, batch.policy.rejected_B)
    mean = (batch.chosen_mean_B, batch.rejected_mean_B)
    stub = trainer(**{"alpha": 0.0, "label_smoothing": 0.0, "beta": 0.3} | fields)
    losses_B, chosen_B, _ = CPOTrainer.cpo_loss(stub, *(mean if fields["loss_type"] in ("ipo", "simpo") else side))
    loss = ours(batch)
    assert loss.value.item() == pytest.approx(losses_B.mean().item(), rel=2e-6)
    assert loss.metrics["rewards/chosen"] == pytest.approx(chosen_B.mean().item(), rel=1e-5)


def test_the_odds_ratio_is_trl_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    batch = pairs()[0]
    gains_B, *_, log_odds = ORPOTrainer.odds_ratio_loss(trainer(beta=0.4), batch.chosen_mean_B, batch.rejected_mean_B)
    ours = Orpo(ce_coef=0, odds_coef=0.4)(batch)
    assert ours.value.item() == pytest.approx(-gains_B.mean().item(), rel=1e-5)
    assert ours.metrics["rewards/margins"] == pytest.approx(log_odds.item(), rel=1e-5)


def test_the_reward_model_s_loss_is_trl_s() -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    generator = torch.Generator().manual_seed(5)
    rewards_B, margin_B = torch.randn(2 * ROWS, generator=generator), torch.rand(ROWS, generator=generator)
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=0.02))
    inputs = {"attention_mask": torch.ones(2 * ROWS, 3), "margin": margin_B}
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=rewards_B[:, None]), inputs)
    batch = RewardBatch(*rewards_B.chunk(2), margin_B=margin_B)
    ours = BradleyTerry(margin_scale=1, center_rewards_coefficient=0.02)(batch)
    assert ours.value.item() == pytest.approx(theirs.item(), rel=2e-6)
    metrics = {name: stub._metrics["train"][name][-1] for name in ("accuracy", "margin", "mean_reward")}
    assert ours.metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
