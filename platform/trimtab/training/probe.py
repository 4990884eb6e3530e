"""Linear probing (Burns et al. 2023): full-batch Adam on standardised states, a squared-norm penalty."""

from __future__ import annotations

from pathlib import Path

import torch

from trimtab import progress
from trimtab.errors import StageError
from trimtab.methods.objectives._base import LabelBatch
from trimtab.models.network import write_card
from trimtab.models.probe import ProbeConfig, ProbeModel
from trimtab.parts import TrainSpec
from trimtab.training.curves import WATCHED, Point, write_curve
from trimtab.training.rows import Labelled, watched

POINTS = 20


def fit_probe(spec: TrainSpec, data: Labelled, held: dict[str, Labelled]) -> tuple[ProbeModel, list[Point]]:
    """The fitted head and its curve; standardised on the rows it is fitted to. `held` is watched, steers nothing.

    Raises StageError when a state or the loss is not finite.
    """
    states_ND, probe = data.rows, spec.tune
    if bad := [data.ids[i] for i in (~states_ND.isfinite().all(-1)).nonzero()[:, 0].tolist()]:
        raise StageError(f"step 1: {len(bad)} rows have states that are not finite: {', '.join(bad[:8])}")
    config = ProbeConfig(
        hidden_size=states_ND.shape[1], n_classes=data.weak_NC.shape[1], trunk=spec.model.model_dump(mode="json")
    )
    model = ProbeModel(config)
    model.mean.copy_(states_ND.mean(0))
    model.scale.copy_(states_ND.std(0, correction=0) + 1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate)
    curve = []
    for step in range(probe.steps):
        loss = spec.objective(LabelBatch(model(states_ND), data.weak_NC, step / probe.steps))
        if not torch.isfinite(loss.value):
            raise StageError(f"the probe's loss is {loss.value.item()} at step {step + 1}; lower learning_rate")
        if step % max(1, probe.steps // POINTS) == 0 or step == probe.steps - 1:
            values = {"loss": loss.value.item()} | {f"objective/{k}": v for k, v in loss.metrics.items()}
            curve.append((step, values | _watch(model, held)))
        optimizer.zero_grad()
        (loss.value + probe.l2 * model.linear.weight.square().sum()).backward()
        optimizer.step()
    return model, curve


@torch.no_grad()
def _watch(model: ProbeModel, held: dict[str, Labelled]) -> dict[str, float]:
    found = {f"eval_{n}_{k}": v for n, s in held.items() for k, v in watched(model(s.rows), s.weak_NC).items()}
    return {WATCHED[name]: value for name, value in found.items() if name in WATCHED}


def train_probe(spec: TrainSpec, out: Path, *, data: Labelled, held: dict[str, Labelled]) -> dict[str, float]:
    """Fit, save to out/model, and write the curve; the trunk stays where it is and is named in the configuration."""
    model, curve = fit_probe(spec, data, held)
    model.save_pretrained(out / "model")
    write_card(out / "model", {"n_classes": data.weak_NC.shape[1], "spec": spec.model_dump(mode="json")})
    for step, values in curve:
        write_curve(out, step, values)
    progress.emit("progress", done=spec.tune.steps, total=spec.tune.steps, tokens_per_s=0)
    return {"train/loss": curve[-1][1]["loss"], "train/rows": len(data), "train/steps": spec.tune.steps}
