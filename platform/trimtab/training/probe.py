"""Linear probing (Burns et al. 2023): full-batch Adam on standardised states, a squared-norm penalty."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trimtab import progress
from trimtab.errors import StageError
from trimtab.methods.objectives._base import LabelBatch, Objective
from trimtab.models.probe import ProbeConfig, ProbeModel
from trimtab.parts import Probe, TrainSpec
from trimtab.training.curves import write_curve


def fit_probe(states_ND: Tensor, weak_NC: Tensor, *, objective: Objective, probe: Probe, lr: float) -> tuple:
    """The fitted ProbeModel and its curve [(step, values)]; standardised on the rows it is fitted to."""
    model = ProbeModel(ProbeConfig(hidden_size=states_ND.shape[1], n_classes=weak_NC.shape[1]))
    model.mean.copy_(states_ND.mean(0))
    model.scale.copy_(states_ND.std(0) + 1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    curve = []
    for step in range(probe.steps):
        loss = objective(LabelBatch(model(states_ND), weak_NC, step / probe.steps))
        if not torch.isfinite(loss.value):
            raise StageError(f"the probe's loss is {loss.value.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad()
        (loss.value + probe.l2 * model.linear.weight.square().sum()).backward()
        optimizer.step()
        if step % max(1, probe.steps // 20) == 0 or step == probe.steps - 1:
            curve.append((step, {"loss": loss.value.item()} | {f"objective/{k}": v for k, v in loss.metrics.items()}))
    return model, curve


def train_probe(spec: TrainSpec, out: Path, *, states_ND: Tensor, weak_NC: Tensor) -> dict[str, float]:
    """Fit, save, and write the curve; the trunk stays where it is and is named in the configuration."""
    model, curve = fit_probe(states_ND, weak_NC, objective=spec.objective, probe=spec.tune, lr=spec.learning_rate)
    model.config.trunk = spec.model.model_dump(mode="json")
    model.save_pretrained(out / "model", safe_serialization=True)
    for step, values in curve:
        write_curve(out, step, values)
    progress.emit("progress", done=spec.tune.steps, total=spec.tune.steps, tokens_per_s=0)
    return {"train/loss": curve[-1][1]["loss"], "train/rows": len(states_ND), "train/steps": spec.tune.steps}
