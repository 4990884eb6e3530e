"""Tokens and log-probs of the candidates of many rows, in one file that is read by row id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import DataError
from trimtab.lm import Generated, TokenScores
from trimtab.models.shards import read_shard

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "tokens.safetensors"
MADE_BY = "made_by.json"
Table = Mapping[str, Sequence[TokenScores | Generated]]


def flat(scores: Sequence[TokenScores | Generated]) -> dict[str, Tensor]:
    """Token ids and log-probs of completions one behind the other, and how many are whose."""
    import torch

    return {
        "ids": torch.tensor([i for s in scores for i in s.ids], dtype=torch.int32),
        "logprobs": torch.tensor([p for s in scores for p in s.logprobs], dtype=torch.float32),
        "lengths": torch.tensor([len(s.ids) for s in scores], dtype=torch.int64),
    }


def write_tokens(
    out: Path, rows: Mapping[str, Sequence[TokenScores | Generated]], *, model: str, tokenizer: str
) -> None:
    """Tokens and log-probs of every candidate of every row, for `Logprobs`; and which model and tokenizer made them."""
    from safetensors.torch import save_file

    counts = json.dumps({row_id: len(scores) for row_id, scores in rows.items()})
    save_file(flat([s for scores in rows.values() for s in scores]), out / TOKENS, metadata={"rows": counts})
    (out / MADE_BY).write_text(json.dumps({"model": model, "tokenizer": tokenizer}, indent=1))


@dataclass(frozen=True)
class _Place:
    first: int
    candidates: int


class Logprobs:
    """What stage logprobs or generate says of candidates, by row id and number.

    `model` and `tokenizer` name the ones that made it. Raises DataError for a folder that holds no such thing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = read_shard(folder / TOKENS) if (folder / TOKENS).exists() else None
        if found is None:
            raise DataError(f"{folder} has no log-probs; give the output of stage logprobs or generate")
        tensors, note = found
        made_by = json.loads((folder / MADE_BY).read_text())
        self.model: str = made_by["model"]
        self.tokenizer: str = made_by["tokenizer"]
        self.ids, self.logprobs = tensors["ids"], tensors["logprobs"]
        self.bounds = [0, *tensors["lengths"].cumsum(0).tolist()]
        self.places: dict[str, _Place] = {}
        first = 0
        for row_id, candidates in note["rows"].items():
            self.places[row_id] = _Place(first, candidates)
            first += candidates

    def of(self, row_id: str, candidate: int) -> tuple[Tensor, Tensor]:
        """ids_T (long) and logprobs_T (fp32) of a candidate; both empty where it could not be shown to the model.

        Raises DataError for one that is not there.
        """
        place = self.places.get(row_id)
        if place is None or not 0 <= candidate < place.candidates:
            raise DataError(f"{self.folder} has no log-probs of row {row_id!r}, candidate {candidate}")
        at = slice(self.bounds[place.first + candidate], self.bounds[place.first + candidate + 1])
        return self.ids[at].long(), self.logprobs[at]
