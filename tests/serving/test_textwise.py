"""A base and a nudger behind the API: the answer is the method's own, streamed, and nothing stays behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from tests.decoding import tiny_llama
from tests.models.test_writer import tokenizer, writer

from trimtab.alignment import Sampling
from trimtab.methods.guides.nudging import Nudging
from trimtab.models.decode import Decoder
from trimtab.models.llama import LlamaStepper
from trimtab.serving.answer import Piece, Refused, Request
from trimtab.serving.engine import Engine
from trimtab.serving.guidance import Alone
from trimtab.serving.members import Reader
from trimtab.serving.textwise import Textwise
from trimtab.serving.tokenwise import Tokenwise
from trimtab.serving.voices import LocalVoice

__all__ = ["tokenizer"]

pytestmark = pytest.mark.slow

NUDGING = Nudging(gamma=0.05)


def opened(tokenizer) -> Textwise:
    members = []
    for seed, name in enumerate(("base", "nudger")):
        model = tiny_llama(seed, vocabulary=len(tokenizer))
        decoder = Decoder([LlamaStepper(model, 2, 120)], ends=[frozenset({0})], vocabulary=len(tokenizer))
        member = Tokenwise([Reader(name, tokenizer, plain=True)], Engine(decoder), version="1", longest=100)
        members.append(LocalVoice(member))
    return Textwise(members, version="2")


def asked(**fields) -> Request:
    usual = {"prompts": ("Say: ",), "sampling": Sampling(max_new_tokens=30), "seed": 0, "guide": NUDGING}
    return Request(**usual | fields)


async def answered(ensemble: Textwise, request: Request) -> list[Piece]:
    return [piece async for piece in ensemble.answer(request)]


def run(tokenizer, work):
    async def main():
        ensemble = opened(tokenizer)
        try:
            return await work(ensemble)
        finally:
            await asyncio.to_thread(ensemble.close)

    return asyncio.run(main())


def test_the_answer_is_what_the_method_gives(tokenizer):
    *said, _ = NUDGING(writer(tokenizer, 0)[0], writer(tokenizer, 1)[0], most=30)
    pieces = run(tokenizer, lambda ensemble: answered(ensemble, asked(likeliest=0)))
    assert "".join(piece.text for piece in pieces) == "".join(one.text for one in said)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.text for token in tokens] == [token.text for one in said for token in one.tokens]
    assert [token.source for token in tokens] == [one.speaker for one in said for _ in one.tokens]
    assert all(token.offset == len("".join(one.text for one in tokens[:i])) for i, token in enumerate(tokens))
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish, pieces[-1].spent.completion) == ("length", len(tokens))
    assert pieces[-1].spent.members["nudger"]["decode"] > 0


def test_several_answers_are_one_and_a_stop_ends_them(tokenizer):
    pieces = run(tokenizer, lambda ensemble: answered(ensemble, asked(n=2)))
    texts = ["".join(piece.text for piece in pieces if piece.index == i) for i in (0, 1)]
    assert texts[0] == texts[1] != ""
    stop = texts[0][4:7]
    stopped = run(tokenizer, lambda ensemble: answered(ensemble, asked(stop=(stop,))))
    assert "".join(piece.text for piece in stopped) == texts[0][: texts[0].index(stop)]
    assert stopped[-1].finish == "stop"


def test_each_alone_answers_as_itself(tokenizer):
    async def work(ensemble):
        greedy = Sampling(max_new_tokens=9, temperature=0)
        return [await answered(ensemble, asked(guide=guide, sampling=greedy)) for guide in (None, Alone(model=1))]

    for pieces, seed in zip(run(tokenizer, work), (0, 1), strict=True):
        window = writer(tokenizer, seed)[0].write("", 9)
        assert "".join(piece.text for piece in pieces) == "".join(token.text for token in window.tokens)


def test_what_nudging_cannot_do_is_refused(tokenizer):
    for fields, said in (({"echo": True}, "echo: nudging"), ({"presence": 1.0}, "presence_penalty: nudging")):
        with pytest.raises(Refused, match=said):
            run(tokenizer, lambda ensemble, fields=fields: answered(ensemble, asked(**fields)))
    with pytest.raises(Refused, match="reads less than 120"):
        run(tokenizer, lambda ensemble: answered(ensemble, asked(prompts=("bread " * 200,))))


def test_leaving_early_leaves_nothing_behind(tokenizer):
    async def work(ensemble):
        async with aclosing(ensemble.answer(asked())) as pieces:
            await anext(pieces)
        while any(voice.member.engine.decoder.busy for voice in ensemble.voices):
            await asyncio.sleep(0.01)
        return ensemble.state()

    state = run(tokenizer, work)
    assert (state.slots, state.in_use, state.waiting) == (4, 0, 0)
