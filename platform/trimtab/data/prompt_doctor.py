"""A look at prompts and pairs before anything is trained on them; with a tokenizer, at what exactly is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.alignment import PromptSpec
from trimtab.data.doctor import Lengths, by_reason, length_lines, lengths_of, normalised, rejected_lines, short
from trimtab.data.formats import stable_hash
from trimtab.data.preferences import Format, PromptResult, scan_prompts, sources_of
from trimtab.data.rendering import COUNTS, Rendered, prompt_tokens, render_all
from trimtab.data.sources import read_records
from trimtab.data.tables import Candidates, Prompt
from trimtab.data.tasks import USUAL, Rejected
from trimtab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZED = 1000
"""Rows whose tokens are counted."""


@dataclass(frozen=True)
class Tokens:
    """What a model is shown: lengths in tokens of some rows, and what became of them within `max_length`."""

    model: str
    max_length: int
    rows: int
    prompts: Lengths | None
    answers: Lengths | None
    counts: dict[str, int]


@dataclass(frozen=True)
class Sample:
    """A row: lines of (what it is, text); with a model, the text that is trained on stands between [[ and ]]."""

    id: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PromptReport:
    """What `examine_prompts` found.

    longer_chosen: share of pairs whose chosen answer is the longer one, of those of unequal length. glued: rows of text
    with no space between prompt and answer. test_in_train: test rows whose prompt is in train. repeated: rows beyond
    the first of each prompt.
    """

    source: str
    format: Format
    messages: bool
    columns: dict[str, str]
    n_records: int
    parts: dict[str, int]
    n_groups: int
    prompt_words: Lengths | None
    answer_words: Lengths | None
    longer_chosen: float | None
    repeated: int
    test_in_train: int
    glued: int
    rejected: dict[str, tuple[tuple[str, int], ...]]
    max_bad_fraction: float
    tokens: Tokens | None
    sample: tuple[Sample, ...]

    @property
    def n_rows(self) -> int:
        return sum(self.parts.values())

    @property
    def n_rejected(self) -> int:
        return sum(map(len, self.rejected.values()))

    @property
    def usable(self) -> bool:
        """Whether `read_prompts` would accept the data set."""
        return self.n_rows > 0 and self.n_rejected <= self.max_bad_fraction * self.n_records


def holds_prompts(source: str) -> bool:
    """Whether the columns are those of prompts or preferences rather than of labelled texts; False of no source."""
    try:
        records = read_records(source)
    except DataError:
        return False
    columns = {key for record in records if record.problem is None for key in record.raw}
    answers = {"chosen", "rejected"} <= columns or "messages" in columns or {"prompt", "completion"} <= columns
    return answers or ("prompt" in columns and not columns & set(USUAL["label"]))


def examine_prompts(
    spec: PromptSpec,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    model: str | None = None,
    max_length: int = 512,
) -> tuple[PromptReport, list[Rejected]]:
    """Read prompts and describe them, however many rows are bad; the rejected rows are for `write_quarantine`.

    Raises DataError when they cannot be read at all, ModelError for messages and a tokenizer without a chat template.
    """
    found = scan_prompts(spec)
    rows = found.rows
    tokens = _tokens(rows, tokenizer, model or "a model", max_length) if tokenizer else None
    report = PromptReport(
        source=", ".join(sources_of(spec)),
        format=found.format,
        messages=any(isinstance(row.prompt, list) for row in rows),
        columns=found.columns,
        n_records=found.n_records,
        parts=dict(Counter(row.part for row in rows)),
        n_groups=len({row.group for row in rows if row.group is not None}),
        prompt_words=lengths_of([len(text_of(row.prompt).split()) for row in rows]),
        answer_words=lengths_of([len(one.text.split()) for row in rows for one in row.candidates]),
        longer_chosen=_longer_chosen(found),
        repeated=sum(n - 1 for n in Counter(normalised(text_of(row.prompt)) for row in rows).values()),
        test_in_train=_test_in_train(rows),
        glued=sum(any(_glued(row.prompt, one.text) for one in row.candidates) for row in rows),
        rejected=by_reason(found.rejected),
        max_bad_fraction=spec.max_bad_fraction,
        tokens=tokens,
        sample=tuple(_sample(row, found, tokenizer, max_length) for row in rows[:3]),
    )
    return report, found.rejected


def text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _longer_chosen(found: PromptResult) -> float | None:
    longer: list[bool] = []
    for row in found.rows:
        scores, lengths = found.given_scores.get(row.id, []), [len(one.text) for one in row.candidates]
        if len(scores) == 2 and lengths[0] != lengths[1]:
            longer.append((scores[0] > scores[1]) == (lengths[0] > lengths[1]))
    return sum(longer) / len(longer) if longer else None


def _test_in_train(rows: Sequence[Candidates]) -> int:
    train = {normalised(text_of(row.prompt)) for row in rows if row.part == "train"}
    return sum(row.part == "test" and normalised(text_of(row.prompt)) in train for row in rows)


def _glued(prompt: Prompt, answer: str) -> bool:
    return isinstance(prompt, str) and not prompt[-1].isspace() and answer[:1].isalnum()


def _tokens(rows: Sequence[Candidates], tokenizer: PreTrainedTokenizerBase, model: str, max_length: int) -> Tokens:
    drawn = sorted(rows, key=lambda row: stable_hash("tokens", row.id))[:TOKENIZED]
    asked = [(row.prompt, one.text, one.ended) for row in drawn for one in row.candidates]
    rendered, counts = render_all(tokenizer, asked, max_length=max_length)
    return Tokens(
        model,
        max_length,
        len(drawn),
        lengths_of([len(prompt_tokens(tokenizer, row.prompt)) for row in drawn]),
        lengths_of([len(one.completion_ids) + one.truncated for one in rendered if one]),
        counts,
    )


def _sample(row: Candidates, found: PromptResult, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> Sample:
    scores = found.given_scores.get(row.id, [])
    roles = ["chosen" if score == max(scores) else "rejected" for score in scores] if len(scores) == 2 else ["answer"]
    answers = sorted(zip(roles, row.candidates, strict=False), key=lambda item: item[0])
    if tokenizer is None or not answers:
        prompt = tokenizer.decode(prompt_tokens(tokenizer, row.prompt)) if tokenizer else text_of(row.prompt)
        lines = [("prompt", _tail(prompt))] + [(role, _ends(one.text)) for role, one in answers]
        return Sample(row.id, tuple(lines))
    asked = [(row.prompt, one.text, one.ended) for _, one in answers]
    rendered, _ = render_all(tokenizer, asked, max_length=max_length)
    shown = [_marked(tokenizer, one) if one else "(does not fit)" for one in rendered]
    return Sample(row.id, tuple(zip((role for role, _ in answers), shown, strict=True)))


def _marked(tokenizer: PreTrainedTokenizerBase, shown: Rendered) -> str:
    return f"{_tail(tokenizer.decode(shown.prompt_ids))}[[{_ends(tokenizer.decode(shown.completion_ids))}]]"


def _tail(text: str) -> str:
    text = short_line(text)
    return text if len(text) <= 100 else "..." + text[-97:]


def _ends(text: str) -> str:
    text = short_line(text)
    return text if len(text) <= 160 else f"{text[:120]} ... {text[-35:]}"


def short_line(text: str) -> str:
    """The text on one line, a line break as an arrow."""
    return "".join(c if c.isprintable() else " " for c in text.replace("\n", "↵"))


def render_prompts(report: PromptReport) -> str:
    """The report as plain text."""
    found = ", ".join(f"{role} from {short(name)!r}" for role, name in report.columns.items())
    form = "messages" if report.messages else "texts"
    split = ", ".join(f"{n} {part}" for part, n in sorted(report.parts.items(), reverse=True)) or "none"
    lines = [
        f"{report.source}: {report.format}, prompts are {form}; {found}",
        f"{report.n_rows} rows ({split}) from {report.n_records} records, {report.n_groups} groups; "
        f"{report.n_rejected} records rejected",
        "",
        *length_lines("words, prompts", report.prompt_words),
        *length_lines("words, answers", report.answer_words),
        f"Repeated prompts: {report.repeated}; test rows whose prompt is in train: {report.test_in_train}",
    ]
    if report.n_groups < 3 <= report.n_rows and report.n_groups:
        lines.append(f"All prompts fall into {report.n_groups} groups, which cannot be split; set group_by: row")
    if report.longer_chosen is not None:
        lines.append(f"The chosen answer is the longer one in {report.longer_chosen:.1%} of pairs of unequal length")
    if report.glued:
        lines.append(f"No space between prompt and answer: {report.glued} rows; a model reads them as one word")
    lines += [*rejected_lines(report), *_token_lines(report.tokens)]
    lines.append("First rows" + "; what stands in [[ ]] is trained on:" if report.tokens else "First rows:")
    for sample in report.sample:
        lines.append(f"  {sample.id}")
        lines += [f"    {role + ':':<9} {text}" for role, text in sample.lines]
    return "\n".join(lines)


def _token_lines(tokens: Tokens | None) -> list[str]:
    if tokens is None:
        return []
    what = ", ".join(f"{tokens.counts[name]} {name.replace('_', ' ')}" for name in COUNTS[1:])
    head = f"Tokens of {tokens.rows} rows for {tokens.model}, max_length {tokens.max_length}: {what}"
    return [head, *length_lines("tokens, prompts", tokens.prompts), *length_lines("tokens, answers", tokens.answers)]
