"""States of a frozen network for every row of a task: computed once, read by row id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import DataError
from trimtab.parts import FeatureSpec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (T,) ids or (T, D) states -> one padded tensor and its attention mask_BT, padding first."""
    import torch

    longest = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row.new_zeros((longest - len(row), *row.shape[1:])), row]) for row in rows])
    mask_BT = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    return padded, mask_BT


def batches_by_length(lengths: list[int], size: int) -> list[list[int]]:
    """Indices in batches of alike lengths, longest first so that memory is known at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[Tensor]:
    """ids_T of each text, at least one. Trailing padding tokens are cut: heads read the last token before them."""
    import torch

    rows = []
    for ids in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]:
        while len(ids) > 1 and ids[-1] == tokenizer.pad_token_id:
            ids.pop()
        rows.append(torch.tensor(ids or [tokenizer.pad_token_id]))
    return rows


def compute_states(
    model: PreTrainedModel, rows: list[Tensor], spec: FeatureSpec, *, batch: int, tick: Callable[[int, int], None]
) -> list[Tensor]:
    """For each row its state_D ("pooled") or states_TD ("tokens") after the last layer, before the final norm."""
    import torch

    from trimtab.models.network import decoder, device, suit_attention

    body = decoder(model)
    last: list[Tensor] = []
    hook = body.layers[-1].register_forward_hook(lambda m, i, o: last.append(o[0] if isinstance(o, tuple) else o))
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    model.eval().to(device())
    suit_attention(model, max(map(len, rows), default=0))
    with torch.inference_mode():
        for chosen in batches_by_length([len(row) for row in rows], batch):
            ids_BT, mask_BT = left_padded([rows[i] for i in chosen])
            model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
            for i, state_TD in zip(chosen, last.pop().cpu(), strict=True):
                states[i] = _kept(state_TD[-len(rows[i]) :], spec)
            tick(len(chosen), int(mask_BT.sum()))
    hook.remove()
    return states


def _kept(state_TD: Tensor, spec: FeatureSpec) -> Tensor:
    if spec.keep == "tokens":
        return state_TD.clone()
    return (state_TD[-1] if spec.pool == "last" else state_TD.float().mean(0)).clone()


def write_states(folder: Path, ids: list[str], states: list[Tensor], *, part: int = 0) -> None:
    """One part of a table's states: PART.safetensors (rows one after the other), PART.json (id -> first, length)."""
    import torch
    from safetensors.torch import save_file

    rows = [state if state.ndim == 2 else state[None] for state in states]
    index, first = {}, 0
    for row_id, row in zip(ids, rows, strict=True):
        index[row_id] = (first, len(row))
        first += len(row)
    if rows:
        save_file({"states": torch.cat(rows)}, folder / f"{part}.safetensors")
        (folder / f"{part}.json").write_text(json.dumps(index))


class States:
    """Stored states, by row id; mapped from disk, not held in memory."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.folder = folder
        self.place: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            states = load_file(file)["states"]
            index = json.loads(file.with_suffix(".json").read_text())
            self.place |= {row_id: states[first : first + length] for row_id, (first, length) in index.items()}

    def rows(self, ids: list[str]) -> list[Tensor]:
        """states_TD of each id. Raises DataError for one that is not stored."""
        if missing := [i for i in ids if i not in self.place]:
            raise DataError(f"{self.folder} has no states of {len(missing)} rows, {missing[0]} the first")
        return [self.place[i] for i in ids]

    def matrix(self, ids: list[str]) -> Tensor:
        """states_ND in float32, for states of one vector a row."""
        import torch

        return torch.cat(self.rows(ids)).float()
