"""One answer while it is written: what the engine tells of tokens becomes pieces of final text."""

from dataclasses import dataclass

from trimtab.methods.guides._base import Guide, Linear
from trimtab.models.asked import Asked, Finish, Told
from trimtab.serving.answer import Likely, Piece, Request, Spent, Token
from trimtab.serving.text import Detokenizer, Stops, Tokens


@dataclass(frozen=True)
class Row:
    """One completion: what is asked of the engine, and what its reader sees before anything is drawn."""

    index: int
    asked: Asked
    shown: str = ""
    """Text that the answer begins with."""
    first: tuple[int, ...] = ()
    """Tokens that the answer begins with, of which nothing is asked."""

    @property
    def empty(self) -> bool:
        return self.asked.score_only and not self.asked.forced


@dataclass(frozen=True)
class Writer:
    """The names of an ensemble's models, the base first, and their tokens."""

    names: list[str]
    tokens: Tokens


class Writing:
    """One answer while it comes: tokens in, pieces of final text out."""

    def __init__(self, writer: Writer, row: Row, request: Request) -> None:
        self.writer, self.row, self.request = writer, row, request
        self.over = False
        before = () if row.first or request.given else row.asked.prompts[0]
        self._text, self._stops = Detokenizer(writer.tokens.decode, before), Stops(request.stop)
        self._end = self._released = len(row.shown)
        self._given, self._drawn, self._accepted = len(row.asked.forced), 0, 0
        self._open: list[Token] = []
        """Tokens of a character that is not whole yet."""
        self._held: list[tuple[int, Token]] = []
        """Tokens whose text may become a stop, and where it ends."""
        self._ran = ran(row.asked.guide, len(writer.names))

    def opening(self) -> Piece | None:
        """What the answer begins with before the engine is asked."""
        text, tokens = self.row.shown, []
        for token in self.row.first:
            text += self._text.push(token)
            raw, name = self.writer.tokens[token]
            tokens.append(Token(token, name, raw, 0, None, (), {}, {}, self.writer.names[0]))
        self._end = self._released = len(text)
        finish: Finish | None = "length" if self.row.empty else None
        if not (text or tokens or finish):
            return None
        return Piece(self.row.index, text, tuple(tokens), finish, self._spent() if finish else None)

    def take(self, told: Told) -> Piece | None:
        """A token more; a piece where text has become final, or the answer is over."""
        given = self._given > 0
        self._given -= given
        hidden = not given and told.finish == "stop"
        text = "" if hidden else self._text.push(told.id)
        if told.finish:
            text += self._text.flush()
        if not given:
            self._drawn += not hidden
            self._accepted += told.drafted
        if self.request.likeliest is not None:
            self._open.append(self._token(told, hidden=hidden))
        self._end += len(text)
        if text or told.finish:
            self._held += [(self._end, token) for token in self._open]
            self._open = []
        text = text if given else self._stops.push(text)
        finish = "stop" if self._stops.stopped else told.finish
        if finish and not self._stops.stopped:
            text += self._stops.flush()
        self._released += len(text)
        self.over = finish is not None
        tokens = self._free()
        if not (text or tokens or finish):
            return None
        return Piece(self.row.index, text, tokens, finish, self._spent() if finish else None)

    def _free(self) -> tuple[Token, ...]:
        """Tokens whose text is out; at a stop, those that began before it."""
        free = [token for end, token in self._held if end <= self._released]
        if self._stops.stopped:
            free = [token for _, token in self._held if token.offset < self._released]
        self._held = self._held[len(free) :]
        return tuple(free)

    def _token(self, told: Told, *, hidden: bool) -> Token:
        names = self.writer.names
        raw, text = self.writer.tokens[told.id]
        likeliest = tuple(Likely(name, raw, p) for (raw, name), p in self._named(told.likeliest))
        counted = [names[m] for m in range(len(names)) if told.weights[m]]
        return Token(
            id=told.id,
            text=text,
            bytes=raw,
            offset=self._end,
            logprob=told.logprob,
            likeliest=likeliest,
            said={names[m]: told.said[m] for m in self._ran},
            weights={names[m]: told.weights[m] for m in self._ran},
            source=counted[0] if len(counted) == 1 else "fused",
            drafted=told.drafted,
            hidden=hidden,
        )

    def _named(self, likeliest: list[tuple[int, float]]) -> list[tuple[tuple[bytes, str], float]]:
        return [(self.writer.tokens[token], p) for token, p in likeliest]

    def _spent(self) -> Spent:
        """A prompt is read once for all of its completions."""
        asked, names = self.row.asked, self.writer.names
        first = self.row.index % self.request.n == 0
        echoed = len(asked.forced) if self.row.first else 0
        members = {
            names[m]: {"prompt": first * (len(asked.prompts[m]) + len(asked.forced)), "decode": self._drawn}
            for m in self._ran
        }
        if self._accepted:
            members[names[asked.draft]]["accepted"] = self._accepted
        prompt = first * (len(asked.prompts[0]) + echoed)
        completion = len(asked.forced) if self.request.given else self._drawn
        return Spent(prompt, completion, members)


def ran(guide: Guide | None, models: int) -> list[int]:
    """The models that are asked at all."""
    if guide is None:
        return [0]
    if isinstance(guide, Linear):
        return [m for m, weight in enumerate(guide.weights(models)) if weight]
    return list(range(models))
