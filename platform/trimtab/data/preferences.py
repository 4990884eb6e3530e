"""Prompts, answers and pairs of answers read into candidates; what cannot be used is set aside with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.alignment import PromptSpec
from trimtab.data.formats import BadRow, label_of, stable_hash
from trimtab.data.messages import MIXED, answer_of, conversation, prompt_of, question, shared_beginning
from trimtab.data.sources import Record, nearest, read_records
from trimtab.data.tables import Candidates, Completion, Prompt
from trimtab.data.tasks import Rejected, check_usable
from trimtab.errors import DataError

Format = Literal["prompts", "pairs", "messages", "completions", "labelled completions"]
USUAL = {
    "prompt": ("prompt",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "completion": ("completion",),
    "label": ("label",),
    "messages": ("messages",),
    "id": ("id", "uid", "example_id"),
    "group": ("group", "group_id"),
}
TRUE_FALSE = {"true": 1, "false": 0}


@dataclass(frozen=True)
class PromptResult:
    """Candidates and how they were found.

    given_scores: id -> a score for each candidate, where the data say which answer is the better (1 and 0, in an order
    drawn from the id) or whether the one answer is good. columns: role -> column.
    """

    rows: list[Candidates]
    given_scores: dict[str, list[float]]
    rejected: list[Rejected]
    format: Format
    columns: dict[str, str]
    n_records: int


def read_prompts(spec: PromptSpec) -> PromptResult:
    """The candidates of a prompt set.

    Raises DataError for an absent source, absent columns, no rows, or more than `max_bad_fraction` bad rows.
    """
    result = scan_prompts(spec)
    check_usable(", ".join(sources_of(spec)), result, spec.max_bad_fraction)
    return result


def scan_prompts(spec: PromptSpec) -> PromptResult:
    """As `read_prompts`, however many rows are bad."""
    blocks = records_of(spec)
    present = Counter(key for block in blocks for r in block if r.problem is None for key in r.raw)
    columns = _columns(spec, present)
    kind = _format(spec, columns, present)
    reader = PairReader(kind, columns, group_by_prompt=spec.group_by == "prompt")
    read: list[tuple[Record, Candidates, list[float] | None]] = []
    rejected: list[Rejected] = []
    for number, block in enumerate(blocks):
        for record in block:
            try:
                read.append((record, *reader.read(record, number)))
            except BadRow as reason:
                rejected.append(_rejected(record, str(reason)))
    texts = sum(isinstance(row.prompt, str) for _, row, _ in read)
    text_form = 2 * texts > len(read)
    odd = "messages among texts" if text_form else "a text among messages"
    rejected += [_rejected(record, odd) for record, row, _ in read if isinstance(row.prompt, str) != text_form]
    kept = [(row, scores) for _, row, scores in read if isinstance(row.prompt, str) == text_form]
    given = {row.id: scores for row, scores in kept if scores is not None}
    return PromptResult([row for row, _ in kept], given, rejected, kind, columns, sum(map(len, blocks)))


def sources_of(spec: PromptSpec) -> tuple[str, ...]:
    return (spec.source,) if isinstance(spec.source, str) else spec.source


def _rejected(record: Record, reason: str) -> Rejected:
    return Rejected(record.source, record.number, reason, record.raw)


def records_of(spec: PromptSpec) -> list[list[Record]]:
    """The records of each source, those of the test source last."""
    named = ", ".join(sources_of(spec))
    blocks = [read_records(source) for source in sources_of(spec)]
    if spec.test is not None:
        if any(record.part == "test" for block in blocks for record in block):
            raise DataError(f"{named}: brings its own test rows, so `test: {spec.test}` cannot be used beside it")
        blocks.append([record for record in read_records(spec.test, "test") if record.part == "test"])
    if not any(blocks):
        raise DataError(f"{named}: holds no rows")
    return blocks


def _columns(spec: PromptSpec, present: Mapping[str, int]) -> dict[str, str]:
    found = {}
    for role, usual in USUAL.items():
        asked = getattr(spec.columns, role, None)
        if asked and present and asked not in present:
            raise DataError(f"{spec.source}: columns.{role}: no column {asked!r}; {nearest(asked, present)}")
        if name := asked or next((name for name in usual if name in present), None):
            found[role] = name
    return found


def _format(spec: PromptSpec, columns: Mapping[str, str], present: Mapping[str, int]) -> Format:
    """The format asked for, or the richest that the columns allow."""
    answers = {"chosen", "rejected"} & set(columns)
    if spec.format == "pairs" or (spec.format == "auto" and answers):
        if len(answers) == 2 or not present:
            return "pairs"
        missing = "rejected" if "chosen" in answers else "chosen"
        raise DataError(f"{spec.source}: no column {missing!r}; name it as columns.{missing}; {nearest('', present)}")
    if spec.format == "auto" and {"prompt", "completion"} <= set(columns):
        return "labelled completions" if "label" in columns else "completions"
    if spec.format == "auto" and "messages" in columns and "prompt" not in columns:
        return "messages"
    if present and not {"prompt", "messages"} & set(columns) and len(answers) < 2:
        raise DataError(f"{spec.source}: no column for the prompt; name one as columns.prompt; {nearest('', present)}")
    return "prompts"


@dataclass
class PairReader:
    """Reads records of one format; `read` raises BadRow with the reason."""

    kind: Format
    columns: dict[str, str]
    group_by_prompt: bool
    seen: set[tuple[int, str, str]] = field(default_factory=set)
    taken: dict[str, tuple[int, str]] = field(default_factory=dict)

    def read(self, record: Record, source: int) -> tuple[Candidates, list[float] | None]:
        """A prompt with its answers, and their scores where the record tells which is better."""
        if record.problem:
            raise BadRow(record.problem)
        own = {role: record.raw.get(name) for role, name in self.columns.items()}
        prompt, answers, scores = self._parts(own)
        key = self._id(own, [prompt, answers, scores], (source, record.part))
        if len(answers) == 2 and int(stable_hash("position", key), 16) % 2:
            answers, scores = answers[::-1], scores and scores[::-1]
        row = Candidates(key, prompt, [Completion(text) for text in answers], self._group(own, prompt), record.part)
        return row, scores

    def _parts(self, own: Mapping[str, Any]) -> tuple[Prompt, list[str], list[float] | None]:
        if self.kind == "pairs":
            return _pair(own)
        if self.kind == "messages":
            prompt, answer = conversation(own["messages"])
            return prompt_of(prompt), [answer], None
        if self.kind == "prompts":
            return _prompt(own), [], None
        prompt = prompt_of(own["prompt"])
        answer = answer_of(own["completion"], "completion", prompt)
        return prompt, [answer], [_truth(own["label"])] if self.kind == "labelled completions" else None

    def _id(self, own: Mapping[str, Any], content: Iterable[Any], block: tuple[int, str]) -> str:
        """The file's id, set apart where an earlier source or part uses it too; without one a hash of the content."""
        if "id" not in self.columns:
            key = stable_hash(*(json.dumps(part, sort_keys=True) for part in content))
            block = (0, block[1])
        elif own["id"] is None or own["id"] == "":
            raise BadRow("no id")
        else:
            key = str(own["id"])
        if (*block, key) in self.seen:
            raise BadRow("duplicate id" if "id" in self.columns else "duplicate row")
        self.seen.add((*block, key))
        if self.taken.setdefault(key, block) == block:
            return key
        return f"{block[0] + 1}/" * (block[0] > 0 and block[1] == "train") + "test/" * (block[1] == "test") + key

    def _group(self, own: Mapping[str, Any], prompt: Prompt) -> str | None:
        if not self.group_by_prompt:
            return None
        named = own.get("group")
        return stable_hash(json.dumps(prompt, sort_keys=True)) if named is None or named == "" else str(named)


