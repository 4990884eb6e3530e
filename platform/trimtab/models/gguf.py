"""A reader of GGUF files: header by `struct` over a memory map, values by the library's de-quantisation."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LLAMA = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its shape (rows first), its ggml type, its byte offset in the file."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Gguf:
    """A GGUF file: metadata fields, tensor places and the mapped bytes."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: mmap.mmap

    def tensor(self, name: str) -> np.ndarray:
        """The values of a tensor as float32. Raises ModelError where the file ends early or the type is unknown."""
        import numpy as np
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        try:
            kind = GGMLQuantizationType(info.type)
            block, size = GGML_QUANT_SIZES[kind]
            raw = np.frombuffer(self.data, np.uint8, prod(info.shape) // block * size, info.offset)
            return dequantize(raw.reshape(*info.shape[:-1], -1), kind).reshape(info.shape)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"{self.path}: tensor {name} cannot be read: {error}") from error


def read_gguf(path: Path) -> Gguf:
    """Header of a GGUF file. Raises ModelError when it is no GGUF of a known version or ends early."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(data)
        if cursor.take(4) != b"GGUF" or cursor.number("I") not in VERSIONS:
            raise ModelError(f"{path}: not a GGUF file of version 2 or 3")
        n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
        fields = {cursor.string(): cursor.value(cursor.number("I")) for _ in range(n_fields)}
        places = [cursor.place() for _ in range(n_tensors)]
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"{path}: damaged GGUF header: {error}") from error
    align = fields.get("general.alignment", 32)
    start = -(-cursor.at // align) * align
    return Gguf(path, fields, {name: TensorInfo(shape, kind, start + at) for name, shape, kind, at in places}, data)


def llama_name(name: str) -> str:
    """A llama tensor's name in transformers. Raises KeyError for one that such a network does not have."""
    if name in OUTER:
        return OUTER[name]
    prefix, layer, part, suffix = (name.split(".") + [""] * 4)[:4]
    if (prefix, suffix) != ("blk", "weight"):
        raise KeyError(name)
    return f"model.layers.{layer}.{LLAMA[part]}.weight"


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.data):
            raise struct.error("the file ends early")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, n = self.number("I"), self.number("Q")
        if inner in (STRING, ARRAY):
            return [self.value(inner) for _ in range(n)]
        code = SCALARS[inner]
        return list(struct.unpack(f"<{n}{code}", self.take(n * struct.calcsize("<" + code))))

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with the rows first (a GGUF names the fastest dimension first), type, offset in the data."""
        name, n = self.string(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(n))[::-1]
        return name, shape, self.number("I"), self.number("Q")
