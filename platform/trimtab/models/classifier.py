"""A trained classifier, whatever it was trained as: class log-odds for rows of text or of stored states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.models.features import States, batches_by_length, compute_states, encode, left_padded
from trimtab.models.network import Halves, device, load_tokenizer, read_card, suit_attention
from trimtab.models.source import model_folder
from trimtab.parts import FeatureSpec, ModelSpec, Top, TrainSpec
from trimtab.progress import Meter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Rows to classify; `states` spares the frozen trunk when they were computed before."""

    ids: list[str]
    texts: list[str]
    states: States | None = None


class Classifier:
    """Loads what stage train wrote (`folder` is its output)."""

    def __init__(self, folder: Path, *, cache: Path, batch: int) -> None:
        self.folder, self.cache, self.batch = folder / "model", cache, batch
        self.is_probe = json.loads((self.folder / "config.json").read_text())["model_type"] == "trimtab_probe"

    def logits(self, inputs: Inputs) -> Tensor:
        """logits_NC in float32, rows in the order given."""
        import torch

        if not inputs.ids:
            return torch.empty(0, 0)
        with torch.inference_mode():
            return self._probe(inputs) if self.is_probe else self._network(inputs)

    def _probe(self, inputs: Inputs) -> Tensor:
        import torch

        from trimtab.models.probe import ProbeModel

        model = ProbeModel.from_pretrained(self.folder).eval()
        if inputs.states:
            return model(inputs.states.matrix(inputs.ids))
        return model(torch.stack([s.float() for s in self._trunk_states(model.config.trunk, inputs)]))

    def _trunk_states(self, trunk: dict[str, Any], inputs: Inputs) -> list[Tensor]:
        from trimtab.models.network import load_network

        spec = TrainSpec.model_validate(read_card(self.folder)["spec"])
        model = ModelSpec.model_validate(trunk)
        tokenizer = load_tokenizer(model_folder(model.source, self.cache, revision=model.revision))
        rows = encode(tokenizer, inputs.texts, spec.max_length)
        wanted = FeatureSpec(model=model, pool=spec.tune.pool, max_length=spec.max_length)
        tick = Meter(len(rows)).add
        return compute_states(load_network(model, self.cache), rows, wanted, batch=self.batch, tick=tick)

    def _network(self, inputs: Inputs) -> Tensor:
        import torch
        from transformers import AutoModelForSequenceClassification

        spec = TrainSpec.model_validate(read_card(self.folder)["spec"])
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype="auto", use_safetensors=True)
        if inputs.states and isinstance(spec.tune, Top):
            Halves(model, spec.tune.layers)
            rows, name = inputs.states.rows(inputs.ids), "inputs_embeds"
        else:
            rows, name = encode(load_tokenizer(self.folder), inputs.texts, spec.max_length), "input_ids"
        model.eval().to(device())
        suit_attention(model, max(map(len, rows)))
        meter, logits = Meter(len(rows)), torch.empty(len(rows), model.config.num_labels)
        for chosen in batches_by_length([len(row) for row in rows], self.batch):
            padded, mask_BT = left_padded([rows[i] for i in chosen])
            inputs = padded.to(model.device, model.dtype if padded.is_floating_point() else None)
            out = model(**{name: inputs}, attention_mask=mask_BT.to(model.device)).logits
            logits[chosen] = out.float().cpu()
            meter.add(len(chosen), int(mask_BT.sum()))
        return logits
