"""Per-token log-probs that were computed before, by what they are of: a model, a prompt and a completion.

Pairs may be turned round, cut otherwise or shuffled: the log-probs of a completion are found all the same.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.models.shards import read_shard, shards, write_shard

if TYPE_CHECKING:
    from torch import Tensor

KEY_BYTES = 16


def key(model: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
    """What a completion's log-probs are stored under; `model` is its identity (weights, layers, dtype)."""
    content = f"{model}:{list(prompt_ids)}:{list(completion_ids)}"
    return hashlib.blake2b(content.encode(), digest_size=KEY_BYTES).hexdigest()


class Store:
    """Log-probs in fp32, one a completion token; many processes on many machines may read and add at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: set[Path] = set()
        self._values: list[Tensor] = []
        self._places: dict[str, tuple[int, int, int]] = {}

    def get(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """logprobs_T of those keys that are there, also when others added them."""
        for path in shards(self.folder):
            if path not in self._known:
                self._known.add(path)
                self._index(path)
        found = {k: self._places[k] for k in keys if k in self._places}
        return {k: self._values[shard][first:end] for k, (shard, first, end) in found.items()}

    def put(self, logprobs: Mapping[str, Sequence[float]]) -> None:
        """Add log-probs: one file, there as a whole or not at all."""
        import torch

        if not logprobs:
            return
        keys = torch.frombuffer(bytearray.fromhex("".join(logprobs)), dtype=torch.uint8).view(-1, KEY_BYTES)
        lengths = torch.tensor([len(values) for values in logprobs.values()])
        flat = torch.tensor([value for values in logprobs.values() for value in values], dtype=torch.float32)
        write_shard(self.folder, {"keys": keys, "lengths": lengths, "logprobs": flat}, {})

    def _index(self, path: Path) -> None:
        found = read_shard(path)
        if found is None:
            return
        tensors, _ = found
        ends = [0, *tensors["lengths"].cumsum(0).tolist()]
        if ends[-1] != len(tensors["logprobs"]) or len(ends) != len(tensors["keys"]) + 1:
            warnings.warn(f"{path} does not fit together and counts as not there", RuntimeWarning, stacklevel=2)
            return
        text = tensors["keys"].numpy().tobytes().hex()
        width = 2 * KEY_BYTES
        for i, first in enumerate(ends[:-1]):
            self._places[text[i * width : (i + 1) * width]] = (len(self._values), first, ends[i + 1])
        self._values.append(tensors["logprobs"])
