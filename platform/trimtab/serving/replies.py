"""OpenAI's answers, made of pieces: whole ones, and chunks of a stream.

Log-probs are those of the fused distribution, before temperature. Only fields that are set are sent.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from trimtab.serving.answer import Likely, Piece, Spent, Token
from trimtab.serving.guidance import Steering

LEAST = -9999.0
"""Stands for the log-prob of what never comes, which JSON has no number for."""


PASSING = {"turn", "delta"}
"""What a debate tells only while it goes on."""


class Body(BaseModel):
    """A JSON object of which only what was set is sent."""

    def json_text(self) -> str:
        return self.model_dump_json(exclude_unset=True)


class Problem(Body):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """What a request that is not answered gets."""

    error: Problem


class Usage(Body):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatTop(Body):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ChatTop):
    top_logprobs: list[ChatTop]


class ChatLogprobs(Body):
    content: list[ChatToken]


class CompletionLogprobs(Body):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Trace(Body):
    """What became of one token: who said what, how much each counted, and what was searched for it."""

    token: str
    source: str
    said: dict[str, float]
    weights: dict[str, float]
    drafted: bool
    alpha: float | None = None


class Words(Body):
    """A chat's message, or what a chunk adds to it."""

    role: str | None = None
    content: str = ""
    refusal: None = None


class Choice(Body):
    """One answer, or what a chunk adds to it; `text` in completions, `message` or `delta` in chats."""

    index: int
    text: str | None = None
    message: Words | None = None
    delta: Words | None = None
    logprobs: ChatLogprobs | CompletionLogprobs | None = None
    finish_reason: str | None = None
    trace: list[Trace] | None = None
    debate: list[dict[str, Any]] | None = None


class Reply(Body):
    """An answer or a chunk of it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None
    guidance_usage: dict[str, dict[str, int]] | None = None


@dataclass
class Form:
    """How the pieces of one request's answers are written down."""

    model: str
    steering: Steering
    chat: bool
    logprobs: bool
    like_chat: bool
    usage: bool
    version: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    _begun: set[int] = field(default_factory=set)

    def whole(self, pieces: Sequence[Piece]) -> Reply:
        """The answer to a request that does not stream."""
        by_index: dict[int, list[Piece]] = {}
        for piece in pieces:
            by_index.setdefault(piece.index, []).append(piece)
        choices = []
        for index, own in sorted(by_index.items()):
            text, tokens = "".join(piece.text for piece in own), [token for piece in own for token in piece.tokens]
            said = self._words(text, role="assistant", refusal=None) | self._told(tokens)
            name = "message" if self.chat else "text"
            finish = next(piece.finish for piece in own if piece.finish)
            told = [one for piece in own for one in piece.told if one["event"] not in PASSING]
            said |= {"debate": told} if told else {}
            choices.append(Choice(index=index, **{name: said.pop("words")}, **said, finish_reason=finish))
        spent = [piece.spent for piece in pieces if piece.spent]
        return self._reply(choices, usage=usage(spent), guidance_usage=members_usage(spent))

    def chunks(self, piece: Piece) -> Iterator[Reply]:
        """What a stream says of one piece."""
        if self.chat and piece.index not in self._begun:
            self._begun.add(piece.index)
            yield self._chunk(piece.index, self._words("", role="assistant"), None)
        said = self._told(piece.tokens) | ({"debate": list(piece.told)} if piece.told else {})
        yield self._chunk(piece.index, self._words(piece.text) | said, piece.finish)

    def last(self, spent: Sequence[Spent]) -> Reply:
        """The chunk with the usage, for who asked for it."""
        return self._reply([], usage=usage(spent), guidance_usage=members_usage(spent))

    def _chunk(self, index: int, said: dict[str, Any], finish: str | None) -> Reply:
        words, name = said.pop("words"), "delta" if self.chat else "text"
        choice = Choice(index=index, **{name: words}, **({"logprobs": None} | said), finish_reason=finish)
        return self._reply([choice], **({"usage": None} if self.usage else {}))

    def _reply(self, choices: list[Choice], **more: Any) -> Reply:
        whole = "usage" in more and more["usage"] is not None and bool(choices)
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return Reply(
            id=name,
            object=kind,
            created=self.created,
            model=self.model,
            system_fingerprint=self.version,
            choices=choices,
            **more,
        )

    def _words(self, text: str, **more: Any) -> dict[str, Any]:
        return {"words": Words(content=text, **more) if self.chat else text}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Log-probs and trace of some tokens. The end token is told in the lists of completions only."""
        seen = [token for token in tokens if not token.hidden]
        told: dict[str, Any] = {"logprobs": None}
        if self.logprobs and self.like_chat:
            told["logprobs"] = ChatLogprobs(content=[chat_token(token) for token in seen])
        elif self.logprobs:
            told["logprobs"] = _lists(tokens)
        if self.steering.trace:
            told["trace"] = [self._trace(token) for token in seen]
        return told

    def _trace(self, token: Token) -> Trace:
        said = {name: finite(value) for name, value in token.said.items()}
        found = Trace(token=token.text, source=token.source, said=said, weights=token.weights, drafted=token.drafted)
        if self.steering.method == "fusion" and len(token.weights) == 3:
            found.alpha = list(token.weights.values())[1]
        return found


def chat_token(token: Token) -> ChatToken:
    """A token as chats tell it; the first of an echoed prompt has no log-prob."""
    top = [ChatTop(token=one.text, logprob=finite(one.logprob), bytes=list(one.bytes)) for one in token.likeliest]
    logprob = 0.0 if token.logprob is None else finite(token.logprob)
    return ChatToken(token=token.text, logprob=logprob, bytes=list(token.bytes), top_logprobs=top)


def _lists(tokens: Sequence[Token]) -> CompletionLogprobs:
    """Tokens as completions tell them; the token itself is among the likeliest, however many were asked for."""
    top = [
        None
        if token.logprob is None
        else {one.text: finite(one.logprob) for one in [*token.likeliest, Likely(token.text, b"", token.logprob)]}
        for token in tokens
    ]
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
        top_logprobs=top,
        text_offset=[token.offset for token in tokens],
    )


def finite(logprob: float) -> float:
    """A log-prob that JSON has a number for."""
    return max(logprob, LEAST)


def usage(spent: Sequence[Spent]) -> Usage:
    """OpenAI's counts: of tokens that the reader gave or sees."""
    prompt, completion = sum(one.prompt for one in spent), sum(one.completion for one in spent)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def members_usage(spent: Sequence[Spent]) -> dict[str, dict[str, int]]:
    """Tokens of prompts and answers by model."""
    found: dict[str, dict[str, int]] = {}
    for one in spent:
        for name, counts in one.members.items():
            own = found.setdefault(name, {})
            own.update({kind: own.get(kind, 0) + count for kind, count in counts.items()})
    return found
