"""Decoding for tests: scripted steppers, tiny random networks, two guides, and rows of every kind."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.alignment import Sampling
from trimtab.lm import ScriptedLM
from trimtab.methods.guides._base import Blend, Fused, Linear
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.stepper import Read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScriptedStepper:
    """A ScriptedLM in slots."""

    def __init__(self, lm: ScriptedLM, slots: int = 4, context: int = 64) -> None:
        self.lm, self.context = lm, context
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.reads: list[list[tuple[int, int]]] = []

    def read(self, rows: Read, *, last: int = 1) -> Tensor:
        """logits_BTV after each of the `last` tokens of every row."""
        found = []
        for slot, ids in rows:
            self.held[slot] = self.held[slot] + ids
            whole = self.held[slot]
            found.append(self.lm.next_logprobs([whole[: len(whole) - i] for i in reversed(range(last))]))
        self.reads.append([(slot, len(ids)) for slot, ids in rows])
        return torch.stack(found)

    def rewind(self, slot: int, length: int) -> None:
        self.held[slot] = self.held[slot][:length]

    def copy(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:length]


def tiny_llama(seed: int = 0, *, layers: int = 2, vocabulary: int = 50) -> torch.nn.Module:
    """A random network of Llama's shape with two query heads a key head, in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


END = 0


class Sum(Linear):
    """A weighted sum."""

    kind: str = "sum"
    alpha: float = 1.0

    def weights(self, models: int) -> tuple[float, ...]:
        return (1.0,) + (self.alpha,) * (models - 1)


class Mean(Blend):
    """A mixture, which no weighted sum of log-probs is."""

    kind: str = "mean"

    def __call__(self, logprobs_MBV: torch.Tensor) -> Fused:
        weights_BM = logprobs_MBV.new_full((logprobs_MBV.shape[1], len(logprobs_MBV)), 1 / len(logprobs_MBV))
        return Fused(logprobs_MBV.logsumexp(0) - math.log(len(logprobs_MBV)), weights_BM)


def random_lm(seed: int, vocabulary: int = 6) -> ScriptedLM:
    """Log-probs that depend on the last two tokens."""

    def rule(context: tuple[int, ...]) -> list[float]:
        draw = random.Random(f"{seed}{context[-2:]}")
        return torch.tensor([draw.gauss(0, 2) for _ in range(vocabulary)]).log_softmax(-1).tolist()

    return ScriptedLM(rule, end_ids=frozenset({END}))


def decoder(models: int = 2, slots: int = 3, context: int = 64, **options) -> Decoder:
    steppers = [ScriptedStepper(random_lm(m), slots, context) for m in range(models)]
    return Decoder(steppers, ends=[frozenset({END})] * models, vocabulary=6, **options)


def run(decoder: Decoder, asked: list[Asked]) -> list[list[Told]]:
    tickets = [decoder.add(one) for one in asked]
    told: dict[int, list[Told]] = {ticket: [] for ticket in tickets}
    while decoder.busy:
        for one in decoder.step():
            told[one.ticket].append(one)
    return [told[ticket] for ticket in tickets]


def plain(told: list[Told]) -> list[tuple]:
    return [(one.id, round(one.logprob, 4), one.finish) for one in told]


def mixed() -> list[Asked]:
    """Rows of every kind and length."""
    guides = [None, Sum(alpha=0.5), Mean(), Sum(alpha=2.0), Sum(alpha=0.0), Mean(), Sum(alpha=0.5)]
    return [
        Asked(
            prompts=tuple([1 + (i + j + m) % 5 for j in range(2 + 3 * i)] for m in range(2)),
            sampling=Sampling(max_new_tokens=4 + i, temperature=(1.0, 0.0, 0.7)[i % 3], top_k=(0, 3)[i % 2]),
            seed=i,
            guide=guide,
        )
        for i, guide in enumerate(guides)
    ]


def letters(words: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of letters, and of a few letters of these words at once; it ends with token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(words)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
