"""Searches behind the API: the base writes, helpers choose; members may be here, or behind another server's API."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from itertools import pairwise

import httpx2
import pytest
from tests.decoding import tiny_llama
from tests.serving.kit import END, arguments, serving, tokenizer, until

from trimtab.alignment import Sampling
from trimtab.methods.guides.nudging import Nudging
from trimtab.methods.searches._base import Response
from trimtab.methods.searches.best_of_n import BestOfN
from trimtab.methods.searches.chunk_beam import ChunkBeam
from trimtab.models.decode import Decoder
from trimtab.models.llama import LlamaStepper
from trimtab.serving.answer import Piece, Refused, Request
from trimtab.serving.elsewhere import RemoteVoice
from trimtab.serving.engine import Engine
from trimtab.serving.guidance import Alone
from trimtab.serving.members import Reader
from trimtab.serving.textwise import Textwise
from trimtab.serving.tokenwise import Tokenwise
from trimtab.serving.voices import LocalVoice

pytestmark = pytest.mark.slow

NAMES = ("base", "tuned", "untuned")
PROMPT = "Say: "


def alone(seed: int) -> Tokenwise:
    own = tokenizer()
    stepper = LlamaStepper(tiny_llama(seed, vocabulary=len(own)), 4, 120)
    decoder = Decoder([stepper], ends=[frozenset({END})], vocabulary=len(own))
    return Tokenwise([Reader(NAMES[seed], own, plain=True)], Engine(decoder), version="1", longest=100)


@contextmanager
def here():
    ensemble = Textwise([LocalVoice(alone(seed)) for seed in range(3)], version="2")
    try:
        yield ensemble
    finally:
        ensemble.close()


@contextmanager
def elsewhere():
    """The same models, each behind our own API."""
    args = arguments({f"the-{name}": {"base": name} for name in NAMES})
    with serving(args, {f"the-{name}": alone(seed) for seed, name in enumerate(NAMES)}) as url:
        clients = [httpx2.Client(base_url=f"{url}/v1/", timeout=60) for _ in NAMES]
        ensemble = Textwise(
            [RemoteVoice(name, f"the-{name}", one) for name, one in zip(NAMES, clients, strict=True)], version="2"
        )
        yield ensemble
        ensemble.close()


@pytest.fixture(params=[here, elsewhere], ids=["local", "remote"])
def ensemble(request):
    with request.param() as found:
        yield found


def asked(guide, **fields) -> Request:
    usual = {"prompts": (PROMPT,), "sampling": Sampling(max_new_tokens=12), "seed": 5, "likeliest": 0}
    return Request(guide=guide, **usual | fields)


def answered(ensemble: Textwise, request: Request) -> list[Piece]:
    async def main() -> list[Piece]:
        return [piece async for piece in ensemble.answer(request)]

    return asyncio.run(main())


def text(pieces: list[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


def score(told: str, *, by: LocalVoice) -> float:
    """What a model says of a text behind the prompt."""

    async def main() -> float:
        part = by.part(PROMPT, asyncio.get_running_loop())
        response = Response(tuple(part.reader.tokenizer(told)["input_ids"]), False)
        scorer = part.scorer(part, lambda ids: told)
        return (await asyncio.to_thread(scorer, [response]))[0]

    return asyncio.run(main())


@pytest.mark.parametrize("search", [BestOfN(n=5), ChunkBeam(width=2, samples=2, chunk=5)], ids=lambda one: one.kind)
def test_a_search_gives_what_its_helpers_prefer(ensemble, search):
    found = answered(ensemble, asked(search))
    assert found[-1].finish == "length"
    tokens = [token for piece in found for token in piece.tokens]
    assert len(tokens) == found[-1].spent.completion == 12
    assert all(token.source == "base" and token.logprob < 0 for token in tokens)
    spent = found[-1].spent.members
    assert spent["base"]["decode"] >= 4 * 12
    assert min(sum(spent[name].values()) for name in ("tuned", "untuned")) > 0
    again = answered(ensemble, asked(search))
    assert text(again) == text(found)
    with here() as local:
        means = []
        for guide in (search, None):
            texts = [text(answered(ensemble, asked(guide, seed=seed))) for seed in range(6)]
            ratios = [score(one, by=local.voices[1]) - score(one, by=local.voices[2]) for one in texts if one]
            means.append(sum(ratios) / len(ratios))
    assert means[0] > means[1]


def test_both_backends_score_and_nudge_alike():
    found = []
    for where in (here, elsewhere):
        with where() as three:

            async def main(three=three) -> list[float]:
                loop = asyncio.get_running_loop()
                base, tuned, _ = (voice.part(PROMPT, loop) for voice in three.voices)
                sampler, _ = base.sampler(Sampling(max_new_tokens=8, temperature=0))
                (drawn,) = await asyncio.to_thread(sampler, [()], 8, [1])
                spoken = "low hello world"
                scorer = tuned.scorer(base, lambda ids: spoken)
                whole = [Response(tuple(tokenizer()(spoken)["input_ids"]), False)]
                return [*drawn.logprobs, *await asyncio.to_thread(scorer, whole)]

            numbers = asyncio.run(main())
            pair = Textwise(three.voices[:2], version="2")
            found.append((numbers, text(answered(pair, asked(Nudging(gamma=0.05))))))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    assert found[0][1] == found[1][1] != ""


def test_each_alone_answers_as_itself(ensemble):
    greedy = Sampling(max_new_tokens=6, temperature=0)
    with here() as local:
        for guide in (None, Alone(model=2)):
            request = asked(guide, sampling=greedy)
            pieces = answered(ensemble, request)
            assert text(pieces) == text(answered(local, request)) != ""
            assert pieces[-1].spent.completion == 6


def test_a_round_s_text_comes_before_the_last_is_drawn():
    with here() as three:
        found = answered(three, asked(ChunkBeam(width=1, samples=2, chunk=4)))
    assert len([piece for piece in found if piece.tokens]) == 3
    offsets = [token.offset for piece in found for token in piece.tokens]
    assert all(a < b for a, b in pairwise(offsets))


def test_leaving_early_leaves_nothing_behind():
    async def main(three: Textwise):
        async with aclosing(three.answer(asked(ChunkBeam(width=1, samples=2, chunk=3)))) as pieces:
            await anext(pieces)
        return three.state()

    with here() as three:
        asyncio.run(main(three))
        until(lambda: three.state().in_use == three.state().waiting == 0)


def test_a_server_that_is_gone_is_named():
    with httpx2.Client(base_url="http://127.0.0.1:9/v1/") as client:
        voice = RemoteVoice("far", "far", client)
        with pytest.raises(Refused, match="does not answer") as caught:
            answered(Textwise([voice], version="1"), asked(None))
        assert caught.value.refusal.status == 502
        with pytest.raises(Refused, match="does not answer") as caught:
            answered(Textwise([voice, voice], version="1"), asked(Nudging()))
        assert caught.value.refusal.status == 502
        with pytest.raises(Refused, match="reads text only"):
            answered(Textwise([voice], version="1"), asked(None, prompts=([1, 2],)))
