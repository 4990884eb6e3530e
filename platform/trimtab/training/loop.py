"""Training a network on labels: HF Trainer under DeepSpeed, in whatever ranks called it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.models.network import Halves, load_network, save_network, suit_attention, torch_dtype, train_upper
from trimtab.models.source import model_folder
from trimtab.parts import LoRA, Top, Training, TrainSpec
from trimtab.training.callbacks import Speak
from trimtab.training.checkpoint import Checkpoints, digest
from trimtab.training.rows import Labelled, collate, watched
from trimtab.training.trainers._base import Settings
from trimtab.training.trainers.labels import LabelTrainer
from trimtab.training.world import join, world
from trimtab.training.zero import batching, deepspeed_config

EVALUATIONS = 8


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
    if len(data) < spec.batch_size:
        raise DataError(f"{len(data)} rows to train on but batch_size is {spec.batch_size}: lower it or add rows")
    join()
    try:
        return _train(spec, out, compute=compute, data=data, held=held, partial=partial)
    finally:
        unset_hf_deepspeed_config()
        let_go()


def _train(
    spec: TrainSpec, out: Path, *, compute: Compute, data: Labelled, held: dict[str, Labelled], partial: Path | None
) -> dict[str, float]:
    network = Network(spec, compute, data)
    suit_attention(network.model, max(map(len, data.rows)))
    trainer = _trainer(network, out, data=data, held=held, partial=partial)
    result = trainer.train()
    spread = trainer.accelerator.get_state_dict(trainer.model_wrapped) if compute.zero_stage == 3 else None
    unset_hf_deepspeed_config()  # or what is loaded from here on would be spread over the ranks too
    if world().first:
        if spread is not None:
            network = Network(spec, compute, data)
            network.model.load_state_dict(spread)
        network.save(out)
    return {
        "train/loss": result.training_loss,
        "train/rows": len(data),
        "train/steps": result.global_step,
        "train/seconds": result.metrics["train_runtime"],
        **trainer.policy.metrics(),
    }


class Network:
    """What is trained: a network as its spec's `tune` leaves it, and how it becomes whole again.

    Where the data are the states of its trunk, the trunk is set aside meanwhile.
    """

    def __init__(self, spec: TrainSpec, compute: Compute, data: Labelled) -> None:
        set_seed(spec.seed)
        self.spec, self.compute, self.n_classes = spec, compute, data.weak_NC.shape[1]
        self.model: Any = load_network(spec.model, compute.cache, n_classes=self.n_classes)
        self.halves: Halves | None = None
        if isinstance(spec.tune, Top):
            train_upper(self.model, spec.tune.layers)
            if data.rows[0].is_floating_point():
                self.halves = Halves(self.model, spec.tune.layers)
        if isinstance(spec.tune, LoRA):
            self.model = with_adapters(self.model, spec.tune, "SEQ_CLS")

    def save(self, out: Path) -> None:
        """out/model, with adapters merged and halves joined; the adapters beside it in out/adapter."""
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise StageError(f"{name} is not finite after the last step; lower learning_rate")
        model = self.model.cpu()
        if isinstance(self.spec.tune, LoRA):
            model.save_pretrained(out / "adapter")
            model = model.merge_and_unload()
        whole: PreTrainedModel = self.halves.join() if self.halves else model
        base = model_folder(self.spec.model.source, self.compute.cache, revision=self.spec.model.revision)
        card = {"n_classes": self.n_classes, "spec": self.spec.model_dump(mode="json")}
        save_network(whole, out / "model", base=base, card=card)


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


def settings(spec: Training, ids: list[str], out: Path, *, compute: Compute, partial: Path | None) -> Settings:
    """What our trainers need of a spec; checkpoints that need not outlive this attempt lie in its output."""
    belongs = {"spec": digest(spec.model_dump(mode="json")), "rows": digest(ids)}
    checkpoints = Checkpoints(partial or out / "partial", out, belongs, compute)
    return Settings(ids, spec.batch_size, spec.head_lr_scale, spec.on_nonfinite, checkpoints)


def arguments(spec: Training, out: Path, *, compute: Compute, rows: int, evaluates: bool) -> dict[str, Any]:
    """Fields of TrainingArguments, and so of every TRL config."""
    batch = batching(spec.batch_size, world().size, compute.micro_batch)
    steps = max(1, round(rows // spec.batch_size * spec.num_train_epochs))
    bf16 = torch_dtype(spec.model.dtype) == torch.bfloat16
    return dict(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch.micro,
        per_device_eval_batch_size=compute.inference_batch,
        gradient_accumulation_steps=batch.accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=round(spec.warmup_ratio * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        bf16=bf16,
        deepspeed=deepspeed_config(batch, compute=compute, bf16=bf16, max_grad_norm=spec.max_grad_norm),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=max(1, steps // EVALUATIONS),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def with_adapters(model: PreTrainedModel, tune: LoRA, task: str) -> Any:
    """The model with low-rank adapters; `task` is one of PEFT's."""
    from peft import LoraConfig, get_peft_model

    targets = tune.targets if isinstance(tune.targets, str) else list(tune.targets)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=task,
            r=tune.r,
            lora_alpha=tune.alpha,
            lora_dropout=tune.dropout,
            target_modules=targets,
        ),
    )


def let_go() -> None:
    """Free what a training held: a group's process runs many, one after the other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
