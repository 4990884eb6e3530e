"""Training a network on labels: HF Trainer under DeepSpeed, in whatever ranks called it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trimtab.compute import Compute
from trimtab.errors import DataError
from trimtab.models.features import left_padded
from trimtab.models.network import Halves, load_network, save_network, suit_attention, torch_dtype
from trimtab.models.source import model_folder
from trimtab.parts import LoRA, Top, TrainSpec
from trimtab.training.callbacks import Speak
from trimtab.training.trainers import LabelTrainer
from trimtab.training.world import join, world
from trimtab.training.zero import batching, deepspeed_config

EVALUATIONS = 8


@dataclass(frozen=True)
class Labelled(Dataset):
    """Rows ready for a model: ids_T (or states_TD of a frozen trunk) with probabilities_C."""

    rows: list[Tensor]
    weak_NC: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.rows[i], self.weak_NC[i]

    def only(self, chosen: list[int]) -> Labelled:
        return Labelled([self.rows[i] for i in chosen], self.weak_NC[chosen])


def collate(items: list[tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    rows, mask_BT = left_padded([row for _, row, _ in items])
    name = "input_ids" if rows.ndim == 2 else "inputs_embeds"
    weak_BC = torch.stack([weak for _, _, weak in items])
    return {name: rows, "attention_mask": mask_BT, "weak": weak_BC, "row": torch.tensor([i for i, _, _ in items])}


def train_network(
    spec: TrainSpec, out: Path, *, compute: Compute, data: Labelled, held: dict[str, Labelled]
) -> dict[str, float]:
    """Train, save the model to out/model, return what was measured. `held` is watched and steers nothing.

    Raises DataError when there are fewer rows than one batch.
    """
    if len(data) < spec.batch_size:
        raise DataError(f"{len(data)} rows to train on but batch_size is {spec.batch_size}: lower it or add rows")
    join()
    set_seed(spec.seed)
    model = load_network(spec.model, compute.cache, n_classes=data.weak_NC.shape[1])
    suit_attention(model, max(map(len, data.rows)))
    halves = Halves(model, spec.tune.layers) if isinstance(spec.tune, Top) else None
    trained = _with_adapters(model, spec.tune) if isinstance(spec.tune, LoRA) else model
    trainer = LabelTrainer(
        model=trained,
        args=_arguments(spec, out, compute=compute, rows=len(data), evaluates=bool(held)),
        train_dataset=data,
        eval_dataset=held or None,
        data_collator=collate,
        compute_metrics=_agreement,
        objective=spec.objective,
        batch_size=spec.batch_size,
        head_lr_scale=spec.head_lr_scale,
    )
    trainer.add_callback(Speak(out, trainer))
    result = trainer.train()
    unset_hf_deepspeed_config()
    _save(trainer, spec, out, compute=compute, halves=halves, n_classes=data.weak_NC.shape[1])
    return {
        "train/loss": result.training_loss,
        "train/rows": len(data),
        "train/steps": trainer.state.global_step,
        "train/seconds": result.metrics["train_runtime"],
    }


def _arguments(spec: TrainSpec, out: Path, *, compute: Compute, rows: int, evaluates: bool) -> TrainingArguments:
    batch = batching(spec.batch_size, world().size, compute.micro_batch)
    steps = max(1, round(rows // spec.batch_size * spec.num_train_epochs))
    bf16 = torch_dtype(spec.model.dtype) == torch.bfloat16
    return TrainingArguments(
        output_dir=str(out / "trainer"),
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
        label_names=["weak"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _agreement(prediction: Any) -> dict[str, float]:
    return {"agreement": float((prediction.predictions.argmax(-1) == prediction.label_ids.argmax(-1)).mean())}


def _with_adapters(model: PreTrainedModel, tune: LoRA) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets = tune.targets if isinstance(tune.targets, str) else list(tune.targets)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=tune.r,
            lora_alpha=tune.alpha,
            lora_dropout=tune.dropout,
            target_modules=targets,
        ),
    )


def _save(
    trainer: LabelTrainer, spec: TrainSpec, out: Path, *, compute: Compute, halves: Halves | None, n_classes: int
) -> None:
    """The whole network (adapters merged, halves joined) on rank 0; every rank helps to gather ZeRO-3 weights."""
    if compute.zero_stage == 3:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not world().first:
            return
        trainer.model = _rebuilt(spec, compute, weights, n_classes)
        halves = None
    if not world().first:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(spec.tune, LoRA):
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    whole = halves.join() if halves else model
    base = model_folder(spec.model.source, compute.cache, revision=spec.model.revision)
    save_network(whole, out / "model", base=base, card={"n_classes": n_classes, "spec": spec.model_dump(mode="json")})


def _rebuilt(spec: TrainSpec, compute: Compute, weights: dict[str, Tensor], n_classes: int) -> Any:
    """The trained network again, from the weights that ZeRO-3 had spread over the ranks."""
    model = load_network(spec.model, compute.cache, n_classes=n_classes)
    if isinstance(spec.tune, Top):
        halves = Halves(model, spec.tune.layers)
        model.load_state_dict(weights, strict=False)
        return halves.join()
    if isinstance(spec.tune, LoRA):
        model = _with_adapters(model, spec.tune)
    model.load_state_dict(weights, strict=False)
    return model
