"""An ensemble as a language model: what LanguageModel says of one network, said of several and their guide.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.lm import Generated, TokenScores
from trimtab.models.asked import Asked, Told
from trimtab.models.decode import Decoder
from trimtab.models.language import end_ids, load_language
from trimtab.models.llama import LlamaStepper, is_llama
from trimtab.models.network import device, load_tokenizer
from trimtab.models.source import model_folder
from trimtab.models.stepper import AnyStepper, Stepper

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from trimtab.methods.guides._base import Guide
    from trimtab.parts import ModelSpec


class GuidedLM:
    """An LM over the vocabulary that base and helpers share; every model sees the same prompt."""

    def __init__(self, decoder: Decoder, guide: Guide | None) -> None:
        self.decoder, self.guide = decoder, guide

    def next_logprobs(self, contexts: list[list[int]]) -> Tensor:
        """logprobs_BV in fp32 of the token after each context."""
        import torch

        vocabulary = self.decoder.fusing.vocabulary
        asked = [replace(self._asked(ids, Sampling(max_new_tokens=1), 0), tell=vocabulary) for ids in contexts]
        found_BV = torch.empty(len(contexts), vocabulary)
        for b, (told,) in enumerate(self._run(asked)):
            ids, values = zip(*told.likeliest, strict=True)
            found_BV[b, list(ids)] = torch.tensor(values)
        return found_BV

    def score(self, prompts: list[list[int]], completions: list[list[int]]) -> list[TokenScores]:
        """log p of every completion token under the fused distribution, given the prompt and the tokens before it."""
        return [
            TokenScores([t.id for t in told], [t.logprob for t in told]) for told in self._read(prompts, completions)
        ]

    def ratio(self, prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
        """log p - log p_base of every completion, both read in one pass."""
        return [math.fsum(t.logprob - t.said[0] for t in told) for told in self._read(prompts, completions)]

    def _read(self, prompts: list[list[int]], completions: list[list[int]]) -> list[list[Told]]:
        asked = [
            replace(self._asked(prompt, Sampling(max_new_tokens=1), 0), forced=tuple(ids), score_only=True)
            for prompt, ids in zip(prompts, completions, strict=True)
        ]
        told = iter(self._run([one for one in asked if one.forced]))
        return [next(told) if one.forced else [] for one in asked]

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt, drawn with random numbers of its seed; log-probs are those after fusion."""
        told = self._run([self._asked(*one) for one in zip(prompts, [sampling] * len(prompts), seeds, strict=True)])
        return [
            Generated([t.id for t in one], [t.logprob for t in one], ended=one[-1].finish == "stop") for one in told
        ]

    def _asked(self, prompt: list[int], sampling: Sampling, seed: int) -> Asked:
        return Asked((prompt,) * len(self.decoder.models), sampling, seed, guide=self.guide)

    def _run(self, asked: list[Asked]) -> list[list[Told]]:
        told: dict[int, list[Told]] = {self.decoder.add(one): [] for one in asked}
        while self.decoder.busy:
            for one in self.decoder.step():
                told[one.ticket].append(one)
        return list(told.values())


def open_stepper(spec: ModelSpec, cache: Path, *, slots: int, context: int) -> tuple[Stepper, frozenset[int]]:
    """A model in slots, and the tokens that it ends with: the fast step where the network has its shape."""
    model = load_language(spec, cache).to(device())
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or context
    ends = end_ids(model, load_tokenizer(model_folder(spec.source, cache, revision=spec.revision)))
    kind = LlamaStepper if is_llama(model) else AnyStepper
    return kind(model, slots, min(context, most)), ends


def open_ensemble(
    models: Mapping[str, ModelSpec], cache: Path, *, slots: int, context: int
) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """A decoder of models that share the first one's vocabulary, and the first one's tokenizer.

    Raises ModelError where a model has another vocabulary.
    """
    tokenizer = shared_tokenizer(models, cache)
    opened = [open_stepper(spec, cache, slots=slots, context=context) for spec in models.values()]
    steppers, ends = zip(*opened, strict=True)
    return Decoder(steppers, ends=ends, vocabulary=len(tokenizer)), tokenizer


def shared_tokenizer(models: Mapping[str, ModelSpec], cache: Path) -> PreTrainedTokenizerBase:
    """The first one's. Raises ModelError where a model has another vocabulary."""
    folders = {name: model_folder(spec.source, cache, revision=spec.revision) for name, spec in models.items()}
    tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
    base, *helpers = tokenizers
    for name in helpers:
        check_vocabulary(base, tokenizers[base], name, tokenizers[name])
    return tokenizers[base]


def check_vocabulary(name: str, own: PreTrainedTokenizerBase, other: str, its: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where one id stands for two strings: log-probs of tokens would be summed that are not one."""
    ours, theirs = own.get_vocab(), its.get_vocab()
    if ours == theirs:
        return
    apart = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])
    raise ModelError(
        f"{other} has another vocabulary than {name} ({len(theirs)} and {len(ours)} tokens; {apart[0][0]!r} is the "
        "first that differs): guides that work token by token need one vocabulary. Take a helper of the same family, "
        "or what works on text: nudging, best_of_n, chunk_beam"
    )
