"""Debates: all of them side by side in one decoder against a plain loop of transformers' generate, turn after turn.

The same model, protocol, cases and limits; greedy, so that both hold the same debates but for rounding. One thread;
seconds are this process's CPU seconds, so that other work on the machine counts little; sides alternate and medians are
compared. Writes bench/results/debate.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from trimtab.data.cases import read_cases
from trimtab.debating import CaseSpec
from trimtab.methods.debates._base import Case, Transcript
from trimtab.methods.debates.sequential import Sequential
from trimtab.models.debating import Chat, Floor
from trimtab.models.decode import Decoder
from trimtab.models.guided import open_stepper
from trimtab.models.language import load_language
from trimtab.models.network import load_tokenizer
from trimtab.models.source import model_folder
from trimtab.parts import ModelSpec

BENCH = Path(__file__).parent
MODEL = ModelSpec(source="builtin:smollm2-135m")
CONTEXT, CHUNK = 1024, 1024


def side_by_side(floor: Floor, protocol: Sequential, cases: list[Case]) -> list[Transcript]:
    """The batched stage's way."""
    held = floor.hold(protocol, [protocol.begin(case) for case in cases], seed=0)
    floor.forget()
    return [one.transcript for one in held]


def one_by_one(model: torch.nn.Module, chat: Chat, protocol: Sequential, cases: list[Case]) -> list[Transcript]:
    """A generate call a turn."""
    found = []
    for case in cases:
        transcript = protocol.begin(case)
        while asks := protocol.asks(transcript):
            texts = []
            for ask in asks:
                ids = chat.prompt(ask.messages) + chat.encode(ask.start)
                given = torch.tensor([ids])
                made = model.generate(
                    given, attention_mask=torch.ones_like(given), max_new_tokens=ask.max_tokens, do_sample=False
                )
                texts.append(ask.start + chat.decode(made[0, len(ids) :].tolist()))
            transcript = protocol.told(transcript, texts)
        found.append(transcript)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="where models are kept that are made")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--words", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    protocol = Sequential(turns=asked.turns, words=asked.words, temperature=0)
    rows = read_cases(CaseSpec(source="builtin:facts")).rows[: asked.rows]
    cases = [Case(row.id, row.prompt, tuple(one.text for one in row.candidates)) for row in rows]
    tokenizer = load_tokenizer(model_folder(MODEL.source, asked.cache))
    chat, model = Chat(tokenizer), load_language(MODEL, asked.cache)
    stepper, ends = open_stepper(MODEL, asked.cache, slots=asked.rows, context=CONTEXT)
    floor = Floor(Decoder([stepper], ends=[ends], vocabulary=len(tokenizer), chunk=CHUNK), chat)
    sides = {
        "side by side": lambda: side_by_side(floor, protocol, cases),
        "one by one": lambda: one_by_one(model, chat, protocol, cases),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    alike = []
    for i in range(asked.rounds):
        held = {}
        for name in sorted(sides, reverse=bool(i % 2)):
            started = time.process_time()
            held[name] = sides[name]()
            seconds[name].append(time.process_time() - started)
            print(f"{name:13} {60 * len(cases) / seconds[name][-1]:6.1f} transcripts a minute", flush=True)
        pairs = zip(*(held[name] for name in sides), strict=True)
        alike.append(statistics.fmean(a.turns[0].text == b.turns[0].text for a, b in pairs))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    found = {
        "rows": len(cases),
        "protocol": protocol.model_dump(exclude={"prompts"}),
        "CPU seconds": seconds,
        "transcripts a minute": {name: 60 * len(cases) / one for name, one in median.items()},
        "side by side over one by one": median["one by one"] / median["side by side"],
        "first turns that are word for word the same": statistics.fmean(alike),
    }
    (BENCH / "results" / "debate.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
