"""One model of an ensemble while it decodes: slots, each with the keys and values of the tokens it has read.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

from trimtab.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Read = list[tuple[int, list[int]]]
"""Slots, each once, and the tokens that each goes on to read."""


class Stepper(Protocol):
    """A model that reads tokens into slots."""

    context: int
    """Tokens that a slot holds."""
    held: list[list[int]]
    """Tokens that each slot has read."""

    def read(self, rows: Read, *, last: int = 1) -> Tensor:
        """logits_BTV after each of the `last` tokens of every row, which has at least as many."""
        ...

    def rewind(self, slot: int, length: int) -> None:
        """Forget what the slot has read beyond `length` tokens."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`."""
        ...


class AnyStepper:
    """Any causal transformers network, row after row, each slot with a cache of its own."""

    def __init__(self, model: PreTrainedModel, slots: int, context: int) -> None:
        from transformers import DynamicCache

        self.model, self.context = model.eval(), context
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self._fresh = lambda: DynamicCache(config=model.config)
        self._caches = [self._fresh() for _ in range(slots)]

    def read(self, rows: Read, *, last: int = 1) -> Tensor:
        """logits_BTV after each of the `last` tokens of every row."""
        import torch

        found = []
        with torch.inference_mode():
            for slot, ids in rows:
                start = len(self.held[slot])
                where = torch.arange(start, start + len(ids), device=self.model.device)
                found.append(
                    self.model(
                        input_ids=torch.tensor([ids], device=self.model.device),
                        position_ids=where[None],
                        past_key_values=self._caches[slot],
                        use_cache=True,
                        logits_to_keep=last,
                    ).logits
                )
                self.held[slot] += ids
        return torch.cat(found)

    def rewind(self, slot: int, length: int) -> None:
        """Forget what the slot has read beyond `length` tokens. Raises ModelError where the network cannot."""
        over = len(self.held[slot]) - length
        if over and length == 0:
            self._caches[slot] = self._fresh()
        elif over:
            try:
                self._caches[slot].crop(-over)
            except (AttributeError, NotImplementedError, ValueError) as error:
                raise ModelError(f"{type(self.model).__name__} cannot take back what it has read: {error}") from error
        self.held[slot] = self.held[slot][:length]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`."""
        self._caches[target] = copy.deepcopy(self._caches[source])
        self.held[target] = list(self.held[source])
        self.rewind(target, length)
