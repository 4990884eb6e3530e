"""Debates off a script, for the scripted server of the page's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tests.serving.scripted_app import MARKUP, MODELS, event, told

Event = dict[str, Any]
JUDGES = ["weak-a", "weak-b"]
SPEECHES = [
    'It is the capital, as the source says: "Paris is the capital".',
    'Lyon is larger: "Lyon has ten million".',
    "Ten million is no number of the source.",
    "Size is 漢 nothing here.",
]
QUOTES = [
    [{"text": "Paris is the capital", "verified": True}],
    [{"text": "Lyon has ten million", "verified": False}],
    [],
    [],
]
BELIEFS = [[(0.5, 0.5)] * 2, [(0.7, 0.3), (0.6, 0.4)], [(0.4, 0.6), (0.5, 0.5)], [(0.75, 0.25), (0.65, 0.35)]]
SPEAKERS = {
    "sequential": [('Debater 1, for "{0}"', 0), ('Debater 2, for "{1}"', 1)],
    "simultaneous": [('Debater 1, for "{0}"', 0), ('Debater 2, for "{1}"', 1)],
    "consultancy": [('Consultant, for "{1}"', 1)],
    "self_critique": [("Critic", None)],
}
LAST = [(0.9996, 0.0004), (0.45, 0.55)]


def debate(kind: str, description: str = "Two argue, two judge.") -> dict[str, Any]:
    ranges = {
        "turns": {"min": 1, "max": 2, "default": 2, "step": 1},
        "words": {"min": 1, "max": 60, "default": 60, "step": 1},
    }
    return {
        "id": f"debate-{kind}",
        "object": "model",
        "owned_by": "trimtab",
        "debate": {
            "description": description,
            "debater": "smol",
            "judges": JUDGES,
            "protocol": {"kind": kind, "turns": 2, "words": 60},
            "ranges": ranges,
            "context": 2048,
        },
    }


DEBATES = [debate("sequential"), debate("simultaneous"), debate("consultancy", MARKUP), debate("self_critique")]
ALL = [*MODELS, *DEBATES]


async def debated(body: dict[str, Any]) -> AsyncIterator[str]:
    """A debate in chunks of as many events as the seed says; some questions end it early, or never."""
    question, found = told(body), list(events(body))
    if question in ("endless", "fail", "cut"):
        second = [i for i, one in enumerate(found) if one["event"] == "turn"][1]
        found = found[: second + 2]
    yield ": here it comes\n\n"
    yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for batch in batches(found, body.get("seed") or 1):
        yield chunk({"debate": batch})
    while question == "endless":
        yield chunk({"debate": [{"event": "delta", "speaker": found[-1]["speaker"], "text": " on and on"}]})
        await asyncio.sleep(0.01)
    if question == "fail":
        yield event({"error": {"message": "The debater stopped.", "type": "server_error"}})
    if question in ("fail", "cut"):
        return
    yield chunk({"debate": []})
    yield chunk({"finish_reason": "stop"})
    yield event({"choices": [], "usage": {"prompt_tokens": 70, "completion_tokens": 31, "total_tokens": 101}})
    yield "data: [DONE]\n\n"


def chunk(told: dict[str, Any]) -> str:
    """A chunk of a chat, with text for those who know nothing of debates."""
    return event({"choices": [{"index": 0, "delta": {"content": "for others"}, "finish_reason": None} | told]})


def batches(found: list[Event], size: int) -> Iterator[list[Event]]:
    return (found[i : i + size] for i in range(0, len(found), size))


def events(body: dict[str, Any]) -> Iterator[Event]:
    """What happens, as the protocol has it, over as many rounds as are asked for."""
    kind, asked = body["model"].removeprefix("debate-"), body["debate"]
    names = [name.format(*asked["answers"]) for name, _ in SPEAKERS[kind]]
    speakers = [{"name": name, "answer": answer} for name, (_, answer) in zip(names, SPEAKERS[kind], strict=True)]
    beats = [(0,), (1,)] if kind == "sequential" else [(0, 1)] if kind == "simultaneous" else [(0,)]
    utterances = asked["turns"] * len(speakers)
    yield {"event": "begin", "answers": asked["answers"], "speakers": speakers, "judges": JUDGES} | {
        "utterances": utterances
    }
    yield judged(0, BELIEFS[0])
    after = 0
    for round_ in range(asked["turns"]):
        for beat in beats:
            yield from spoken(beat, round_, after, body)
            after += len(beat)
            yield judged(after, LAST if after == utterances else BELIEFS[after])
    last = judged(after, LAST)
    yield {"event": "verdict", "answer": 0, "text": asked["answers"][0], "judges": last["judges"]} | {
        "probabilities": last["panel"]
    }


def spoken(beat: tuple[int, ...], round_: int, after: int, body: dict[str, Any]) -> Iterator[Event]:
    """Turns that are spoken at once: their words by turns, a word too many in the end, which is cut."""
    texts = [MARKUP if told(body) == "markup" else SPEECHES[after + i] for i in range(len(beat))]
    for speaker in beat:
        yield {"event": "turn", "speaker": speaker, "round": round_}
    words = [f" {text} over".split(" ")[1:] for text in texts]
    for i in range(max(map(len, words))):
        for speaker, its in zip(beat, words, strict=True):
            if its[i : i + 1]:
                yield {"event": "delta", "speaker": speaker, "text": f" {its[i]}"}
    for i, (speaker, text) in enumerate(zip(beat, texts, strict=True)):
        quotes = [] if told(body) == "markup" else QUOTES[after + i]
        said = {"text": text, "cut": after + i == 0, "quotes": quotes, "tokens": len(text.split())}
        yield {"event": "said", "speaker": speaker, "round": round_} | said


def judged(after: int, beliefs: list[tuple[float, float]]) -> Event:
    panel = [sum(column) / len(beliefs) for column in zip(*beliefs, strict=True)]
    return {"event": "judged", "after": after, "judges": dict(zip(JUDGES, beliefs, strict=True)), "panel": panel}
