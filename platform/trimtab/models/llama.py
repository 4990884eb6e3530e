"""A fast step for networks of Llama's shape: fused projections, prepacked weights, one cache for all slots.

B rows, T tokens, D width of the states, K key heads, X queries of a key head, H width of a head, S tokens of a slot,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.models.stepper import Read

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    Linear = Callable[[Tensor], Tensor]

KINDS = ("llama", "mistral", "qwen2")
GROW = 256
"""Tokens by which the room of the slots grows."""


@dataclass(frozen=True)
class Layer:
    """One layer's projections and norms."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    norm_D: Tensor
    norm_mlp_D: Tensor


def is_llama(model: PreTrainedModel) -> bool:
    """Whether the network is one that LlamaStepper computes."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in KINDS and config.hidden_act == "silu" and rope != "dynamic" and not windowed


class LlamaStepper:
    """Reads tokens into slots that share one cache; rows of any lengths go through the layers together."""

    def __init__(self, model: PreTrainedModel, slots: int, context: int) -> None:
        import torch

        config, core = model.config, model.model
        self.context, self.held = context, [[] for _ in range(slots)]
        self.eps, self.heads = config.rms_norm_eps, config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.head = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.device, self.dtype = model.device, model.dtype
        with torch.inference_mode():
            self.embed_VD = core.embed_tokens.weight.detach()
            self.layers = [_layer(layer) for layer in core.layers]
            self.norm_D = core.norm.weight.detach()
            self.logits = linear([model.get_output_embeddings()])
            where = torch.arange(context, device=self.device)[None]
            cos, sin = core.rotary_emb(self.embed_VD[:1, None], where)
            self.cos_SH, self.sin_SH = cos[0], sin[0]
            self.keys = [self._room(slots, 0) for _ in self.layers]
            self.values = [self._room(slots, 0) for _ in self.layers]

    def _room(self, slots: int, length: int) -> Tensor:
        import torch

        return torch.zeros(slots, self.key_heads, length, self.head, dtype=self.dtype, device=self.device)

    def read(self, rows: Read, *, last: int = 1) -> Tensor:
        """logits_BTV after each of the `last` tokens of every row."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        slots = [slot for slot, _ in rows]
        starts = [len(self.held[slot]) for slot in slots]
        counts = [len(ids) for _, ids in rows]
        with torch.inference_mode():
            ids_BT = pad_sequence([torch.tensor(ids) for _, ids in rows], batch_first=True).to(self.device)
            self._grow(max(starts) + ids_BT.shape[1])
            states_BTD = self._through(ids_BT, slots, starts)
            ends = torch.tensor(counts)[:, None] - last + torch.arange(last)
            wanted = states_BTD[torch.arange(len(rows))[:, None], ends.to(self.device)]
            logits_BTV = self.logits(self._normed(wanted, self.norm_D))
        for slot, ids in rows:
            self.held[slot] += ids
        return logits_BTV

    def _through(self, ids_BT: Tensor, slots: list[int], starts: list[int]) -> Tensor:
        """states_BTD after the last layer; what padding leaves behind a row's end is overwritten before it is seen."""
        import torch

        start_B1 = torch.tensor(starts, device=self.device)[:, None]
        place_BT = (start_B1 + torch.arange(ids_BT.shape[1], device=self.device)).clamp(max=self.context - 1)
        turn = (self.cos_SH[place_BT][:, None], self.sin_SH[place_BT][:, None])
        slot_B = torch.tensor(slots, device=self.device)
        until = max(starts) + ids_BT.shape[1]
        seen = slice(slots[0], slots[-1] + 1) if slots == list(range(slots[0], slots[-1] + 1)) else slot_B
        mask = self._mask(place_BT, until)
        states_BTD = torch.nn.functional.embedding(ids_BT, self.embed_VD)
        spots = (slot_B[:, None], place_BT)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            q_BKXH = self._written(layer.qkv(self._normed(states_BTD, layer.norm_D)), turn, spots, (keys, values))
            seen_BKXH = torch.nn.functional.scaled_dot_product_attention(
                q_BKXH, keys[seen, :, :until], values[seen, :, :until], attn_mask=mask
            )
            states_BTD = states_BTD + layer.out(self._joined(seen_BKXH))
            gate, up = layer.gate_up(self._normed(states_BTD, layer.norm_mlp_D)).chunk(2, -1)
            states_BTD = states_BTD + layer.down(torch.nn.functional.silu(gate).mul_(up))
        return states_BTD

    def _written(self, qkv: Tensor, turn: tuple[Tensor, Tensor], spots: tuple, room: tuple[Tensor, Tensor]) -> Tensor:
        """Queries of a group stacked as further tokens of their key head; keys and values go to their spots."""
        wide = self.heads + self.key_heads
        heads = qkv.unflatten(-1, (-1, self.head)).transpose(1, 2)
        turned = _rotated(heads[:, :wide], turn)
        room[0][spots[0], :, spots[1]] = turned[:, self.heads :].transpose(1, 2)
        room[1][spots[0], :, spots[1]] = heads[:, wide:].transpose(1, 2)
        return turned[:, : self.heads].reshape(len(qkv), self.key_heads, -1, self.head)

    def _joined(self, seen_BKXH: Tensor) -> Tensor:
        rows = len(seen_BKXH)
        return seen_BKXH.reshape(rows, self.heads, -1, self.head).transpose(1, 2).flatten(2)

    def _mask(self, place_BT: Tensor, until: int) -> Tensor | None:
        """Which tokens each query sees, the queries of a group one behind the other; None where all see all."""
        import torch

        if place_BT.shape == (1, 1):
            return None
        seen_BTS = torch.arange(until, device=self.device) <= place_BT[..., None]
        return seen_BTS[:, None].repeat(1, 1, self.heads // self.key_heads, 1)

    def _normed(self, states: Tensor, weight_D: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.rms_norm(states, weight_D.shape, weight_D, self.eps)

    def _grow(self, length: int) -> None:
        have = self.keys[0].shape[2]
        if length <= have:
            return
        more = -(-length // GROW) * GROW
        for room in (self.keys, self.values):
            for i, old in enumerate(room):
                room[i] = self._room(len(old), more)
                room[i][:, :, :have] = old

    def rewind(self, slot: int, length: int) -> None:
        """Forget what the slot has read beyond `length` tokens."""
        del self.held[slot][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`."""
        import torch

        with torch.inference_mode():
            for room in (*self.keys, *self.values):
                room[target, :, :length] = room[source, :, :length]
        self.held[target] = self.held[source][:length]


def linear(layers: list[Any]) -> Linear:
    """Linear layers of one input as one product; in bfloat16 on a CPU with weights laid out for it where that works."""
    import torch

    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [getattr(layer, "bias", None) for layer in layers]
    bias = None
    if any(b is not None for b in biases):
        zeros = [torch.zeros(len(layer.weight), dtype=weight.dtype) for layer in layers]
        bias = torch.cat([z if b is None else b.detach() for b, z in zip(biases, zeros, strict=True)])
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and prepacks():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: torch.nn.functional.linear(x, weight, bias)


def prepacks() -> bool:
    """Whether oneDNN's laid-out weights give here what a plain product gives: the calls are torch's own, not public."""
    import torch

    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(found.float(), (x.float() @ weight.float().T), rtol=0.02, atol=0.2)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        qkv=linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=linear([attention.o_proj]),
        gate_up=linear([mlp.gate_proj, mlp.up_proj]),
        down=linear([mlp.down_proj]),
        norm_D=layer.input_layernorm.weight.detach(),
        norm_mlp_D=layer.post_attention_layernorm.weight.detach(),
    )


def _rotated(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (Su et al. 2021) of heads (B, heads, T, H)."""
    import torch

    cos, sin = turn
    low, high = heads.chunk(2, -1)
    return heads * cos + torch.cat((-high, low), -1) * sin
