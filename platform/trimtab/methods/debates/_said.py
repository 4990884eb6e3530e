"""What others get to see of what a speaker wrote: no plan, a limit of words, quotes checked (Khan et al. 2024)."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLAN = re.compile(r"<plan>(.*?)(?:</plan>|\Z)", re.DOTALL | re.IGNORECASE)
QUOTE = re.compile(r"<quote>(.*?)</quote>", re.DOTALL | re.IGNORECASE)
TAGS = re.compile(r"</?(?:[uv]_)?(?:quote|plan)>", re.IGNORECASE)
VERIFIED, UNVERIFIED = "v_quote", "u_quote"


@dataclass(frozen=True)
class Quote:
    """What a speaker says that the source says, and whether it does, word for word."""

    text: str
    verified: bool


@dataclass(frozen=True)
class Said:
    """A turn's public text, its plan and quotes, and whether words beyond the limit were cut off."""

    text: str
    plan: str
    quotes: tuple[Quote, ...]
    cut: bool


def said(written: str, *, words: int, source: str | None) -> Said:
    """A turn out of what a model wrote.

    The public text is one line, so that nobody can write a line in another's name; marks of verified quotes that a
    speaker writes are taken out.
    """
    plan = " ".join(" ".join(PLAN.findall(written)).split())
    public = re.sub(r"</?[uv]_quote>", "", PLAN.sub(" ", written), flags=re.IGNORECASE)
    all_words = public.split()
    kept = " ".join(all_words[:words])
    quotes = tuple(Quote(text, quoted(text, source)) for text in map(str.strip, QUOTE.findall(kept)))
    pieces = QUOTE.split(kept)
    text = TAGS.sub("", pieces[0])
    for quote, after in zip(quotes, pieces[2::2], strict=True):
        mark = VERIFIED if quote.verified else UNVERIFIED
        text += f"<{mark}>{TAGS.sub('', quote.text)}</{mark}>" + TAGS.sub("", after)
    return Said(text.strip(), plan, quotes, len(all_words) > words)


def quoted(text: str, source: str | None) -> bool:
    """Whether whole words of the source read so; case, spaces, quotation marks and outer punctuation do not count."""
    wanted = _plain(text).strip(" .,;:!?'\"…")
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", _plain(source or "")) is not None


def _plain(text: str) -> str:
    straight = text.translate(str.maketrans("‘’“”", "''\"\""))
    return " ".join(straight.split()).casefold()
