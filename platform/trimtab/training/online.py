"""Training policies on their own samples, by a reward or by a teacher, in whatever ranks called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig, GRPOConfig

from trimtab.alignment import DistilSpec, OnlineSpec, SelfSampled
from trimtab.compute import Compute
from trimtab.data.rendering import prompt_tokens
from trimtab.models.language import load_language
from trimtab.models.network import load_tokenizer, suit_attention
from trimtab.models.source import model_folder
from trimtab.parts import LoRA
from trimtab.training.callbacks import Speak
from trimtab.training.common import arguments, carried_out, settings, training_on
from trimtab.training.policies import Completer
from trimtab.training.trainers.online import DistillTrainer, OnlineTrainer, Reward, SelfSamplingTrainer

Rows = list[dict[str, Any]]


def train_online(
    spec: OnlineSpec, out: Path, *, compute: Compute, rows: Rows, reward: Reward, partial: Path | None = None
) -> dict[str, float]:
    """Train on samples of the prompts of `rows`, save the model to out/model, return what was measured.

    Prompts beyond `max_prompt_tokens` are left out and counted. Checkpoints go to `partial`, and what is found there is
    gone on from. Raises DataError when there are fewer samples than one batch, StageError when a reward, the loss or a
    weight is not finite.
    """
    return _trained(spec, out, compute=compute, rows=rows, partial=partial, reward=reward)


def train_distilled(
    spec: DistilSpec, out: Path, *, compute: Compute, rows: Rows, partial: Path | None = None
) -> dict[str, float]:
    """As `train_online`, by the probabilities of the spec's teacher."""
    return _trained(spec, out, compute=compute, rows=rows, partial=partial)


def _trained(
    spec: SelfSampled, out: Path, *, compute: Compute, rows: Rows, partial: Path | None, reward: Reward | None = None
) -> dict[str, float]:
    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    kept, longest = _fitting(rows, tokenizer, spec.sampling.max_prompt_tokens)
    group = spec.sampling.samples if reward else 1
    told = f"{len(kept)} prompts with {group} samples each,"
    with training_on(len(kept) * group, spec.batch_size, told=told):
        network = Completer(spec, compute)
        suit_attention(network.model, longest + spec.sampling.max_new_tokens)
        others = _others(spec, compute, network.model.config._attn_implementation)
        shown = [{"prompt": row["prompt"], "row": i} for i, row in enumerate(kept)]
        usual = {
            "model": network.model,
            "train_dataset": datasets.Dataset.from_list(shown),
            "processing_class": tokenizer,
            "settings": settings(spec, [row["id"] for row in kept], out, compute=compute, partial=partial),
        }
        fields = arguments(spec, out, compute=compute, rows=len(kept) * group, evaluates=False)
        fields |= {"gradient_checkpointing": compute.activation_checkpointing} | _sampling(spec)
        trainer = _trainer(spec, fields, reward, usual | others)
        trainer.add_callback(Speak(out, trainer))
        metrics = carried_out(trainer, network, out, compute=compute)
    return metrics | {"train/rows": len(kept), "dropped_long_prompt": len(rows) - len(kept)} | _last(trainer)


def _fitting(rows: Rows, tokenizer: PreTrainedTokenizerBase, most: int) -> tuple[Rows, int]:
    """Rows with prompts of up to `most` tokens, and the length of the longest."""
    lengths = [len(prompt_tokens(tokenizer, row["prompt"])) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= most]
    return kept, max((length for length in lengths if length <= most), default=0)


def _sampling(spec: SelfSampled) -> dict[str, Any]:
    drawn = spec.sampling
    return {
        "max_completion_length": drawn.max_new_tokens,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "top_k": drawn.top_k,
    }


def _others(spec: SelfSampled, compute: Compute, attention: str) -> dict[str, Any]:
    """Frozen models beside the policy; ZeRO 3, once there is a configuration of it, would spread what is loaded."""
    if isinstance(spec, DistilSpec):
        name, source = "teacher_model", spec.teacher
    elif spec.beta and not isinstance(spec.tune, LoRA):
        name, source = "reference", spec.model
    else:
        return {}
    other = load_language(source, compute.cache).requires_grad_(False)
    other.set_attn_implementation(attention)
    return {name: other}


def _trainer(
    spec: SelfSampled, fields: dict[str, Any], reward: Reward | None, usual: dict[str, Any]
) -> SelfSamplingTrainer:
    if isinstance(spec, DistilSpec):
        return DistillTrainer(**usual, args=DistillationConfig(**fields, beta=spec.beta))
    config = GRPOConfig(**fields, num_generations=spec.sampling.samples)
    return OnlineTrainer(**usual, args=config, reward=reward, beta=spec.beta)


def _last(trainer: SelfSamplingTrainer) -> dict[str, float]:
    """The reward of the samples behind the last log."""
    told = [logs["objective/reward"] for logs in trainer.state.log_history if "objective/reward" in logs]
    return {"train/reward": told[-1]} if told else {}
