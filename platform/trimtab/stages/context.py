"""Stage context: what a classifier reads of every answer: the question, what was said of it, the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.compute import Compute
from trimtab.debating import ContextSpec
from trimtab.errors import DataError
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import read_scores
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from trimtab.data.tables import Candidates

MASK = "word"


@stage(version=1, on="driver")
def context(spec: ContextSpec, out: Path, *, compute: Compute, rows: Path, transcripts: Path | None = None) -> Metrics:
    """Two rows a case, CASE-0 and CASE-1: is this answer right? The truth is the label and nowhere in the text.

    Raises DataError where a case has no transcript, or no other case has one to take instead.
    """
    from trimtab.data.tables import Row, write_jsonl
    from trimtab.data.transcripts import read_cases_of
    from trimtab.methods.debates._judging import row_text

    table, scores = read_cases_of(rows), read_scores(rows)
    said = _said(spec, [row for row, _ in table], transcripts)
    made = [
        Row(
            f"{row.id}-{k}",
            row_text(spec.wording, case, said[row.id], k),
            int(scores[row.id][k] > scores[row.id][1 - k]),
            row.group or row.id,
            row.part,
        )
        for row, case in table
        for k in (0, 1)
    ]
    write_jsonl(out / ROWS, made)
    words = [len(row.text.split()) for row in made]
    return {"rows": len(made), "words": sum(words) / len(words), "words_longest": max(words)}


def _said(spec: ContextSpec, rows: list[Candidates], transcripts: Path | None) -> dict[str, str]:
    """The text of a transcript for every case."""
    from dataclasses import replace

    from trimtab.data.transcripts import read_transcripts
    from trimtab.methods.debates._base import render

    if spec.how == "none":
        return {row.id: "" for row in rows}
    found = read_transcripts(transcripts)
    if missing := [row.id for row in rows if row.id not in found]:
        raise DataError(f"{transcripts}: no transcript for case {missing[0]} ({len(missing)} lack theirs)")
    if spec.how == "shuffled":
        others = _others(rows, spec.seed)
        found = {row.id: found[others[row.id]] for row in rows}
    if spec.how == "masked":
        found = {
            case: replace(one, turns=tuple(replace(turn, text=_masked(turn.text)) for turn in one.turns))
            for case, one in found.items()
        }
    return {row.id: render(found[row.id], spec.wording) for row in rows}


def _masked(text: str) -> str:
    return " ".join([MASK] * len(text.split()))


def _others(rows: list[Candidates], seed: int) -> dict[str, str]:
    """A case of another group for every case, each taken about equally often; both of one part of the data."""
    from trimtab.data.formats import stable_hash

    found = {}
    for part in sorted({row.part for row in rows}):
        order = sorted((row for row in rows if row.part == part), key=lambda row: stable_hash(seed, "other", row.id))
        group = [row.group or row.id for row in order]
        for i, row in enumerate(order):
            later = ((i + step) % len(order) for step in range(1, len(order)))
            other = next((j for j in later if group[j] != group[i]), None)
            if other is None:
                raise DataError(f"case {row.id}: no case of another group has a transcript to take instead")
            found[row.id] = order[other].id
    return found
