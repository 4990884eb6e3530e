"""A search as pieces of an answer: the base writes, helpers' scores choose, and what a round settles is final text."""

from collections.abc import Iterator, Sequence

from trimtab.methods.searches._base import Ratio
from trimtab.models.sampler import Remembered
from trimtab.serving.answer import Piece, Request, Token
from trimtab.serving.text import Detokenizer
from trimtab.serving.voices import Part, Text


def searched(request: Request, names: Sequence[str], parts: Sequence[Part]) -> Iterator[Piece]:
    """Rounds as they are settled; the log-prob of a token is the base's."""
    base, *helpers = parts
    drawing, text = base.sampler(request.sampling)
    sampler = Remembered(drawing)
    scorer = Ratio(tuple(helper.scorer(base, text) for helper in helpers))
    told, ended, finals = 0, False, Finals(names[0], text)
    for found in request.guide(sampler, scorer, most=request.sampling.max_new_tokens, seed=request.seed):
        best = found.kept[0].response
        until = told + len(found.ids)
        ended = best.ended and until == len(best.ids)
        logprobs = sampler.logprobs[best.ids][told:until]
        yield finals.piece(found.ids[: len(found.ids) - ended], logprobs)
        told = until
    yield Piece(0, finals.flush(), finish="stop" if ended else "length")


class Finals:
    """Tokens that are settled, as pieces."""

    def __init__(self, name: str, text: Text) -> None:
        self.name, self.text = name, text
        self._writing, self._offset = Detokenizer(text), 0

    def piece(self, ids: Sequence[int], logprobs: Sequence[float]) -> Piece:
        """Their text, as far as its characters are whole, and they themselves."""
        text, tokens = "", []
        for one, p in zip(ids, logprobs, strict=False):
            shown = self.text([one])
            text += self._writing.push(one)
            own = {"said": {self.name: p}, "weights": {self.name: 1.0}, "source": self.name}
            tokens.append(Token(one, shown, shown.encode(), self._offset, p, (), **own))
            self._offset += len(shown)
        return Piece(0, text, tuple(tokens))

    def flush(self) -> str:
        """What is left."""
        return self._writing.flush()
