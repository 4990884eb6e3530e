"""A linear reward on frozen states: full-batch Adam on the preferences of pairs (Burns et al. 2023, linear probing)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trimtab import progress
from trimtab.alignment import RewardSpec
from trimtab.errors import StageError
from trimtab.methods.rewards._base import RewardBatch
from trimtab.models.features import States
from trimtab.models.network import write_card
from trimtab.models.probe import ProbeConfig, ProbeModel
from trimtab.models.reward import completion_id
from trimtab.training.curves import write_curve

POINTS = 20


def train_reward_probe(spec: RewardSpec, out: Path, *, pairs: list[dict[str, Any]], features: Path) -> dict[str, float]:
    """Fit, save to out/model, write the curve. Raises StageError when the loss is not finite."""
    states = States(features)
    chosen_BD = states.matrix([completion_id(row["prompt_id"], row["chosen_index"]) for row in pairs])
    rejected_BD = states.matrix([completion_id(row["prompt_id"], row["rejected_index"]) for row in pairs])
    model = ProbeModel(ProbeConfig(hidden_size=chosen_BD.shape[1], trunk=spec.model.model_dump(mode="json")))
    both_ND = torch.cat([chosen_BD, rejected_BD])
    model.mean.copy_(both_ND.mean(0))
    model.scale.copy_(both_ND.std(0, correction=0) + 1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate)
    p_B, margin_B = (torch.tensor([row[name] for row in pairs]) for name in ("p", "margin"))
    for step in range(spec.tune.steps):
        loss = spec.objective(RewardBatch(model(chosen_BD)[:, 1], model(rejected_BD)[:, 1], p_B=p_B, margin_B=margin_B))
        if not torch.isfinite(loss.value):
            raise StageError(f"the probe's loss is {loss.value.item()} at step {step + 1}; lower learning_rate")
        if step % max(1, spec.tune.steps // POINTS) == 0 or step == spec.tune.steps - 1:
            write_curve(out, step, {"loss": loss.value.item()} | {f"objective/{k}": v for k, v in loss.metrics.items()})
        optimizer.zero_grad()
        (loss.value + spec.tune.l2 * model.linear.weight.square().sum()).backward()
        optimizer.step()
    model.save_pretrained(out / "model")
    write_card(out / "model", {"n_classes": 2, "spec": spec.model_dump(mode="json")})
    progress.emit("progress", done=spec.tune.steps, total=spec.tune.steps, tokens_per_s=0)
    return {"train/loss": loss.value.item(), "train/rows": len(pairs), "train/steps": spec.tune.steps}
