"""OpenAI's requests, as far as they can be honoured. Fields that nobody knows are let through, to be warned of."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from trimtab.alignment import Sampling
from trimtab.serving.answer import Given, Prompt, Refused, Request
from trimtab.serving.config import Limits

TOP = 20
"""Likeliest tokens that may be asked for."""
WITHOUT = ("tools", "functions", "audio", "suffix")
"""Fields that change what an answer is; whoever gives them must not be left to think that they were heeded."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]


class Lenient(BaseModel):
    """Null stands for a field that is not given."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that nobody knows. Raises Refused for those that cannot be ignored."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        if cannot := next((name for name in WITHOUT if extra.get(name)), None):
            raise Refused(400, f"{cannot}: is not supported here; leave it out", param=cannot)
        return extra


class StreamOptions(Lenient):
    include_usage: bool | None = None


class ModelRequest(Lenient):
    """Which model, and how it is steered."""

    model: Text
    guidance: dict[str, Any] | None = Field(None, description="another method, other numbers; trace: true")


class GenerateRequest(ModelRequest):
    """What chats and completions have in common."""

    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="beyond OpenAI; 0 and -1 keep all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Any = None

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if any(not token.isdecimal() or len(token) > 9 for token in bias or {}):
            raise ValueError("the keys are token ids")
        return bias

    @property
    def like_chat(self) -> bool:
        """Whether log-probs are told in the form that chats have."""
        return True

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def asks(self, prompts: tuple[Prompt, ...], most: int, limits: Limits, **more: Any) -> Request:
        """The request, with `most` tokens an answer. Raises Refused where it is over the limits."""
        n, seed = self.n or 1, secrets.randbits(63) if self.seed is None else self.seed
        _at_most(limits.n, n, "n")
        _at_most(limits.max_tokens, most, "max_tokens")
        _at_most(limits.prompts, len(prompts), "prompt")
        return Request(
            prompts=prompts,
            sampling=Sampling(
                max_new_tokens=max(1, most),
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else max(self.top_p, 1e-6),
                top_k=max(0, self.top_k or 0),
            ),
            seed=seed,
            n=n,
            stop=self.stops,
            bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            presence=self.presence_penalty or 0.0,
            frequency=self.frequency_penalty or 0.0,
            **more,
        )


class Part(Lenient):
    type: Literal["text"]
    text: Text


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1)]

    @property
    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1)]


class DebateAsked(BaseModel):
    """What is argued over: two answers to the question, which is the last message; fewer turns and words than usual."""

    model_config = ConfigDict(extra="forbid")
    answers: Annotated[list[Annotated[Text, Field(min_length=1, max_length=2000)]], Field(min_length=2, max_length=2)]
    source: Annotated[Text, Field(max_length=20000)] | None = Field(None, description="a text that speakers may quote")
    turns: int | None = Field(None, ge=1)
    words: int | None = Field(None, ge=1)
    keep: bool = Field(False, description="keep the transcript as a trace in MLflow")


class ResponseFormat(Lenient):
    type: Literal["text"]


class ChatRequest(GenerateRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP)
    response_format: ResponseFormat | None = None
    debate: DebateAsked | None = Field(None, description="where the model is a debate: what is argued over, how long")

    def request(self, limits: Limits, **more: Any) -> Request:
        """Raises Refused."""
        if self.top_logprobs and not self.logprobs:
            raise Refused(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
        most = self.max_completion_tokens or self.max_tokens or limits.max_tokens
        told = (self.top_logprobs or 0) if self.logprobs else None
        return self.asks(([message.plain for message in self.messages],), most, limits, likeliest=told, **more)


class CompletionRequest(GenerateRequest):
    """POST /v1/completions. `logprobs: true`, with `top_logprobs`, gives them in the form that chats have."""

    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: bool | Annotated[int, Field(ge=0, le=TOP)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP)
    best_of: int | None = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return (self.prompt,) if one else tuple(self.prompt)

    @property
    def like_chat(self) -> bool:
        return self.logprobs is True

    def request(self, limits: Limits, **more: Any) -> Request:
        """Raises Refused."""
        if self.best_of not in (None, self.n or 1):
            raise Refused(400, f"best_of: can only be n, which is {self.n or 1}", param="best_of")
        most = 16 if self.max_tokens is None else self.max_tokens
        if most == 0 and not self.echo:
            raise Refused(400, "max_tokens: 0 needs echo: true", param="max_tokens")
        told = None if self.logprobs is False else self.logprobs
        if self.like_chat:
            told = self.top_logprobs or 0
        echo = bool(self.echo)
        return self.asks(self.prompts, most, limits, likeliest=told, echo=echo, draws=most > 0, **more)


class ScoreRequest(ModelRequest):
    """POST /v1/score: log-probs of given completions, of every model and fused."""

    prompt: Text | Ids | None = None
    messages: Messages | None = None
    completion: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1)]
    ended: bool = Field(False, description="the completions are whole: their end token is scored too")

    @property
    def completions(self) -> list[str | list[int]]:
        one = isinstance(self.completion, str) or isinstance(self.completion[0], int)
        return [self.completion] if one else self.completion

    def request(self, limits: Limits, **more: Any) -> Request:
        """Raises Refused."""
        if (self.prompt is None) == (self.messages is None):
            raise Refused(400, "give either prompt or messages", param="prompt")
        _at_most(limits.prompts, len(self.completions), "completion")
        prompt = self.prompt if self.messages is None else [message.plain for message in self.messages]
        given = tuple(Given(completion, self.ended) for completion in self.completions)
        return Request((prompt,) * len(given), Sampling(), 0, given=given, draws=False, likeliest=0, **more)


def _at_most(most: int, asked: int, name: str) -> None:
    if asked > most:
        raise Refused(400, f"{name}: at most {most} here (given: {asked})", param=name)
