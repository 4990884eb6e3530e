"""A classifier trained with one of our label objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.methods.objectives._base import LabelBatch, Objective
from trimtab.training.trainers._base import Found, House, Inputs

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Seen:
    """Rows without gradient: their places in the data set, what the model says, what the labels say."""

    row_N: Tensor
    logits_NC: Tensor
    weak_NC: Tensor

    def __getitem__(self, chosen: Any) -> Seen:
        return Seen(self.row_N[chosen], self.logits_NC[chosen], self.weak_NC[chosen])

    def finite(self) -> Seen:
        """Those of which the model says something."""
        return self[self.logits_NC.isfinite().all(-1)]

    @staticmethod
    def joined(parts: list[Seen]) -> Seen:
        return Seen(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row_N", "logits_NC", "weak_NC")))


class LabelTrainer(House):
    """Trains a classifier with one of our objectives; the loss and its statistics are those of the whole batch."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective
        self._step: Seen | None = None
        self._recent: list[Seen] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of the step that starts; where its statistics span several, all are looked at first."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.objective.whole_batch:
            self._remember()
            self._step = self._of_all_ranks(self._without_gradient(samples)) if len(samples) > 1 else None
        return samples, count

    def _without_gradient(self, samples: list[Inputs]) -> Seen:
        self.model_wrapped.train()
        seen = []
        with torch.no_grad():
            for sample in samples:
                row_B, weak_BC, logits_BC = self._forward(self.model_wrapped, self._prepare_inputs(sample))
                seen.append(Seen(row_B, logits_BC, weak_BC))
        return Seen.joined(seen)

    def _of_all_ranks(self, seen: Seen) -> Seen:
        return Seen(*(self.accelerator.gather(part) for part in (seen.row_N, seen.logits_NC, seen.weak_NC)))

    def _prepare_inputs(self, inputs: Inputs) -> Inputs:
        """On the model's device and in its dtype, but for the labels: they stay in float32."""
        return super()._prepare_inputs(inputs) | {"weak": inputs["weak"].to(self.args.device)}

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        row_B, weak_BC, logits_BC = self._forward(model, inputs)
        done = self.state.global_step / max(1, self.state.max_steps)
        context = self._context(Seen(row_B, logits_BC.detach(), weak_BC))
        return Found(self.objective(LabelBatch(logits_BC, weak_BC, done, *context)), logits_BC.isfinite().all(-1))

    def _forward(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Places row_B, labels weak_BC and logits_BC of rows."""
        inputs = dict(inputs)
        row_B, weak_BC = inputs.pop("row"), inputs.pop("weak")
        return row_B, weak_BC, model(**inputs).logits.float()

    def watch(self, model: nn.Module, inputs: Inputs) -> Any:
        _, weak_BC, logits_BC = self._forward(model, inputs)
        return torch.nn.functional.cross_entropy(logits_BC, weak_BC), {"logits": logits_BC}

    def _context(self, own: Seen) -> tuple[Tensor | None, Tensor | None]:
        """Rows beside this micro-batch that the objective's statistics are taken over."""
        if not self.objective.whole_batch:
            return None, None
        if self._step is None:
            self._step = self._of_all_ranks(own)
        rows = Seen.joined([*self._recent, self._step[~torch.isin(self._step.row_N, own.row_N)].finite()])
        return (rows.logits_NC, rows.weak_NC) if len(rows.row_N) else (None, None)

    def _remember(self) -> None:
        """Keep the last rows that the objective's buffer has room for; in one order, whoever computed them."""
        room = getattr(self.objective, "buffer", 0)
        if room and self._step is not None:
            step = self._step[self._step.row_N.argsort()].finite()
            self._recent, self._step = [Seen.joined([*self._recent, step])[-room:]], None

    def remembered(self) -> dict[str, Tensor]:
        self._remember()
        return vars(self._recent[0]) if self._recent else {}

    def remember(self, kept: dict[str, Tensor]) -> None:
        self._recent = [Seen(**{name: value.to(self.args.device) for name, value in kept.items()})] if kept else []
