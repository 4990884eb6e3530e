"""An ensemble that works token by token: models of one vocabulary in one engine."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from trimtab.errors import ModelError, ServerError, StageError
from trimtab.lm import row_seed
from trimtab.models.asked import Asked
from trimtab.serving.answer import Piece, Prompt, Refused, Request, State
from trimtab.serving.engine import Engine, EngineStopped
from trimtab.serving.members import Reader
from trimtab.serving.text import Tokens
from trimtab.serving.writing import Row, Writer, Writing


class Tokenwise:
    """Answers requests with the models of an engine; `readers`, the base's first, are theirs."""

    def __init__(
        self, readers: Sequence[Reader], engine: Engine, *, version: str, longest: int, draft: int | None = None
    ) -> None:
        self.readers, self.engine, self.version, self.draft = readers, engine, version, draft
        self.longest = min(longest, engine.decoder.context - 1)
        self.writer = Writer([reader.name for reader in readers], Tokens(readers[0].tokenizer))

    def state(self) -> State:
        """Raises EngineStopped."""
        if not self.engine.alive:
            raise EngineStopped("the decoder is no more")
        decoder = self.engine.decoder
        slots = len(decoder.models[0].held)
        return State(self.version, slots, slots - len(decoder.free), len(decoder.waiting))

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    async def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Pieces of all completions as they come. Raises Refused."""
        rows = await asyncio.to_thread(self.rows, request)
        heard: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        tasks = [asyncio.create_task(self._follow(row, request, heard)) for row in rows]
        try:
            left = len(rows)
            while left:
                piece = await heard.get()
                if isinstance(piece, Exception):
                    raise refused(piece) from piece
                left -= piece.finish is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def rows(self, request: Request) -> list[Row]:
        """The completions that a request asks for. Raises Refused."""
        rows = []
        if request.bias and (most := max(request.bias)) >= len(self.readers[0].tokenizer):
            raise Refused(400, f"logit_bias: no token {most}", param="logit_bias")
        for p, prompt in enumerate(request.prompts):
            row = self._row(request, p, prompt)
            for i in range(request.n):
                seed = row_seed(request.seed, "", i)
                rows.append(replace(row, index=p * request.n + i, asked=replace(row.asked, seed=seed)))
        return rows

    def _row(self, request: Request, p: int, prompt: Prompt) -> Row:
        shown, first, forced = "", (), ()
        if request.given:
            own, given = self.readers[0].given(prompt, request.given[p])
            ends = self.engine.decoder.ends[0]
            last = next((i for i, token in enumerate(given) if token in ends), len(given))
            forced = tuple(given[: last + 1])
            cut = len(self.readers[0].ids(prompt)) - len(own)
            prompts = [own, *(ids[: len(ids) - cut] for ids in (reader.ids(prompt) for reader in self.readers[1:]))]
            if not forced:
                raise Refused(400, "completion: has no token", param="completion")
        else:
            prompts = [reader.ids(prompt) for reader in self.readers]
        if request.echo and request.likeliest is not None and prompts[0]:
            first, forced = tuple(prompts[0][:1]), tuple(prompts[0][1:])
            prompts = [list(first) for _ in self.readers]
        elif request.echo:
            shown = prompt if isinstance(prompt, str) else self.writer.tokens.decode(prompts[0])
        if not all(prompts):
            raise Refused(400, "prompt: has no token to go on from", param="prompt")
        longest = max(map(len, prompts)) + len(forced)
        if longest > self.longest:
            said = f"prompt: {longest} tokens; at most {self.longest} here"
            raise Refused(400, said, code="context_length_exceeded", param="prompt")
        asked = Asked(
            prompts=tuple(prompts),
            sampling=request.sampling,
            seed=0,
            guide=request.guide,
            forced=forced,
            score_only=not request.draws,
            tell=request.likeliest or 0,
            bias=request.bias,
            presence=request.presence,
            frequency=request.frequency,
            draft=self.draft,
        )
        return Row(p, asked, shown, first)

    async def _follow(self, row: Row, request: Request, heard: asyncio.Queue) -> None:
        try:
            writing = Writing(self.writer, row, request)
            if opening := writing.opening():
                heard.put_nowait(opening)
            if row.empty:
                return
            async with aclosing(self.engine.stream(row.asked)) as stream:
                async for told in stream:
                    if piece := writing.take(told):
                        heard.put_nowait(piece)
                    if writing.over:
                        return
        except Exception as error:  # noqa: BLE001  whatever it is, who waits must hear of it
            heard.put_nowait(error)


def refused(error: Exception) -> Exception:
    """What was wrong with a request, as its sender is told; a fault of ours stays what it is."""
    if isinstance(error, EngineStopped):
        return Refused(503, str(error), code="ensemble_unavailable")
    if isinstance(error, ServerError):
        return Refused(502, str(error), code="member_unavailable")
    if isinstance(error, ModelError):
        return Refused(400, str(error), param="prompt")
    if isinstance(error, StageError):
        return Refused(422, str(error), param="guidance")
    return error
