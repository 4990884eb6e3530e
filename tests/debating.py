"""A scripted world for debates: words are tokens, debaters and judges are tables of rules, and truth can be quoted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from tests.decoding import ScriptedStepper

from trimtab.lm import ScriptedLM
from trimtab.methods.debates._base import Case, DebateProtocol, Message, Transcript
from trimtab.models.debating import Floor, Held
from trimtab.models.decode import Decoder

SIZE, END, SAY = 1024, 0, 1
Script = Callable[[str], list[str]]
"""The reply to what was read, word by word, with the words that it must begin with."""


class Words:
    """A Tongue: every word, mark and tag is a token."""

    def __init__(self) -> None:
        self.ids = {"<end>": END, "<say>": SAY}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r"</?\w+>|\w+|[^\w\s]|\n", text)]

    def decode(self, ids: list[int]) -> str:
        words = list(self.ids)
        return "".join(f" {words[i]}" for i in ids)

    def prompt(self, messages: list[Message]) -> list[int]:
        return self.encode("\n".join(message["content"] for message in messages)) + [SAY]


def scripted(words: Words, script: Script) -> ScriptedLM:
    """A model that says the next word of its script for what it has read, then ends."""

    def rule(context: tuple[int, ...]) -> list[float]:
        if SAY not in context:
            return [0.0] * SIZE
        cut = len(context) - 1 - context[::-1].index(SAY)
        said = script(words.decode(list(context[:cut])))
        (wanted,) = words.encode(said[len(context) - cut - 1]) if len(context) - cut <= len(said) else (END,)
        return [0.0 if i == wanted else -math.inf for i in range(SIZE)]

    return ScriptedLM(rule, end_ids=frozenset({END}))


def floor(words: Words, script: Script, *, slots: int = 8) -> Floor:
    stepper = ScriptedStepper(scripted(words, script), slots, context=1000)
    return Floor(Decoder([stepper], ends=[frozenset({END})], vocabulary=SIZE), words)


def hold(protocol: DebateProtocol, cases: list[Case], script: Script, *, words: Words | None = None) -> list[Held]:
    begun: list[Transcript] = [protocol.begin(case) for case in cases]
    return floor(words or Words(), script).hold(protocol, begun, seed=0)
