"""One model of an ensemble that works on text: what it does in an answer, and its answers alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from trimtab.alignment import Sampling
from trimtab.methods.guides._nudging import Writer
from trimtab.methods.searches._base import Response, Sampler, Scorer
from trimtab.models.asked import Asked, Told
from trimtab.models.sampler import LocalSampler, LocalScorer
from trimtab.models.writer import LocalWriter
from trimtab.serving.answer import Given, Piece, Prompt, Request, State
from trimtab.serving.tokenwise import Tokenwise

Text = Callable[[Sequence[int]], str]


class Part(Protocol):
    """A model's part in one answer; it is called from a thread. Everything may raise ModelError."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def drawn(self) -> int:
        """Tokens that it wrote or read behind its prompt."""
        ...

    def writer(self) -> Writer:
        """As nudging sees it."""
        ...

    def sampler(self, sampling: Sampling) -> tuple[Sampler, Text]:
        """As a search sees the base, and what its tokens say."""
        ...

    def scorer(self, base: "Part", text: Text) -> Scorer:
        """As a search sees a helper of that base."""
        ...

    def leave(self) -> None:
        """The answer is over: what is under way ends."""
        ...


class Voice(Protocol):
    """A model that takes part in answers."""

    name: str

    def part(self, prompt: Prompt, loop: asyncio.AbstractEventLoop) -> Part:
        """In an answer to this prompt. Raises Refused for one that it cannot read."""
        ...

    def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Its own. Raises Refused."""
        ...

    def state(self) -> State | None:
        """None where it holds no slots. Raises TrimtabError where it can answer no more."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class LocalVoice:
    """A model in an engine of its own."""

    def __init__(self, member: Tokenwise) -> None:
        self.member, self.name = member, member.readers[0].name

    def part(self, prompt: Prompt, loop: asyncio.AbstractEventLoop) -> "LocalPart":
        """Raises Refused."""
        return LocalPart(self.member, prompt, loop)

    def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Token by token, as a Tokenwise does."""
        return self.member.answer(replace(request, guide=None))

    def state(self) -> State:
        """Raises EngineStopped."""
        return self.member.state()

    def close(self) -> None:
        """Stop its engine."""
        self.member.close()


class LocalPart:
    """One answer's requests to an engine."""

    def __init__(self, member: Tokenwise, prompt: Prompt, loop: asyncio.AbstractEventLoop) -> None:
        self.member, self.prompt, self.loop = member, prompt, loop
        self.reader, self.over, self.drawn = member.readers[0], threading.Event(), 0
        self.ids = self.reader.ids(prompt)
        self._asked: asyncio.Future | None = None

    @property
    def prompt_tokens(self) -> int:
        """As its tokenizer counts."""
        return len(self.ids)

    def writer(self) -> LocalWriter:
        """As nudging sees it."""
        ends = self.member.engine.decoder.ends[0]
        return LocalWriter(lambda asked: self.ask([asked])[0], self.reader.tokenizer, self.ids, ends)

    def sampler(self, sampling: Sampling) -> tuple[LocalSampler, Text]:
        """As a search sees the base."""
        return LocalSampler(self.ask, self.ids, sampling), lambda ids: self.member.writer.tokens.decode(list(ids))

    def scorer(self, base: Part, text: Text) -> LocalScorer:
        """As a search sees a helper: it reads the base's tokens where they are its own too, else their text."""
        vocabulary = self.reader.tokenizer.get_vocab()
        same = isinstance(base, LocalPart) and base.reader.tokenizer.get_vocab() == vocabulary

        def read(response: Response) -> list[int]:
            if same:
                return list(response.ids)
            return self.reader.given(self.prompt, Given(text(response.ids), response.ended))[1]

        return LocalScorer(self.ask, self.ids, read)

    def ask(self, asked: list[Asked]) -> list[list[Told]]:
        """What is told of several that run side by side. Raises CancelledError once the answer is over."""
        if self.over.is_set():
            raise CancelledError
        self._asked = asyncio.run_coroutine_threadsafe(self._all(asked), self.loop)
        told = self._asked.result()
        self.drawn += sum(map(len, told))
        return told

    def leave(self) -> None:
        """Nobody waits any more."""
        self.over.set()
        if self._asked:
            self._asked.cancel()

    async def _all(self, asked: list[Asked]) -> list[list[Told]]:
        tasks = [asyncio.create_task(self._told(one)) for one in asked]
        try:
            return [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _told(self, asked: Asked) -> list[Told]:
        async with aclosing(self.member.engine.stream(asked)) as stream:
            return [told async for told in stream]
