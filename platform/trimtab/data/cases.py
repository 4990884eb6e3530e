"""Questions with a right and a wrong answer, from files of several forms, as prompts with two candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trimtab.data.formats import BadRow, label_of, right_choice, stable_hash
from trimtab.data.preferences import PairReader, records_of, sources_of
from trimtab.data.sources import Record, nearest
from trimtab.data.tables import Candidates
from trimtab.data.tasks import Rejected, check_usable
from trimtab.debating import CaseSpec
from trimtab.errors import DataError

USUAL = {
    "prompt": ("prompt", "question", "instruction"),
    "question": ("question", "prompt", "instruction"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "details": ("input",),
    "choices": ("choices", "options", "endings"),
    "answer": ("answer", "solution", "completion"),
    "first": ("output_1",),
    "second": ("output_2",),
    "label": ("label",),
    "id": ("id", "uid"),
    "group": ("group", "group_id"),
    "source": ("source", "context", "passage"),
}
NEEDED = {
    "pairs": ("prompt", "chosen", "rejected"),
    "choices": ("question", "choices", "label"),
    "compared": ("question", "first", "second", "label"),
    "judged": ("question", "answer", "label"),
}
"""What each form must have; `auto` takes the first form of which all is there."""
PAIR = ("id", "prompt", "chosen", "rejected", "group")
Own = dict[str, Any]


@dataclass(frozen=True)
class CaseResult:
    """Cases, the score of each answer (1 right, 0 wrong), texts to quote by case, and what was set aside.

    `unpaired`: questions of which only right or only wrong answers are known, and comparisons that tied.
    """

    rows: list[Candidates]
    scores: dict[str, list[float]]
    sources: dict[str, str]
    rejected: list[Rejected]
    n_records: int
    unpaired: int


def read_cases(spec: CaseSpec) -> CaseResult:
    """The cases of a task, each with its answers in an order drawn from its id.

    Raises DataError for an absent source, absent columns, no rows, or more than `max_bad_fraction` bad rows.
    """
    blocks = records_of(spec)
    present = {key for block in blocks for record in block if record.problem is None for key in record.raw}
    columns = {role: name for role in USUAL if (name := _column(spec, role, present))}
    form = _form(spec, columns, present)
    found = CaseResult([], {}, {}, [], sum(map(len, blocks)), 0)
    named = {role: role for role in PAIR if role in columns or role in ("prompt", "chosen", "rejected")}
    reader = PairReader("pairs", named, group_by_prompt=spec.group_by == "prompt")
    for number, block in enumerate(blocks):
        made, unpaired = _pairs(form, block, columns, found.rejected)
        found = replace(found, unpaired=found.unpaired + unpaired)
        for record, source in made:
            try:
                row, scores = reader.read(record, number)
            except BadRow as reason:
                found.rejected.append(Rejected(record.source, record.number, str(reason), record.raw))
                continue
            found.rows.append(row)
            found.scores[row.id] = scores or []
            if source:
                found.sources[row.id] = source
    check_usable(", ".join(sources_of(spec)), found, spec.max_bad_fraction)
    return found


def _column(spec: CaseSpec, role: str, present: Iterable[str]) -> str | None:
    asked = getattr(spec.columns, role)
    if asked and asked not in present:
        raise DataError(f"{spec.source}: columns.{role}: no column {asked!r}; {nearest(asked, present)}")
    return asked or next((name for name in USUAL[role] if name in present), None)


def _form(spec: CaseSpec, columns: Mapping[str, str], present: Iterable[str]) -> str:
    whole = [form for form, roles in NEEDED.items() if set(roles) <= set(columns)]
    if spec.format == "auto" and whole:
        return whole[0]
    if spec.format in whole:
        return spec.format
    wanted = NEEDED if spec.format == "auto" else {spec.format: NEEDED[spec.format]}
    forms = "; ".join(f"{form}: {', '.join(roles)}" for form, roles in wanted.items())
    raise DataError(f"{spec.source}: not all columns of a case are there ({forms}); name them as columns.ROLE; there "
                    f"is: {', '.join(sorted(present))}")  # fmt: skip


def _pairs(
    form: str, block: list[Record], columns: Mapping[str, str], rejected: list[Rejected]
) -> tuple[list[tuple[Record, str | None]], int]:
    """Records of prompt, chosen and rejected, each with its text to quote; and how many make up none."""
    good: list[tuple[Record, Own]] = []
    for record in block:
        if record.problem:
            rejected.append(Rejected(record.source, record.number, record.problem, record.raw))
        else:
            own = {role: record.raw.get(name) for role, name in columns.items()}
            if form != "pairs" and not (isinstance(own["question"], str) and own["question"].strip()):
                rejected.append(Rejected(record.source, record.number, "no question", record.raw))
                continue
            good.append((record, own if form == "pairs" else own | {"question": _question(own)}))
    if form == "judged":
        return _judged(good)
    make: Callable[[Own], Own | None] = {"pairs": lambda own: own, "choices": _choice, "compared": _compared}[form]
    made, unpaired = [], 0
    for record, own in good:
        try:
            pair = make(own)
        except BadRow as reason:
            rejected.append(Rejected(record.source, record.number, str(reason), record.raw))
            continue
        unpaired += pair is None
        made += [(_record(record, own | pair), own.get("source"))] if pair else []
    return made, unpaired


def _record(record: Record, pair: Own) -> Record:
    return replace(record, raw={name: pair.get(name) for name in PAIR})


def _question(own: Own) -> str:
    """The question, and the details that belong to it."""
    details = own.get("details")
    return f"{own['question']}\n{details}" if isinstance(details, str) and details.strip() else own["question"]


def _choice(own: Own) -> Own:
    """The right choice and a wrong one, drawn from the question."""
    choices = own["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise BadRow("choices is not a list of texts")
    right = right_choice(own["label"], choices)
    wrong = [choice for choice in choices if choice.strip() not in ("", choices[right].strip())]
    if not wrong:
        raise BadRow("no wrong candidate")
    drawn = min(wrong, key=lambda choice: stable_hash(own["question"], choice))
    return {"prompt": own["question"], "chosen": choices[right], "rejected": drawn}


def _compared(own: Own) -> Own | None:
    """Two answers and which is the better, 1 or 2; 0 is a tie, which makes up no case."""
    verdict = label_of(own["label"])
    if verdict not in (0, 1, 2):
        raise BadRow("label is none of 0 (tie), 1 and 2")
    if verdict == 0:
        return None
    answers = (own["first"], own["second"])
    return {"prompt": own["question"], "chosen": answers[verdict - 1], "rejected": answers[2 - verdict]}


def _judged(good: list[tuple[Record, Own]]) -> tuple[list[tuple[Record, str | None]], int]:
    """A right and a wrong answer of each question that has both, drawn from the question."""
    questions: dict[str, list[tuple[Record, Own]]] = defaultdict(list)
    for record, own in good:
        questions[own["question"]].append((record, own))
    made = list(_both(questions))
    return made, len(questions) - len(made)


def _both(questions: Mapping[str, list[tuple[Record, Own]]]) -> Iterator[tuple[Record, str | None]]:
    for question, told in questions.items():
        order = sorted(told, key=lambda one: stable_hash(question, one[1]["answer"]))
        first = {label_of(own["label"]): (record, own) for record, own in reversed(order)}
        if 0 in first and 1 in first:
            record, own = first[1]
            pair = own | {"prompt": question, "chosen": own["answer"], "rejected": first[0][1]["answer"]}
            yield _record(record, pair), own.get("source")
