"""A writer behind any server that speaks OpenAI's /v1/completions: its text and top-1 probabilities, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING, Any

from trimtab.errors import ModelError
from trimtab.methods.guides._nudging import Token, Window

if TYPE_CHECKING:
    import httpx2


class RemoteWriter:
    """Writes with a model of a server; `client` holds its address and key, `prompt` is text in its own format."""

    def __init__(self, client: httpx2.Client, model: str, prompt: str) -> None:
        self.client, self.model, self.prompt = client, model, prompt

    def write(self, text: str, most: int) -> Window:
        """At most so many tokens that follow its prompt and this much of the answer.

        Raises ModelError for a server that does not answer, or tells no log-probs.
        """
        choice = self._asked(self.prompt + text, most)
        told = choice.get("logprobs") or {}
        texts, logprobs = told.get("tokens"), told.get("token_logprobs")
        if texts is None or logprobs is None or len(texts) != len(logprobs):
            raise ModelError(
                f"{self.client.base_url}: {self.model} tells no log-probs of its tokens, which nudging reads"
            )
        tokens, length = [], 0
        for piece, logprob in zip(texts, logprobs, strict=True):
            if length < len(choice["text"]):  # the end token stands behind the text, if it is told at all
                tokens.append(Token(piece, exp(logprob)))
                length += len(piece)
        return Window(tuple(tokens), stopped=choice.get("finish_reason") == "stop")

    def first_tokens(self, text: str, words: Sequence[str]) -> Iterator[Token | None]:
        """The token that follows `text` and the first word, the first two words, and so on: a call each, as needed."""
        for begun in accumulate(words):
            window = self.write(text + begun, 1)
            yield window.tokens[0] if window.tokens else None

    def _asked(self, prompt: str, most: int) -> dict[str, Any]:
        import httpx2

        body = {"model": self.model, "prompt": prompt, "max_tokens": most, "temperature": 0, "logprobs": 1}
        try:
            answer = self.client.post("completions", json=body)
        except httpx2.HTTPError as error:
            raise ModelError(f"{self.client.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise ModelError(f"{self.client.base_url} refused {self.model}: {answer.status_code} {answer.text[:300]}")
        return answer.json()["choices"][0]
