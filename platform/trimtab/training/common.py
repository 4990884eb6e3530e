"""What every training does, whatever is trained on what: set up, carry out, make whole, save."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.models.network import save_network, torch_dtype
from trimtab.models.source import model_folder
from trimtab.parts import LoRA, Training
from trimtab.training.checkpoint import Checkpoints, digest
from trimtab.training.trainers._base import House, Settings
from trimtab.training.world import join, world
from trimtab.training.zero import batching, deepspeed_config

EVALUATIONS = 8


class Trainee(Protocol):
    """What is trained: a network as its spec's `tune` leaves it, and how it becomes whole again."""

    model: Any

    def again(self) -> Trainee:
        """The same from the start, before anything was trained."""

    def save(self, out: Path) -> None:
        """out/model, whole; adapters beside it in out/adapter."""


@contextmanager
def training_on(rows: int, batch_size: int, *, told: str = "") -> Iterator[None]:
    """The surroundings of one training, which leaves nothing behind. Raises DataError for less than a batch.

    `told` says what the rows are, where they are no rows of data.
    """
    if rows < batch_size:
        raise DataError(f"{told or f'{rows} rows to train on'} but batch_size is {batch_size}: lower it or add rows")
    join()
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear  # ZeRO 3 puts a slower one in its place, for good
        unset_hf_deepspeed_config()
        _let_go()


def carried_out(trainer: House, trainee: Trainee, out: Path, *, compute: Compute) -> dict[str, float]:
    """Train, save what was trained; what was measured."""
    result = trainer.train()
    spread = trainer.accelerator.get_state_dict(trainer.model_wrapped) if compute.zero_stage == 3 else None
    unset_hf_deepspeed_config()  # or what is loaded from here on would be spread over the ranks too
    if world().first:
        if spread is not None:
            trainee = trainee.again()
            trainee.model.load_state_dict(spread)
        trainee.save(out)
    return {
        "train/loss": result.training_loss,
        "train/steps": result.global_step,
        "train/seconds": result.metrics["train_runtime"],
        **trainer.policy.metrics(),
    }


def merged(model: Any, tune: Any, out: Path) -> PreTrainedModel:
    """The trained model on the CPU, adapters saved to out/adapter and merged. Raises StageError for a bad weight."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise StageError(f"{name} is not finite after the last step; lower learning_rate")
    model = model.cpu()
    if isinstance(tune, LoRA):
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    return model


def save_trained(model: PreTrainedModel, spec: Any, out: Path, *, cache: Path, **card: Any) -> None:
    """out/model with the tokenizer of the model that it came from."""
    base = model_folder(spec.model.source, cache, revision=spec.model.revision)
    save_network(model, out / "model", base=base, card=card | {"spec": spec.model_dump(mode="json")})


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


def _let_go() -> None:
    """Free what a training held: a group's process runs many, one after the other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
