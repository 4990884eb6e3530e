"""Reward models trained on preferences: TRL's trainer carries the model, our objectives give the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl import RewardTrainer

from trimtab.methods.rewards._base import RewardBatch
from trimtab.training.trainers._base import Found, Inputs
from trimtab.training.trainers._completions import CompletionTrainer

if TYPE_CHECKING:
    from torch import nn


class RankTrainer(CompletionTrainer, RewardTrainer):
    """Pairs: input_ids and attention_mask are (B, 2, T), chosen first; the model has one output."""

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        shown = {name: inputs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
        rewards_B2 = model(**shown, use_cache=False).logits.float().view(-1, 2)
        loss = self.objective(RewardBatch(*rewards_B2.unbind(1), p_B=inputs["p"], margin_B=inputs["margin"]))
        return Found(loss, rewards_B2.isfinite().all(-1))
