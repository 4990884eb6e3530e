"""Cases out of prompts with two candidates, and transcripts as rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab.data.tables import Candidates, Prompt, read_candidates, read_jsonl
from trimtab.errors import DataError
from trimtab.methods.debates._base import Case, Transcript, Turn
from trimtab.methods.debates._said import Quote

SOURCES = "sources.jsonl"
ROWS = "rows.jsonl"


def read_cases_of(folder: Path) -> list[tuple[Candidates, Case]]:
    """Every prompt with its two candidates as a case. Raises DataError for another number of candidates."""
    table = read_candidates(folder / ROWS)
    sources = {row["id"]: row["source"] for row in read_jsonl(folder / SOURCES)} if (folder / SOURCES).exists() else {}
    if odd := [row for row in table if len(row.candidates) != 2]:
        raise DataError(
            f"{folder / ROWS}: row {odd[0].id} has {len(odd[0].candidates)} answers, and a debate is between two "
            f"({len(odd)} of {len(table)} rows): give pairs, or set sampling.samples to 2"
        )
    return [(row, case_of(row, sources.get(row.id))) for row in table]


def case_of(row: Candidates, source: str | None) -> Case:
    first, second = (candidate.text.strip() for candidate in row.candidates)
    return Case(row.id, as_text(row.prompt), (first, second), source)


def as_text(prompt: Prompt) -> str:
    """A text, one message's text, or several with their roles."""
    if isinstance(prompt, str):
        return prompt.strip()
    if len(prompt) == 1:
        return prompt[0]["content"].strip()
    return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in prompt)


def transcript_row(transcript: Transcript, costs: Iterable[Any]) -> dict[str, Any]:
    """A case's debate: every turn with its plan, its quotes and what it cost."""
    case = transcript.case
    turns = [asdict(turn) | asdict(cost) for turn, cost in zip(transcript.turns, costs, strict=True)]
    return {
        "id": case.id,
        "question": case.question,
        "answers": list(case.answers),
        "source": case.source,
        "order": list(transcript.order),
        "turns": turns,
    }


def transcript_of(row: Mapping[str, Any]) -> Transcript:
    case = Case(row["id"], row["question"], tuple(row["answers"]), row["source"])
    return Transcript(case, tuple(row["order"]), tuple(map(_turn, row["turns"])))


def _turn(row: Mapping[str, Any]) -> Turn:
    quotes = tuple(Quote(**quote) for quote in row["quotes"])
    return Turn(row["speaker"], row["name"], row["round"], row["text"], row["plan"], quotes, row["cut"])


def read_transcripts(folder: Path) -> dict[str, Transcript]:
    """Transcripts by the case's id."""
    return {row["id"]: transcript_of(row) for row in read_jsonl(folder / ROWS)}
