"""What passes between the API and those who answer it: a request, pieces of answers, refusals.

Whoever answers is an `Answerer`. One that works token by token is in `tokenwise.py`; one that works on text gets the
same request and gives the same pieces.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.alignment import Sampling
from trimtab.errors import TrimtabError
from trimtab.methods.debates._base import Case, DebateProtocol
from trimtab.methods.guides._base import Guide
from trimtab.methods.searches._base import Search
from trimtab.models.asked import Finish

Prompt = str | list[int] | list[dict[str, str]]
"""Text, token ids, or the messages of a chat."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered, as HTTP and OpenAI's clients know it."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


class Refused(TrimtabError):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, message, code, param)

    @classmethod
    def by(cls, refusal: Refusal) -> "Refused":
        """The refusal, raised."""
        return cls(refusal.status, refusal.message, code=refusal.code, param=refusal.param)


@dataclass(frozen=True)
class Given:
    """A completion that is scored, not drawn; a whole one has `ended`."""

    completion: str | list[int]
    ended: bool = False


@dataclass(frozen=True)
class Request:
    """`n` completions of every prompt; completion i of prompt p has the index p * n + i."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: int
    n: int = 1
    guide: Guide | Search | None = None
    """No guide: the base alone."""
    stop: tuple[str, ...] = ()
    likeliest: int | None = None
    """How many of the likeliest tokens are told with every token; None: no log-probs are asked for."""
    echo: bool = False
    """The prompt is part of the answer."""
    draws: bool = True
    """False: nothing is written behind the prompt, or behind what is given."""
    given: tuple[Given, ...] = ()
    """One for each prompt: a completion that is only scored."""
    debate: "Debated | None" = None
    """What is argued over, where the model is a debate."""
    bias: dict[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def rows(self) -> int:
        """Completions in all."""
        return len(self.prompts) * self.n


@dataclass(frozen=True)
class Debated:
    """A question with two answers, and how it is argued over."""

    case: Case
    protocol: DebateProtocol
    keep: bool = False
    """Its transcript is kept in MLflow."""


@dataclass(frozen=True)
class Likely:
    """A token that could have come, and its natural log-prob."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of an answer, its log-prob after fusion and before temperature, and what each model said of it.

    The first token of an echoed prompt has no log-prob. The end token is `hidden`: it is no part of the text.
    """

    id: int
    text: str
    bytes: bytes
    offset: int
    """Characters of the answer before it."""
    logprob: float | None
    likeliest: tuple[Likely, ...]
    said: dict[str, float]
    """Log-prob by model, of those that were asked."""
    weights: dict[str, float]
    source: str
    """The model that it comes from, `fused` where several counted."""
    drafted: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Spent:
    """What an answer cost: tokens of the prompt and of the answer as its reader counts them, and by model."""

    prompt: int
    completion: int
    members: dict[str, dict[str, int]]
    """prompt, decode, and accepted: drafted tokens that were kept."""


@dataclass(frozen=True)
class Piece:
    """Text of one answer that is final, with its tokens where there are any; the last piece says why it ends."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    spent: Spent | None = None
    told: tuple[dict[str, Any], ...] = ()
    """What a debate tells beside its text, in order."""


@dataclass(frozen=True)
class Opened:
    """Comes first: the request is being answered, by this version of the ensemble."""

    version: str


Event = Opened | Piece | Refusal


@dataclass(frozen=True)
class State:
    """How an ensemble stands."""

    version: str
    slots: int
    in_use: int
    waiting: int

    @classmethod
    def of_all(cls, version: str, states: "Iterable[State | None]") -> "State":
        """How all of an ensemble's models stand together; those without slots count nothing."""
        found = [one for one in states if one]
        slots, in_use = sum(one.slots for one in found), sum(one.in_use for one in found)
        return cls(version, slots, in_use, sum(one.waiting for one in found))


class Answerer(Protocol):
    """An ensemble: what turns a request into pieces of its answers."""

    version: str
    """A hash of all that decides an answer."""

    def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Pieces as they become final. Raises TrimtabError; whoever leaves early must free what the request held."""
        ...

    def state(self) -> State:
        """Slots and who waits for one. Raises TrimtabError where it can answer no more."""
        ...

    def close(self) -> None:
        """Stop, and let go of the models."""
        ...


class Backend(Protocol):
    """An answerer as the API reaches it, in this process or in another."""

    def answer(self, request: Request) -> AsyncIterator[tuple[Event, ...]]:
        """`Opened`, then what comes, several at once where several are there; a refusal ends it."""
        ...

    async def state(self) -> State | Refusal:
        """A refusal where it cannot be reached, or can answer no more."""
        ...
