"""A model behind any server that speaks OpenAI's /v1/completions: its text and its log-probs, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING, Any

from trimtab.errors import ServerError
from trimtab.lm import Generated
from trimtab.methods.guides._nudging import Token, Window
from trimtab.methods.searches._base import Response

if TYPE_CHECKING:
    import httpx2

    from trimtab.alignment import Sampling

AT_ONCE = 8
"""Requests of one answer that a server gets side by side."""


class Remote:
    """A model of a server; `client` holds its address and key. `usage`: prompt and answer tokens that it counted."""

    def __init__(self, client: httpx2.Client, model: str) -> None:
        self.client, self.model = client, model
        self.usage: list[tuple[int, int]] = []

    def completion(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """The first choice, its log-probs among the fields. Raises ServerError for a server that gives none."""
        import httpx2

        body = {"model": self.model, "prompt": prompt, "logprobs": 1} | fields
        try:
            answer = self.client.post("completions", json=body)
        except httpx2.HTTPError as error:
            raise ServerError(f"{self.client.base_url} does not answer: {error}") from error
        if answer.is_error:
            said = f"{answer.status_code} {answer.text[:300]}"
            raise ServerError(f"{self.client.base_url} refused {self.model}: {said}")
        body = answer.json()
        usage, choice = body.get("usage") or {}, body["choices"][0]
        self.usage.append((usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)))
        told = choice.get("logprobs") or {}
        texts, logprobs = told.get("tokens"), told.get("token_logprobs")
        if texts is None or logprobs is None or len(texts) != len(logprobs):
            raise ServerError(
                f"{self.client.base_url}: {self.model} tells no log-probs of its tokens, which are needed"
            )
        return choice


class RemoteWriter:
    """Writes with a model of a server; `prompt` is text in its own format."""

    def __init__(self, remote: Remote, prompt: str) -> None:
        self.remote, self.prompt = remote, prompt

    def write(self, text: str, most: int) -> Window:
        """At most so many tokens that follow its prompt and this much of the answer. Raises ServerError."""
        choice = self.remote.completion(self.prompt + text, max_tokens=most, temperature=0)
        tokens = [Token(piece, exp(logprob)) for piece, logprob in visible(choice)]
        return Window(tuple(tokens), stopped=choice.get("finish_reason") == "stop")

    def first_tokens(self, text: str, words: Sequence[str]) -> Iterator[Token | None]:
        """The token that follows `text` and the first word, the first two words, and so on: a call each, as needed."""
        for begun in accumulate(words):
            window = self.write(text + begun, 1)
            yield window.tokens[0] if window.tokens else None


class RemoteSampler:
    """Draws continuations with a model of a server. Its tokens are numbered as they are first seen."""

    def __init__(self, remote: Remote, prompt: str, sampling: Sampling) -> None:
        self.remote, self.prompt, self.sampling = remote, prompt, sampling
        self._texts: list[str] = [""]
        self._ids: dict[str, int] = {"": 0}

    def __call__(self, responses: Sequence[tuple[int, ...]], most: int, seeds: Sequence[int]) -> list[Generated]:
        """A continuation of each, drawn at the server. Raises ServerError."""
        fields = {"max_tokens": most, "temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            texts = [self.prompt + self.text(ids) for ids in responses]
            drawn = pool.map(
                lambda one: self.remote.completion(one[0], seed=one[1], **fields), zip(texts, seeds, strict=True)
            )
            return [self._generated(choice) for choice in drawn]

    def text(self, ids: Sequence[int]) -> str:
        """Their text; the end token, number 0, has none."""
        return "".join(self._texts[i] for i in ids)

    def _generated(self, choice: dict[str, Any]) -> Generated:
        told = visible(choice)
        ended = choice.get("finish_reason") == "stop"
        ids = [self._ids.setdefault(text, len(self._ids)) for text, _ in told]
        self._texts += list(self._ids)[len(self._texts) :]
        return Generated(ids + [0] * ended, [p for _, p in told] + [0.0] * ended, ended=ended)


class RemoteScorer:
    """The log-prob of responses under a model of a server that echoes prompts; that one ended counts nothing."""

    def __init__(self, remote: Remote, prompt: str, text: Callable[[Sequence[int]], str]) -> None:
        self.remote, self.prompt, self.text = remote, prompt, text

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """One sum a response. Raises ServerError."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._score, responses))

    def _score(self, response: Response) -> float:
        choice = self.remote.completion(self.prompt + self.text(response.ids), max_tokens=0, temperature=0, echo=True)
        place, total = 0, 0.0
        for piece, logprob in visible(choice):
            place += len(piece)
            total += (logprob or 0.0) if place > len(self.prompt) else 0.0
        return total


def visible(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """The tokens of a choice's text, and their log-probs; the end token, if it is told at all, stands behind the text.

    What a token adds to the text is where the next one starts: one that is a part of a character may add nothing.
    """
    text, told = choice["text"], choice["logprobs"]
    ends = list(accumulate(map(len, told["tokens"])))
    if offsets := told.get("text_offset"):
        ends = [offset - offsets[0] for offset in offsets[1:]] + [len(text)]
    starts = [0, *ends[:-1]]
    spans = zip(starts, ends, told["token_logprobs"], strict=True)
    return [(text[start:end], logprob) for start, end, logprob in spans if start < len(text)]
