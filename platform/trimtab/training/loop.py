"""Training a network on labels: HF Trainer under DeepSpeed, in whatever ranks called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from trimtab.compute import Compute
from trimtab.models.network import Halves, load_network, suit_attention, train_upper
from trimtab.parts import LoRA, Top, TrainSpec
from trimtab.training.callbacks import Speak
from trimtab.training.common import arguments, carried_out, merged, save_trained, settings, training_on, with_adapters
from trimtab.training.rows import Labelled, collate, watched
from trimtab.training.trainers.labels import LabelTrainer


def train_network(
    spec: TrainSpec,
    out: Path,
    *,
    compute: Compute,
    data: Labelled,
    held: dict[str, Labelled],
    partial: Path | None = None,
) -> dict[str, float]:
    """Train, save the model to out/model, return what was measured. `held` is watched and steers nothing.

    Checkpoints go to `partial`, and what is found there is gone on from.
    Raises DataError when there are fewer rows than one batch, StageError when the loss or a weight is not finite.
    """
    with training_on(len(data), spec.batch_size):
        network = Network(spec, compute, data)
        suit_attention(network.model, max(map(len, data.rows)))
        trainer = _trainer(network, out, data=data, held=held, partial=partial)
        return carried_out(trainer, network, out, compute=compute) | {"train/rows": len(data)}


class Network:
    """What is trained: a network as its spec's `tune` leaves it, and how it becomes whole again.

    Where the data are the states of its trunk, the trunk is set aside meanwhile.
    """

    def __init__(self, spec: TrainSpec, compute: Compute, data: Labelled) -> None:
        set_seed(spec.seed)
        self.spec, self.compute, self.data = spec, compute, data
        self.n_classes = data.weak_NC.shape[1]
        self.model: Any = load_network(spec.model, compute.cache, n_classes=self.n_classes)
        self.halves: Halves | None = None
        if isinstance(spec.tune, Top):
            train_upper(self.model, spec.tune.layers)
            if data.rows[0].is_floating_point():
                self.halves = Halves(self.model, spec.tune.layers)
        if isinstance(spec.tune, LoRA):
            self.model = with_adapters(self.model, spec.tune, "SEQ_CLS")

    def again(self) -> Network:
        return Network(self.spec, self.compute, self.data)

    def save(self, out: Path) -> None:
        """out/model, with adapters merged and halves joined; the adapters beside it in out/adapter."""
        model = merged(self.model, self.spec.tune, out)
        whole = self.halves.join() if self.halves else model
        save_trained(whole, self.spec, out, cache=self.compute.cache, n_classes=self.n_classes)


def _trainer(
    network: Network, out: Path, *, data: Labelled, held: dict[str, Labelled], partial: Path | None
) -> LabelTrainer:
    spec = network.spec
    trainer = LabelTrainer(
        model=network.model,
        args=TrainingArguments(
            **arguments(spec, out, compute=network.compute, rows=len(data), evaluates=bool(held)), label_names=["weak"]
        ),
        train_dataset=data,
        eval_dataset=held or None,
        data_collator=collate,
        compute_metrics=lambda found: watched(torch.tensor(found.predictions), torch.tensor(found.label_ids)),
        objective=spec.objective,
        settings=settings(spec, data.ids, out, compute=network.compute, partial=partial),
    )
    trainer.add_callback(Speak(out, trainer))
    return trainer
