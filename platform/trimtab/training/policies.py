"""Training policies and reward models on pairs of completions, in whatever ranks called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from trimtab.alignment import PolicySpec, RewardSpec, SelfSampled
from trimtab.compute import Compute
from trimtab.errors import DataError, StageError
from trimtab.models.language import load_language
from trimtab.models.network import load_network, load_tokenizer, save_network, suit_attention, train_upper
from trimtab.models.source import model_folder
from trimtab.parts import LoRA, Top
from trimtab.training.callbacks import Speak
from trimtab.training.completions import Collate, Shown, unpaired
from trimtab.training.loop import arguments, let_go, settings, with_adapters
from trimtab.training.trainers._base import House, Settings
from trimtab.training.trainers.pairs import ChosenTrainer, PairTrainer, UnpairedTrainer
from trimtab.training.trainers.rewards import RankTrainer
from trimtab.training.world import join, world

Trained = PolicySpec | RewardSpec
AnyTrained = Trained | SelfSampled


def train_on_pairs(
    spec: Trained,
    out: Path,
    *,
    compute: Compute,
    data: Shown,
    held: Shown | None = None,
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
    spec: Trained, out: Path, *, compute: Compute, data: Shown, held: Shown | None, partial: Path | None
) -> dict[str, float]:
    model = new_model(spec, compute)
    suit_attention(model, max(len(c.ids) for row in data.completions for c in row))
    known = settings(spec, data.ids, out, compute=compute, partial=partial)
    trainer = _trainer(spec, model, out, compute=compute, data=data, held=held, known=known)
    supervised = sum(len(completion.completion_ids) for row in data.completions for completion in row)
    metrics = carried_out(spec, trainer, out, compute=compute)
    return metrics | {"train/rows": len(data), "train/supervised_tokens_per_row": supervised / len(data)}


def carried_out(spec: AnyTrained, trainer: House, out: Path, *, compute: Compute) -> dict[str, float]:
    """Train, and save the model to out/model; what was measured."""
    result = trainer.train()
    spread = trainer.accelerator.get_state_dict(trainer.model_wrapped) if compute.zero_stage == 3 else None
    unset_hf_deepspeed_config()
    if world().first:
        model = trainer.model
        if spread is not None:
            model = new_model(spec, compute)
            model.load_state_dict(spread)
        _save(spec, model, out, compute=compute)
    return {
        "train/loss": result.training_loss,
        "train/steps": result.global_step,
        "train/seconds": result.metrics["train_runtime"],
        **trainer.policy.metrics(),
    }


def new_model(spec: AnyTrained, compute: Compute) -> Any:
    """The network as its spec's `tune` leaves it."""
    set_seed(spec.seed)
    is_policy = not isinstance(spec, RewardSpec)
    model = load_language(spec.model, compute.cache) if is_policy else load_network(spec.model, compute.cache, 1)
    if isinstance(spec.tune, Top):
        train_upper(model, spec.tune.layers)
    if isinstance(spec.tune, LoRA):
        model = with_adapters(model, spec.tune, "CAUSAL_LM" if is_policy else "SEQ_CLS")
    return model


def _trainer(
    spec: Trained, model: Any, out: Path, *, compute: Compute, data: Shown, held: Shown | None, known: Settings
) -> House:
    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    usual = arguments(spec, out, compute=compute, rows=len(data), evaluates=held is not None)
    usual |= {"gradient_checkpointing": compute.activation_checkpointing, "max_length": None}
    shown = Collate(data + held if held else data, tokenizer.pad_token_id)
    kind, collate = RankTrainer, shown
    if isinstance(spec, RewardSpec):
        config: Any = RewardConfig(**usual)
    elif spec.objective.unpaired:
        kind, config = UnpairedTrainer, KTOConfig(**usual, precompute_ref_log_probs=True)
        collate = lambda items: unpaired(shown(items))  # noqa: E731
    elif spec.objective.chosen_only:
        kind, config = ChosenTrainer, SFTConfig(**usual)
    else:
        kind, config = PairTrainer, DPOConfig(**usual, precompute_ref_log_probs=True)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"row": list(range(len(data)))}),
        eval_dataset={"weak": datasets.Dataset.from_dict({"row": list(range(len(data), len(shown.data)))})}
        if held
        else None,
        data_collator=collate,
        compute_metrics=lambda found: {"agreement": float(found.predictions.mean())},
        processing_class=tokenizer,
        objective=spec.objective,
        settings=known,
    )
    trainer.add_callback(Speak(out, trainer))
    return trainer


def _save(spec: AnyTrained, model: Any, out: Path, *, compute: Compute) -> None:
    """out/model, with adapters merged; the adapters beside it in out/adapter."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise StageError(f"{name} is not finite after the last step; lower learning_rate")
    model = model.cpu()
    if isinstance(spec.tune, LoRA):
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    base = model_folder(spec.model.source, compute.cache, revision=spec.model.revision)
    save_network(model, out / "model", base=base, card={"spec": spec.model_dump(mode="json")})
