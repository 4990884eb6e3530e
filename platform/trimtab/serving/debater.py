"""A debate that answers requests: copies of one model argue, turn by turn as they speak, and judges read every beat."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.lm import row_seed
from trimtab.methods.debates._base import Ask, Transcript, Turn, render
from trimtab.methods.debates._judging import Verdict, judge_messages
from trimtab.models.asked import Asked, Told
from trimtab.serving.answer import Debated, Piece, Request, Spent, State
from trimtab.serving.config import Debate
from trimtab.serving.guidance import Alone
from trimtab.serving.text import Detokenizer
from trimtab.serving.tokenwise import Tokenwise, refused

MARKS = re.compile(r"</?[uv]_quote>")
Probabilities = list[float]


class Debater:
    """Holds debates; `members`, the debater's first, each have an engine of their own, and answer alone too."""

    def __init__(self, members: Sequence[Tokenwise], debate: Debate, *, version: str) -> None:
        self.debater, *self.judges = self.members = tuple(members)
        self.panel, self.version = debate.panel, version
        wording = debate.protocol.wording
        for judge in self.judges:
            first, second = labels(judge, wording.judge_labels)
            if first == second:
                name = judge.readers[0].name
                raise ModelError(f"{name}: judge_labels {wording.judge_labels} begin with one token; take others")

    def state(self) -> State:
        """The slots of all models. Raises EngineStopped."""
        return State.of_all(self.version, [member.state() for member in self.members])

    def close(self) -> None:
        """Stop all engines."""
        for member in self.members:
            member.close()

    async def answer(self, request: Request) -> AsyncIterator[Piece]:
        """A debate with what is told of it, or a member's own answer. Raises Refused."""
        if request.debate is None:
            place = request.guide.model if isinstance(request.guide, Alone) else 0
            pieces = self.members[place].answer(replace(request, guide=None))
        else:
            pieces = Hearing(self, request.debate, request.seed).pieces()
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    yield piece
            except Exception as error:
                raise refused(error) from error


