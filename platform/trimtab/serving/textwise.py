"""An ensemble that works on text: its models write or score one answer together, whatever their tokenizers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import replace

from trimtab.lm import row_seed
from trimtab.methods.guides.nudging import Nudging
from trimtab.methods.searches._base import Search
from trimtab.serving.answer import Piece, Prompt, Refused, Request, Spent, State
from trimtab.serving.guidance import Alone
from trimtab.serving.nudged import nudged
from trimtab.serving.searched import searched
from trimtab.serving.text import Stops
from trimtab.serving.tokenwise import refused
from trimtab.serving.voices import Part, Voice

Work = Callable[[Request, Sequence[str], Sequence[Part]], Iterator[Piece]]
"""What an answer's thread does: pieces from the request, the models' names and their parts."""


class Textwise:
    """Answers with several models, each by itself; any one alone answers too."""

    def __init__(self, voices: Sequence[Voice], *, version: str) -> None:
        self.voices, self.version = tuple(voices), version

    def state(self) -> State:
        """The slots of all models. Raises EngineStopped."""
        return State.of_all(self.version, [voice.state() for voice in self.voices])

    def close(self) -> None:
        """Let go of all models."""
        for voice in self.voices:
            voice.close()

    async def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Pieces of all completions as they come. Raises Refused."""
        guide = request.guide
        if isinstance(guide, Nudging | Search):
            pieces = self._together(request, nudged if isinstance(guide, Nudging) else searched)
        else:
            pieces = self.voices[guide.model if isinstance(guide, Alone) else 0].answer(replace(request, guide=None))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _together(self, request: Request, work: Work) -> AsyncIterator[Piece]:
        wrong = {
            "completion": request.given,
            "echo": request.echo,
            "logit_bias": request.bias,
            "presence_penalty": request.presence,
            "frequency_penalty": request.frequency,
        }
        if found := [name for name, value in wrong.items() if value]:
            said = f"{found[0]}: {request.guide.kind} works on text and takes none; method none does"
            raise Refused(400, said, param=found[0])
        for p, prompt in enumerate(request.prompts):
            for i in range(request.n):
                one = replace(request, seed=row_seed(request.seed, str(p), i))
                async with aclosing(self._one(one, prompt, work)) as pieces:
                    async for piece in pieces:
                        yield replace(piece, index=p * request.n + i)

    async def _one(self, request: Request, prompt: Prompt, work: Work) -> AsyncIterator[Piece]:
        """One answer, made in a thread; leaving early ends what its parts have under way."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        parts = [await asyncio.to_thread(voice.part, prompt, loop) for voice in self.voices]
        names = [voice.name for voice in self.voices]

        def run() -> None:
            try:
                for piece in work(request, names, parts):
                    loop.call_soon_threadsafe(heard.put_nowait, piece)
            except (Exception, CancelledError) as error:  # noqa: BLE001  whatever it is, who waits must hear of it
                loop.call_soon_threadsafe(heard.put_nowait, error)

        task, stops, told = loop.run_in_executor(None, run), Stops(request.stop), 0
        try:
            while True:
                piece = await heard.get()
                if isinstance(piece, BaseException):
                    raise refused(piece) from piece
                text = stops.push(piece.text)
                told += len(piece.tokens)
                finish = "stop" if stops.stopped else piece.finish
                text += stops.flush() if finish and not stops.stopped else ""
                tokens = piece.tokens if request.likeliest is not None else ()
                yield Piece(0, text, tokens, finish, self._spent(names, parts, told) if finish else None)
                if finish:
                    return
        finally:
            for part in parts:
                part.leave()
            await asyncio.gather(task, return_exceptions=True)

    def _spent(self, names: Sequence[str], parts: Sequence[Part], told: int) -> Spent:
        read = {
            name: {"prompt": part.prompt_tokens, "decode": part.drawn} for name, part in zip(names, parts, strict=True)
        }
        return Spent(parts[0].prompt_tokens, told, read)
