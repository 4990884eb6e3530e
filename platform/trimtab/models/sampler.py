"""A model of this process as a search sees it: continuations behind its prompt, and log-probs of whole responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trimtab.alignment import Sampling
from trimtab.lm import Generated
from trimtab.methods.searches._base import Response, Sampler
from trimtab.models.asked import Asked, Told

AskAll = Callable[[list[Asked]], list[list[Told]]]
"""What a decoder of the model alone tells of requests that run side by side."""


class LocalSampler:
    """Draws continuations of responses to a prompt."""

    def __init__(self, ask: AskAll, prompt: list[int], sampling: Sampling) -> None:
        self.ask, self.prompt, self.sampling = ask, prompt, sampling

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        """A continuation of each by at most so many tokens, drawn with random numbers of its own seed."""
        sampling = self.sampling.model_copy(update={"max_new_tokens": most})
        asked = [Asked((self.prompt + list(ids),), sampling, seed) for ids, seed in zip(responses, seeds, strict=True)]
        return [
            Generated([one.id for one in told], [one.logprob for one in told], ended=told[-1].finish == "stop")
            for told in self.ask(asked)
        ]


class Remembered:
    """A sampler whose responses' log-probs are kept, token by token."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.logprobs: dict[tuple[int, ...], list[float]] = {(): []}

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        """As the sampler gives them."""
        drawn = self.sampler(responses, most, seeds)
        for ids, new in zip(responses, drawn, strict=True):
            self.logprobs[*ids, *new.ids] = [*self.logprobs[ids], *new.logprobs]
        return drawn


class LocalScorer:
    """The log-prob of a response behind a prompt; `read` gives its tokens as this model knows them."""

    def __init__(self, ask: AskAll, prompt: list[int], read: Callable[[Response], list[int]]) -> None:
        self.ask, self.prompt, self.read = ask, prompt, read

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """One sum a response; 0 for one without a token."""
        plain = Asked((self.prompt,), Sampling(max_new_tokens=1), seed=0, score_only=True)
        forced = [tuple(self.read(response)) for response in responses]
        told = iter(self.ask([replace(plain, forced=ids) for ids in forced if ids]))
        return [sum(one.logprob for one in next(told)) if ids else 0.0 for ids in forced]
