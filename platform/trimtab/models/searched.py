"""A base whose completions a search chooses, as a language model draws them: many searches side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trimtab.alignment import Sampling
from trimtab.lm import Generated
from trimtab.methods.searches._base import Ratio, Search
from trimtab.models.decode import Decoder
from trimtab.models.sampler import LocalSampler, LocalScorer, Remembered
from trimtab.models.together import Together


class SearchedLM:
    """Draws by a search; base and helpers, each in a decoder of its own, share one vocabulary."""

    def __init__(self, search: Search, base: Decoder, helpers: Sequence[Decoder]) -> None:
        self.search, self.base, self.helpers = search, base, helpers
        self.together = Together([base, *helpers])

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt, by a search with random numbers of its seed; log-probs are the base's."""
        pairs = zip(prompts, seeds, strict=True)
        return self.together([partial(self._search, prompt, seed, sampling) for prompt, seed in pairs])

    def _search(self, prompt: list[int], seed: int, sampling: Sampling) -> Generated:
        ask = self.together.ask
        sampler = Remembered(LocalSampler(partial(ask, self.base), prompt, sampling))
        scorers = [LocalScorer(partial(ask, one), prompt, lambda response: list(response.ids)) for one in self.helpers]
        *_, last = self.search(sampler, Ratio(tuple(scorers)), most=sampling.max_new_tokens, seed=seed)
        best = last.kept[0].response
        return Generated(list(best.ids), sampler.logprobs[best.ids], ended=best.ended)
