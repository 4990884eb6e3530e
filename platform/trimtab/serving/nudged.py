"""Nudging as pieces of an answer: who spoke is told of every token. Both models are greedy: no seed counts."""

from collections.abc import Iterator, Sequence
from math import log

from trimtab.methods.guides._nudging import End
from trimtab.models.asked import Finish
from trimtab.serving.answer import Piece, Request, Token
from trimtab.serving.voices import Part

SPEAKERS = ("base", "nudger")
FINISH: dict[str, Finish] = {"nudging_model_stop": "stop", "repeated_nudging_words": "stop"}
"""How a client hears why an answer is over; any other reason is a limit."""
LEAST = 1e-30


def nudged(request: Request, names: Sequence[str], parts: Sequence[Part]) -> Iterator[Piece]:
    """Words as they become final; the log-prob of each is what its speaker gave it, nobody else being asked."""
    base, nudger = (part.writer() for part in parts)
    offset = 0
    for said in request.guide(base, nudger, most=request.sampling.max_new_tokens):
        if isinstance(said, End):
            yield Piece(0, "", finish=FINISH.get(said.reason, "length"))
            return
        name, tokens = names[SPEAKERS.index(said.speaker)], []
        for one in said.tokens:
            p = log(max(one.probability, LEAST))
            tokens.append(Token(-1, one.text, one.text.encode(), offset, p, (), {name: p}, {name: 1.0}, name))
            offset += len(one.text)
        yield Piece(0, said.text, tuple(tokens))
