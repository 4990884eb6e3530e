"""Training policies and reward models on pairs of completions, in whatever ranks called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from trimtab.alignment import PolicySpec, RewardSpec, SelfSampled
from trimtab.compute import Compute
from trimtab.models.language import load_language
from trimtab.models.network import load_network, load_tokenizer, suit_attention, train_upper
from trimtab.models.source import model_folder
from trimtab.parts import LoRA, Top
from trimtab.training.callbacks import Speak
from trimtab.training.common import arguments, carried_out, merged, save_trained, settings, training_on, with_adapters
from trimtab.training.completions import Collate, Shown, unpaired
from trimtab.training.trainers._base import House, Settings
from trimtab.training.trainers.pairs import ChosenTrainer, PairTrainer, UnpairedTrainer
from trimtab.training.trainers.rewards import RankTrainer

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
    with training_on(len(data), spec.batch_size):
        network = Completer(spec, compute)
        suit_attention(network.model, max(len(c.ids) for row in data.completions for c in row))
        known = settings(spec, data.ids, out, compute=compute, partial=partial)
        trainer = _trainer(spec, network.model, out, compute=compute, data=data, held=held, known=known)
        metrics = carried_out(trainer, network, out, compute=compute)
    supervised = sum(len(completion.completion_ids) for row in data.completions for completion in row)
    return metrics | {"train/rows": len(data), "train/supervised_tokens_per_row": supervised / len(data)}


class Completer:
    """A policy or a reward model as its spec's `tune` leaves it."""

    def __init__(self, spec: AnyTrained, compute: Compute) -> None:
        set_seed(spec.seed)
        self.spec, self.compute = spec, compute
        is_policy = not isinstance(spec, RewardSpec)
        cache = compute.cache
        self.model: Any = load_language(spec.model, cache) if is_policy else load_network(spec.model, cache, 1)
        if isinstance(spec.tune, Top):
            train_upper(self.model, spec.tune.layers)
        if isinstance(spec.tune, LoRA):
            self.model = with_adapters(self.model, spec.tune, "CAUSAL_LM" if is_policy else "SEQ_CLS")

    def again(self) -> Completer:
        return Completer(self.spec, self.compute)

    def save(self, out: Path) -> None:
        """out/model, with adapters merged; the adapters beside it in out/adapter."""
        save_trained(merged(self.model, self.spec.tune, out), self.spec, out, cache=self.compute.cache)


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
