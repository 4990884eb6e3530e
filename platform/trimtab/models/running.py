"""Rows that are being continued token by token, and the room in which their keys and values are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.models.features import left_padded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

CROWD = 0.75
"""Rows that have ended leave the batch when fewer than this share still run."""


def roomy_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """A cache for `room` tokens a row: layers that see all of them do not copy what they hold at every step."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        length = 0

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (
                states.new_empty((*states.shape[:2], room, states.shape[3])) for states in (key_states, value_states)
            )
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start, self.length = self.length, self.length + key_states.shape[2]
            self.keys[:, :, start : self.length] = key_states
            self.values[:, :, start : self.length] = value_states
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]

        def get_seq_length(self) -> int:
            return self.length

        def batch_select_indices(self, indices: Tensor) -> None:
            self.keys, self.values = self.keys[indices], self.values[indices]

    cache = DynamicCache(config=model.config)
    cache.layers = [Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class Running:
    """Prompts padded on the left, each read once; `row_B` says which of the rows asked for are still here."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], steps: int) -> None:
        import torch

        unique = list(dict.fromkeys(map(tuple, prompts)))
        place = {prompt: i for i, prompt in enumerate(unique)}
        ids_BT, mask_BT = (x.to(model.device) for x in left_padded([torch.tensor(prompt) for prompt in unique]))
        self.model, self.here = model, ids_BT.shape[1]
        self.cache = roomy_cache(model, self.here + steps)
        self.mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(unique), steps)], dim=1)
        self.length_B = mask_BT.sum(-1)
        self.logits_BV = self._forward(ids_BT, (mask_BT.cumsum(-1) - 1).clamp(min=0))
        self.row_B = torch.arange(len(prompts), device=model.device)
        self._keep(torch.tensor([place[tuple(prompt)] for prompt in prompts], device=model.device))

    def go_on(self, next_B: Tensor, runs_B: Tensor) -> None:
        """One token more of every row; where enough rows no longer run, only of those that do."""
        runs = runs_B[self.row_B]
        if int(runs.sum()) < CROWD * len(runs):
            kept = runs.nonzero()[:, 0]
            self.row_B, next_B = self.row_B[kept], next_B[kept]
            self._keep(kept)
        self.here += 1
        self.logits_BV = self._forward(next_B[:, None], self.length_B[:, None])
        self.length_B += 1

    def _keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask_BT, self.length_B, self.logits_BV = self.mask_BT[rows], self.length_B[rows], self.logits_BV[rows]

    def _forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        return self.model(
            input_ids=ids_BT,
            attention_mask=self.mask_BT[:, : self.here],
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