class Hearing:
    """One debate under way."""

    def __init__(self, held_by: Debater, asked: Debated, seed: int) -> None:
        self.debater, self.judges, self.panel = held_by.debater, held_by.judges, held_by.panel
        self.case, self.protocol, self.seed = asked.case, asked.protocol, seed
        names = [member.readers[0].name for member in held_by.members]
        self.names, self.spent = names[1:], {name: {"prompt": 0, "decode": 0} for name in names}
        self.drawn: list[int] = []
        """Tokens of each speaker of the beat."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """Turn by turn; what all judges say comes before the first and after every beat."""
        protocol, transcript = self.protocol, self.protocol.begin(self.case, seed=self.seed)
        checked = self.case.source is not None
        judged = await self._judged(transcript)
        yield Piece(0, "", told=(self._begin(transcript), judged))
        while asks := protocol.asks(transcript):
            texts, self.drawn = [""] * len(asks), [0] * len(asks)
            yield Piece(0, "", told=tuple({"event": "turn", "speaker": a.speaker, "round": a.round} for a in asks))
            async with aclosing(self._beat(transcript, asks)) as deltas:
                async for place, text in deltas:
                    texts[place] += text
                    if text and not protocol.plan:
                        yield Piece(0, "", told=({"event": "delta", "speaker": asks[place].speaker, "text": text},))
            was, transcript = len(transcript.turns), protocol.told(transcript, texts)
            turns, judged = transcript.turns[was:], await self._judged(transcript)
            text = "".join(f"{turn.name}: {plain(turn)}\n\n" for turn in turns)
            yield Piece(
                0, text, told=(*(said(*one, checked=checked) for one in zip(turns, self.drawn, strict=True)), judged)
            )
        yield self._verdict(judged)

    async def _beat(self, transcript: Transcript, asks: Sequence[Ask]) -> AsyncIterator[tuple[int, str]]:
        """What the speakers of a beat say, side by side, as it comes."""
        heard: asyncio.Queue[tuple[int, str] | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._speak(transcript, p, ask, heard)) for p, ask in enumerate(asks)]
        try:
            left = len(tasks)
            while left:
                one = await heard.get()
                if isinstance(one, Exception):
                    raise one
                left -= one is None
                if one:
                    yield one
        finally:
            await ended(tasks)

    async def _speak(self, transcript: Transcript, place: int, ask: Ask, heard: asyncio.Queue) -> None:
        reader, writer = self.debater.readers[0], self.debater.writer
        try:
            heard.put_nowait((place, ask.start))
            ids = reader.ids(ask.messages) + tokens(self.debater, ask.start)
            text, sampling = (
                Detokenizer(writer.tokens.decode, ids),
                Sampling(temperature=self.protocol.temperature, max_new_tokens=ask.max_tokens),
            )
            seed = row_seed(self.seed, self.case.id, len(transcript.turns) + place)
            spent = self.spent[reader.name]
            spent["prompt"] += len(ids)
            async with aclosing(self.debater.engine.stream(Asked((ids,), sampling, seed))) as stream:
                async for told in stream:
                    spent["decode"] += told.finish != "stop"
                    self.drawn[place] += told.finish != "stop"
                    new = text.push(told.id) if told.finish != "stop" else ""
                    heard.put_nowait((place, new + (text.flush() if told.finish else "")))
            heard.put_nowait(None)
        except Exception as error:  # noqa: BLE001  whatever it is, who waits must hear of it
            heard.put_nowait(error)

    async def _judged(self, transcript: Transcript) -> dict[str, Any]:
        """What judges and panel say of the turns so far, as an event."""
        import torch

        tasks = [asyncio.create_task(self._judge(judge, transcript)) for judge in self.judges]
        try:
            verdicts = [await task for task in tasks]
        finally:
            await ended(tasks)
        each = [list(one.probabilities) for one in verdicts]
        panel = self.panel(torch.tensor(each, dtype=torch.float64)[:, None])[0].tolist()
        judges = dict(zip(self.names, each, strict=True))
        return {"event": "judged", "after": len(transcript.turns), "judges": judges, "panel": panel}

    async def _judge(self, judge: Tokenwise, transcript: Transcript) -> Verdict:
        """P(listed first) for both orders of the answers, from the first token of each label."""
        wording = self.protocol.wording
        reader, told_of, choices = judge.readers[0], render(transcript, wording), labels(judge, wording.judge_labels)
        found = []
        for swapped in (False, True):
            messages = judge_messages(wording, self.case, told_of, swapped=swapped)
            ids = reader.ids(messages) + tokens(judge, wording.judge_reply)
            self.spent[reader.name]["prompt"] += len(ids)
            first, second = [await self._logprob(judge, ids, label) for label in choices]
            found.append(1 / (1 + math.exp(second - first)))
        return Verdict(*found)

    async def _logprob(self, judge: Tokenwise, ids: list[int], label: int) -> float:
        asked = Asked((ids,), Sampling(max_new_tokens=1), 0, forced=(label,), score_only=True)
        async with aclosing(judge.engine.stream(asked)) as stream:
            told: list[Told] = [one async for one in stream]
        return told[0].logprob

    def _begin(self, transcript: Transcript) -> dict[str, Any]:
        speakers = sorted({speaker for beat in self.protocol.beats() for speaker in beat})
        argues = self.protocol.part != "critique"
        told = [
            {"name": self.protocol.name(transcript, one), "answer": transcript.order[one] if argues else None}
            for one in speakers
        ]
        answers, utterances = list(self.case.answers), self.protocol.utterances
        return {
            "event": "begin",
            "answers": answers,
            "speakers": told,
            "judges": self.names,
            "utterances": utterances,
        }

    def _verdict(self, judged: dict[str, Any]) -> Piece:
        panel: Probabilities = judged["panel"]
        answer = panel.index(max(panel))
        text = self.case.answers[answer]
        told = {"event": "verdict", "answer": answer, "text": text, "probabilities": panel, "judges": judged["judges"]}
        members = dict(self.spent)
        own = members[self.debater.readers[0].name]
        spent = Spent(own["prompt"], own["decode"], members)
        return Piece(0, f"Verdict: {text} ({panel[answer]:.0%})", finish="stop", spent=spent, told=(told,))


async def ended(tasks: Sequence[asyncio.Task]) -> None:
    """Tasks that nobody waits for any more."""
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def said(turn: Turn, drawn: int, *, checked: bool) -> dict[str, Any]:
    """A turn as it stands, of so many tokens, as an event; its quotes are told where they were `checked`."""
    quotes = [{"text": quote.text, "verified": quote.verified} for quote in turn.quotes if checked]
    place = {"event": "said", "speaker": turn.speaker, "round": turn.round}
    return place | {"text": plain(turn), "cut": turn.cut, "quotes": quotes, "tokens": drawn}


def plain(turn: Turn) -> str:
    """Its text without the marks of its quotes."""
    return MARKS.sub("", turn.text)


def tokens(member: Tokenwise, text: str) -> list[int]:
    """Of a text that goes on."""
    return list(member.readers[0].tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def labels(judge: Tokenwise, texts: Sequence[str]) -> list[int]:
    """The first token of each."""
    return [tokens(judge, text)[0] for text in texts]
