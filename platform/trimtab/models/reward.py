"""A trained reward model, whatever it was trained as: a number for every completion."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.alignment import RewardModel, RewardSpec
from trimtab.compute import Compute
from trimtab.data.rendering import prompt_tokens, render
from trimtab.errors import DataError, ModelError
from trimtab.models.features import States, batches_by_length, compute_states, left_padded
from trimtab.models.network import cut, device, load_network, load_tokenizer, read_card, suit_attention, torch_dtype
from trimtab.models.source import model_folder
from trimtab.parts import FeatureSpec, Probe
from trimtab.progress import Meter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, Any]


def completion_id(row_id: str, place: int) -> str:
    """The id under which the states of a row's completion are stored."""
    return f"{row_id}#{place}"


def sequences(tokenizer: Any, rows: list[Row], max_length: int) -> tuple[list[str], list[Tensor]]:
    """Ids and tokens (prompt and completion) of every completion, without trailing padding tokens.

    Heads read the last token before the padding; of an empty completion that is the prompt's. Raises DataError for a
    prompt that does not fit.
    """
    import torch

    ids, encoded = [], []
    for row in rows:
        for place, completion in enumerate(row["candidates"]):
            shown = render(tokenizer, row["prompt"], completion, max_length=max_length)
            tokens = shown.ids if shown else prompt_tokens(tokenizer, row["prompt"])
            if shown is None and len(tokens) >= max_length:
                raise DataError(f"row {row['id']}: its prompt alone has {max_length} tokens or more: raise max_length")
            while len(tokens) > 1 and tokens[-1] == tokenizer.pad_token_id:
                tokens = tokens[:-1]
            ids.append(completion_id(row["id"], place))
            encoded.append(torch.tensor(tokens))
    return ids, encoded


class Rewarder:
    """Loads what stage train_reward wrote (`trained` is its output), or the sequence classifier that the spec names."""

    def __init__(self, spec: RewardModel, trained: Path | None, *, compute: Compute) -> None:
        self.compute, self.max_length = compute, spec.max_length
        own = self.own = None if trained else spec.model
        self.folder = model_folder(own.source, compute.cache, revision=own.revision) if own else trained / "model"
        self.spec = RewardSpec.model_validate(read_card(self.folder)["spec"]) if trained else None
        if self.spec:
            self.max_length = self.spec.max_length

    def loaded(self) -> Rewarder:
        """Itself, with its networks in memory."""
        _ = self._trunk if self._is_probe else self._classifier
        return self

    def rewards(self, rows: list[Row], features: Path | None = None) -> dict[str, list[float]]:
        """Row id -> the reward of each of its completions."""
        import torch

        with torch.inference_mode():
            ids, rewards_N = self._by_probe(rows, features) if self._is_probe else self._by_classifier(rows)
        place = dict(zip(ids, rewards_N.tolist(), strict=True))
        return {row["id"]: [place[completion_id(row["id"], k)] for k in range(len(row["candidates"]))] for row in rows}

    @cached_property
    def _is_probe(self) -> bool:
        return json.loads((self.folder / "config.json").read_text())["model_type"] == "trimtab_probe"

    @cached_property
    def _trunk(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """What a probe stands on."""
        trunk = self.spec.model
        tokenizer = load_tokenizer(model_folder(trunk.source, self.compute.cache, revision=trunk.revision))
        return tokenizer, load_network(trunk, self.compute.cache)

    def _by_probe(self, rows: list[Row], features: Path | None) -> tuple[list[str], Tensor]:
        import torch

        from trimtab.models.probe import ProbeModel

        model = ProbeModel.from_pretrained(self.folder).eval()
        if features:
            ids = [completion_id(row["id"], k) for row in rows for k in range(len(row["candidates"]))]
            return ids, model(States(features).matrix(ids))[:, 1]
        tune = self.spec.tune
        assert isinstance(tune, Probe)
        tokenizer, network = self._trunk
        ids, encoded = sequences(tokenizer, rows, self.max_length)
        wanted = FeatureSpec(model=self.spec.model, pool=tune.pool, max_length=self.max_length)
        tick = Meter(len(encoded)).add
        states = compute_states(network, encoded, wanted, batch=self.compute.inference_batch, tick=tick)
        return ids, model(torch.stack([state.float() for state in states]))[:, 1]

    @cached_property
    def _classifier(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        from transformers import AutoModelForSequenceClassification

        dtype = torch_dtype(self.own.dtype) if self.own else "auto"
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            self.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        if model.config.num_labels != 1:
            raise ModelError(f"{self.folder}: a reward model has one output, this one has {model.config.num_labels}")
        if missing := sorted(loaded["missing_keys"]):
            raise ModelError(f"{self.folder}: its weights lack {', '.join(missing[:3])}; is it a reward model?")
        cut(model, self.own.layers if self.own else None)
        tokenizer = load_tokenizer(self.folder)
        model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model.eval().to(device())

    def _by_classifier(self, rows: list[Row]) -> tuple[list[str], Tensor]:
        import torch

        tokenizer, model = self._classifier
        ids, encoded = sequences(tokenizer, rows, self.max_length)
        suit_attention(model, max(map(len, encoded)))
        meter, rewards_N = Meter(len(encoded)), torch.empty(len(encoded))
        for chosen in batches_by_length([len(row) for row in encoded], self.compute.inference_batch):
            ids_BT, mask_BT = left_padded([encoded[i] for i in chosen])
            out = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits[:, 0]
            rewards_N[chosen] = out.float().cpu()
            meter.add(len(chosen), int(mask_BT.sum()))
        return ids, rewards_N