def _pair(own: Mapping[str, Any]) -> tuple[Prompt, list[str], list[float]]:
    chosen, rejected = own["chosen"], own["rejected"]
    if chosen is None and rejected is None:
        raise BadRow("neither chosen nor rejected")
    prompt = _prompt(own)
    if "prompt" not in own and isinstance(prompt, str):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    answers = [answer_of(chosen, "chosen", prompt), answer_of(rejected, "rejected", prompt)]
    if answers[0].split() == answers[1].split():
        raise BadRow("chosen and rejected are the same")
    return prompt, answers, [1.0, 0.0]


def _prompt(own: Mapping[str, Any]) -> Prompt:
    """The prompt of its own column, else what comes before the answers.

    A text beside answers of several messages may repeat what the user says in them; then theirs is the whole prompt.
    """
    if "prompt" not in own:
        pair = {"chosen", "rejected"} <= set(own)
        return shared_beginning(own["chosen"], own["rejected"]) if pair else question(own["messages"])
    prompt = prompt_of(own["prompt"])
    if isinstance(prompt, str) and isinstance(own.get("chosen"), list):
        told = shared_beginning(own["chosen"], own.get("rejected"))
        if not any(message["role"] == "user" and message["content"].strip() == prompt.strip() for message in told):
            raise BadRow(MIXED)
        return told
    return prompt


def _truth(value: Any) -> float:
    label = TRUE_FALSE.get(value.strip().lower(), label_of(value)) if isinstance(value, str) else label_of(value)
    if label not in (0, 1):
        raise BadRow("no label" if value is None else "label is neither true nor false")
    return float(label)
