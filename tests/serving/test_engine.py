"""The engine: streams side by side, leaving early, refusals, and failures that nobody waits for in vain."""

from __future__ import annotations

import asyncio

import pytest
from tests.decoding import decoder, mixed, plain, run

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.models.asked import Asked, Told
from trimtab.serving.engine import Engine, EngineStopped


async def all_of(engine: Engine, asked: Asked) -> list[Told]:
    return [told async for told in engine.stream(asked)]


def test_streams_side_by_side_say_what_each_says_alone() -> None:
    async def main() -> list[list[Told]]:
        engine = Engine(decoder())
        try:
            return await asyncio.gather(*(all_of(engine, asked) for asked in mixed()))
        finally:
            engine.close()

    assert list(map(plain, asyncio.run(main()))) == [plain(run(decoder(), [asked])[0]) for asked in mixed()]


def test_leaving_a_stream_frees_its_slot() -> None:
    async def main() -> None:
        engine = Engine(decoder(slots=1))
        endless = Asked(([1], [1]), Sampling(max_new_tokens=60), seed=0, bias={0: -100.0})
        stream = engine.stream(endless)
        await anext(stream)
        await stream.aclose()
        told = await asyncio.wait_for(all_of(engine, mixed()[0]), 60)
        assert plain(told) == plain(run(decoder(), [mixed()[0]])[0])
        while engine.decoder.busy:
            await asyncio.sleep(0.01)
        assert engine.decoder.free == [0]
        engine.close()

    asyncio.run(main())


def test_what_cannot_be_asked_is_refused_and_the_engine_goes_on() -> None:
    async def main() -> None:
        engine = Engine(decoder())
        with pytest.raises(ModelError, match="reads less than 64"):
            await all_of(engine, Asked(([1] * 99, [1]), Sampling(), seed=0))
        assert await all_of(engine, mixed()[0])
        engine.close()

    asyncio.run(main())


def test_who_waits_when_the_decoder_fails_is_told() -> None:
    async def main() -> None:
        broken = decoder()
        broken.models[0].read = None
        engine = Engine(broken)
        with pytest.raises(EngineStopped, match="the decoder stopped: 'NoneType'"):
            await asyncio.wait_for(all_of(engine, mixed()[0]), 60)
        engine._thread.join(60)
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(all_of(engine, mixed()[0]), 60)

    asyncio.run(main())


def test_closing_ends_streams_that_run() -> None:
    async def main() -> None:
        engine = Engine(decoder(context=10**6))
        stream = engine.stream(Asked(([1], [1]), Sampling(max_new_tokens=10**5), seed=0, bias={0: -100.0}))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineStopped, match="it was closed"):
            async for _ in stream:
                pass

    asyncio.run(main())


def test_who_leaves_at_any_moment_leaves_nothing_behind() -> None:
    async def main() -> None:
        engine = Engine(decoder(slots=2))
        endless = Asked(([1], [1]), Sampling(max_new_tokens=60), seed=0, bias={0: -100.0})
        for i in range(100):
            leaver = asyncio.create_task(all_of(engine, endless))
            await asyncio.sleep(0.0001 * (i % 7))
            leaver.cancel()
            await asyncio.sleep(0)
        assert await asyncio.wait_for(all_of(engine, mixed()[0]), 60)
        while engine.decoder.busy:
            await asyncio.sleep(0.01)
        assert engine.decoder.free == [0, 1]
        engine.close()

    asyncio.run(main())
