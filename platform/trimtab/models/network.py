"""Networks with a classification head: load, cut, halve, save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import ModelError
from trimtab.models.source import model_folder
from trimtab.parts import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = "trimtab.json"
HEADS = ("score", "classifier")
SHORT = 128
"""Tokens up to which a row counts as short."""


def has_fast_bf16() -> bool:
    """A GPU with bfloat16, or a CPU with AMX or AVX512-BF16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("amx_bf16", "avx512_bf16"))


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, ("bfloat16" if has_fast_bf16() else "float32") if name == "auto" else name)


def device() -> torch.device:
    """This process's GPU (whoever started the ranks chose it), or the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left so that the last position is always a row's last token.

    Raises ModelError when it knows neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer in {folder} has neither pad_token nor eos_token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_network(spec: ModelSpec, cache: Path, n_classes: int | None = None) -> PreTrainedModel:
    """The network in its dtype, cut to its layers; with a zero-initialised head when `n_classes` is given.

    Raises ModelError when the model cannot be found or has fewer layers than asked for.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    folder = model_folder(spec.source, cache, revision=spec.revision)
    options: dict[str, Any] = {"dtype": torch_dtype(spec.dtype), "trust_remote_code": False}
    if n_classes is None:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **options)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, num_labels=n_classes, ignore_mismatched_sizes=True, **options
        )
        for weight in _head(model).parameters():
            weight.data.zero_()
        model.config.pad_token_id = load_tokenizer(folder).pad_token_id
    model.config.use_cache = False
    cut(model, spec.layers)
    return model


def suit_attention(model: PreTrainedModel, longest: int) -> None:
    """On a CPU the plain kernel is the faster one for short rows, above all backwards (bench/kernels.py)."""
    if device().type == "cpu" and longest <= SHORT:
        model.set_attn_implementation("eager")


def _head(model: PreTrainedModel) -> nn.Module:
    for name in HEADS:
        if hasattr(model, name):
            return getattr(model, name)
    raise ModelError(f"{type(model).__name__} has no classification head named {' or '.join(HEADS)}")


def decoder(model: PreTrainedModel) -> Any:
    """The part that holds `.layers`. Raises ModelError for architectures that keep them elsewhere."""
    body = model.base_model
    if not hasattr(body, "layers"):
        raise ModelError(f"{type(model).__name__}: layers can only be cut or frozen where the decoder has `.layers`")
    return body


def cut(model: PreTrainedModel, layers: int | tuple[int, ...] | None) -> None:
    """Keep the first layers or those listed, as a model's spec says; None keeps all."""
    if layers is not None:
        keep_layers(model, list(range(layers)) if isinstance(layers, int) else list(layers))


def keep_layers(model: PreTrainedModel, kept: list[int]) -> list[nn.Module]:
    """Keep these layers, in this order; returns those removed. The configuration follows."""
    from torch import nn

    body = decoder(model)
    layers = list(body.layers)
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(len(layers))):
        raise ModelError(f"{model.config.model_type} has layers 0 to {len(layers) - 1}; asked to keep {kept}")
    body.layers = nn.ModuleList([layers[i] for i in kept])
    _number(body.layers)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return [layer for i, layer in enumerate(layers) if i not in kept]


def _number(layers: nn.ModuleList) -> None:
    """Each layer's keys and values are kept under its number, so the numbers must be those of their places."""
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place


def train_upper(model: PreTrainedModel, upper: int) -> None:
    """Freeze all but the upper layers, the norm above them and a classification head; a language model's head stays.

    Raises ModelError when no layer is left.
    """
    body = decoder(model)
    if upper >= len(body.layers):
        raise ModelError(f"tune.layers is {upper}, the model has {len(body.layers)}; use kind: full to train all of it")
    model.requires_grad_(False)
    norms = [module for name, module in body.named_children() if "norm" in name]
    heads = [getattr(model, name) for name in HEADS if hasattr(model, name)]
    for module in [*body.layers[-upper:], *norms, *heads]:
        module.requires_grad_(True)


class Halves:
    """A network taken apart below its `upper` layers.

    While apart, the model runs the upper part alone on `inputs_embeds` = the states of the trunk below.
    """

    def __init__(self, model: PreTrainedModel, upper: int) -> None:
        total = len(decoder(model).layers)
        self.model, self.config = model, model.config.to_dict()
        self.trunk = keep_layers(model, list(range(total - upper, total)))

    def join(self) -> PreTrainedModel:
        """The whole network again."""
        from torch import nn

        body = decoder(self.model)
        body.layers = nn.ModuleList([*self.trunk, *body.layers])
        _number(body.layers)
        self.model.config.num_hidden_layers = self.config["num_hidden_layers"]
        if self.config.get("layer_types"):
            self.model.config.layer_types = self.config["layer_types"]
        return self.model


def save_network(model: PreTrainedModel, folder: Path, *, base: Path, card: dict[str, Any]) -> None:
    """A folder that from_pretrained accepts: safetensors, tokenizer, model card, and what trimtab must know."""
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    write_card(folder, card)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    (folder / CARD).write_text(json.dumps(card, indent=1))
    model, objective = card["spec"]["model"]["source"], card["spec"].get("objective", card["spec"])["kind"]
    lines = [f"- {key}: {value}" for key, value in card.items() if key != "spec"]
    (folder / "README.md").write_text(
        "\n".join(
            ["---", "library_name: transformers", f"base_model: {model}", "tags: [weak-to-strong, trimtab]", "---"]
            + [f"# {model} trained with {objective}", "", "A classifier made by trimtab.", "", *lines, ""]
            + ["```json", json.dumps(card["spec"], indent=1), "```", ""]
        )
    )


def read_card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CARD).read_text())
