"""Data sets that come with trimtab or with a package: words for classifiers, openings for policies, facts."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import DataError

Rows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Builtin:
    """Where a data set's file is, and its raw rows with the line each is from."""

    file: Callable[[], Path]
    rows: Callable[[Path], Rows]


def _lexicon() -> Path:
    found = importlib.util.find_spec("vaderSentiment")  # not imported: the import needs more packages
    if found is None or not found.submodule_search_locations:
        raise DataError("builtin:valence needs the package vaderSentiment; run: pip install --no-deps vaderSentiment")
    return Path(found.submodule_search_locations[0]) / "vader_lexicon.txt"


def _valence(lexicon: Path) -> Rows:
    """Words and the sign of their mean vote in VADER's lexicon (Hutto & Gilbert 2014), grouped by word family."""
    seen: set[str] = set()
    for number, line in enumerate(lexicon.read_text(encoding="utf-8").splitlines(), start=1):
        word, mean = line.split("\t")[:2]
        if re.fullmatch("[A-Za-z]{3,}", word) and abs(float(mean)) >= 0.5 and word not in seen:
            seen.add(word)
            yield (
                number,
                {
                    "id": f"valence-{word}",
                    "word": word,
                    "text": f'The feeling of the word "{word}" is',
                    "label": int(float(mean) > 0),
                    "group": word[:5].lower(),
                    "mean": float(mean),
                },
            )


def _openings(path: Path) -> Rows:
    """Beginnings of sentences that may go on well or badly; an indented one varies the one above it."""
    theme = family = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# "):
            theme = line.removeprefix("# ")
        elif line:
            family = family if line.startswith(" ") else line
            yield number, {"prompt": line.strip(), "theme": theme, "group": family}


def _facts(path: Path) -> Rows:
    """Two questions about every fact of a table; the wrong answer is right for another fact of the same table."""
    tables: list[tuple[list[str], list[tuple[int, str, str]]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# "):
            tables.append((line.removeprefix("# ").split(" | "), []))
        elif line:
            subject, answer = line.rsplit(": ", 1)
            tables[-1][1].append((number, subject, answer))
    for questions, facts in tables:
        for i, (number, subject, answer) in enumerate(facts):
            for k, question in enumerate(questions):
                later = (facts[(i + step) % len(facts)][2] for step in range(k + 1, len(facts)))
                yield (
                    number,
                    {
                        "id": f"facts-{number}-{k}",
                        "prompt": [{"role": "user", "content": question.format(subject)}],
                        "chosen": [{"role": "assistant", "content": answer}],
                        "rejected": [{"role": "assistant", "content": next(one for one in later if one != answer)}],
                        "group": f"{number}",
                    },
                )


BUILTIN = {
    "valence": Builtin(_lexicon, _valence),
    "openings": Builtin(lambda: Path(__file__).with_name("openings.txt"), _openings),
    "facts": Builtin(lambda: Path(__file__).with_name("facts.txt"), _facts),
}
