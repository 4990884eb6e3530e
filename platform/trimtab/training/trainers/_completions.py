"""What trainers on completions share, of policies and of reward models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trimtab.training.trainers._base import House, Inputs

if TYPE_CHECKING:
    from torch import nn

    from trimtab.methods.preferences._base import PairObjective
    from trimtab.methods.rewards._base import RewardObjective

AGREEMENTS = ("rewards/accuracies", "accuracy")


class CompletionTrainer(House):
    """Rows come tokenised, with what else is known of them in their columns."""

    def __init__(self, *args: Any, objective: PairObjective | RewardObjective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows are tokenised already."""
        return dataset

    def _prepare_inputs(self, inputs: Inputs) -> Inputs:
        """On the model's device; log-probs and probabilities stay in float32."""
        return {name: value.to(self.args.device) for name, value in inputs.items()}

    def watch(self, model: nn.Module, inputs: Inputs) -> Any:
        """The loss, and on how many rows the model agrees with the preference where the objective tells."""
        loss = self.found(model, inputs).loss
        agrees = next((loss.metrics[name] for name in AGREEMENTS if name in loss.metrics), None)
        return loss.value, None if agrees is None else loss.value.new_full((len(inputs["row"]),), agrees)

    def prediction_step(self, model: nn.Module, inputs: Inputs, *args: Any, **kwargs: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, agreement_B = self.watch(model, inputs)
        return loss, agreement_B, agreement_B
