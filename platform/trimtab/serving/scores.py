"""The answer of /v1/score: what every model says of the tokens of given completions, and all of them together."""

from collections.abc import Sequence

from trimtab.serving.answer import Piece, Token
from trimtab.serving.replies import Body, Usage, finite, members_usage, usage


class Said(Body):
    """Natural log-probs of the tokens, and their sum."""

    logprobs: list[float]
    total: float


class Score(Body):
    """One completion. Its own log-probs are those of the fused distribution, before temperature."""

    index: int
    tokens: list[str]
    token_ids: list[int]
    logprobs: list[float]
    total: float
    models: dict[str, Said]
    weights: list[dict[str, float]]


class Scores(Body):
    """All completions, in the order in which they were given."""

    object: str
    model: str
    system_fingerprint: str
    data: list[Score]
    usage: Usage
    guidance_usage: dict[str, dict[str, int]]


def scores(model: str, version: str, pieces: Sequence[Piece]) -> Scores:
    """Of the pieces that a request to score was answered with."""
    tokens: dict[int, list[Token]] = {}
    for piece in pieces:
        tokens.setdefault(piece.index, []).extend(piece.tokens)
    spent = [piece.spent for piece in pieces if piece.spent]
    return Scores(
        object="list",
        model=model,
        system_fingerprint=version,
        data=[_score(index, own) for index, own in sorted(tokens.items())],
        usage=usage(spent),
        guidance_usage=members_usage(spent),
    )


def _score(index: int, tokens: list[Token]) -> Score:
    fused = _said([token.logprob or 0.0 for token in tokens])
    return Score(
        index=index,
        tokens=[token.text for token in tokens],
        token_ids=[token.id for token in tokens],
        logprobs=fused.logprobs,
        total=fused.total,
        models={name: _said([token.said[name] for token in tokens]) for name in tokens[0].said},
        weights=[token.weights for token in tokens],
    )


def _said(logprobs: list[float]) -> Said:
    told = [finite(value) for value in logprobs]
    return Said(logprobs=told, total=sum(told))
