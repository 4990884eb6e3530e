"""What HTTP costs: tokens/s of an ensemble's engine in this process against the same through Serve, side after side.

Eight streams, each asking again as soon as it is answered; both sides have the same models, prompts and limits, and the
medians of their rounds are compared. Time to first token is the client's, over HTTP. Writes bench/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2

from trimtab import verbs
from trimtab.alignment import Sampling
from trimtab.serving.answer import Answerer, Request
from trimtab.serving.file import load_serve
from trimtab.serving.guidance import steering
from trimtab.serving.replica import opened

BENCH = Path(__file__).parent
STREAMS, NEW = 8, 64
Answer = Callable[[int], Awaitable[tuple[int, float]]]
"""From a number to tokens, and the seconds to the first one."""


async def loaded(answer: Answer, each: int) -> tuple[float, list[float]]:
    """Tokens/s over all streams, and the seconds to each answer's first token."""
    firsts: list[float] = []

    async def stream(number: int) -> int:
        tokens = 0
        for i in range(each):
            count, first = await answer(number * each + i)
            tokens += count
            firsts.append(first)
        return tokens

    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(stream, range(STREAMS))))
    return tokens / (time.perf_counter() - started), firsts


def inside(answerer: Answerer, guide: object) -> Answer:
    """The engine, asked as the replica asks it."""

    async def answer(number: int) -> tuple[int, float]:
        sampling, started, first = Sampling(max_new_tokens=NEW), time.perf_counter(), None
        async for piece in answerer.answer(Request((prompt(number),), sampling, number, guide=guide)):
            first = first or time.perf_counter() - started
            spent = piece.spent
        return spent.completion, first

    return answer


def outside(http: httpx2.AsyncClient, model: str) -> Answer:
    """The same over HTTP, streamed."""

    async def answer(number: int) -> tuple[int, float]:
        body = {"model": model, "prompt": prompt(number), "max_tokens": NEW, "seed": number, "stream": True}
        started, first = time.perf_counter(), None
        async with http.stream("POST", "completions", json=body | {"stream_options": {"include_usage": True}}) as said:
            async for line in said.aiter_lines():
                first = first or time.perf_counter() - started
                if '"usage":{' in line:
                    spent = json.loads(line.removeprefix("data: "))["usage"]
        return spent["completion_tokens"], first

    return answer


def prompt(number: int) -> str:
    return f"Story {number}. Once upon a time there was"


async def compared(file: Path, *, ensemble: str, rounds: int, each: int) -> dict[str, object]:
    (args,) = load_serve(file).args.values()
    answerer = await asyncio.to_thread(opened, args, ensemble)
    guide = steering(args, ensemble, {}).guide
    rates: dict[str, list[float]] = {"engine": [], "http": []}
    firsts: list[float] = []
    with verbs.serve(file) as served:
        async with httpx2.AsyncClient(base_url=f"{served.url}/v1/", timeout=300) as http:
            sides = {"engine": inside(answerer, guide), "http": outside(http, ensemble)}
            for side in sides.values():
                await loaded(side, 1)
            for i in range(rounds):
                for name in sorted(sides, reverse=bool(i % 2)):
                    rate, seconds = await loaded(sides[name], each)
                    rates[name].append(rate)
                    firsts += seconds if name == "http" else []
                    print(f"{name:8} {rate:6.1f} tokens/s", flush=True)
    answerer.close()
    median = {name: statistics.median(found) for name, found in rates.items()}
    cuts = statistics.quantiles(firsts, n=100)
    return {
        "ensemble": ensemble,
        "streams": STREAMS,
        "tokens an answer": NEW,
        "tokens/s": rates,
        "http over engine": median["http"] / median["engine"],
        "seconds to first token": {"p50": cuts[49], "p99": cuts[98]},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=BENCH.parent / "serve" / "contrastive.yaml")
    parser.add_argument("--ensemble", default="contrast-smol")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--each", type=int, default=2, help="answers a stream in a round")
    asked = parser.parse_args()
    found = asyncio.run(compared(asked.file, ensemble=asked.ensemble, rounds=asked.rounds, each=asked.each))
    (BENCH / "results" / "serve.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
