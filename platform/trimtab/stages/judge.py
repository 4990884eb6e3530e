"""Stages judge and verdicts: a language model reads every debate and says who is right; its word as labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.debating import JudgeSpec
from trimtab.errors import DataError
from trimtab.parts import LabelSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.pairs import read_scores, write_scores
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from trimtab.methods.debates._judging import Verdict
    from trimtab.models.debating import Brief

LEAST = 1e-6


@stage(version=1, on="workers")
def judge(
    spec: JudgeSpec,
    out: Path,
    *,
    compute: Compute,
    rows: Path,
    transcripts: Path | None = None,
    model: Path | None = None,
) -> Metrics:
    """A verdict a case, both orders of the answers averaged; without `transcripts` the judge reads the case alone.

    scores.jsonl holds log p of either answer, so that pairs made of it have p as the judge gave it.
    """
    from trimtab.data.tables import write_jsonl
    from trimtab.data.transcripts import read_cases_of, read_transcripts
    from trimtab.methods.debates._base import render
    from trimtab.models.debating import Brief
    from trimtab.training.world import world

    ranks = world()
    said = {i: render(one, spec.wording) for i, one in read_transcripts(transcripts).items()} if transcripts else {}
    cases = [case for _, case in read_cases_of(rows)]
    if transcripts and (missing := [case.id for case in cases if case.id not in said]):
        raise DataError(f"{transcripts}: no transcript for case {missing[0]} ({len(missing)} lack theirs)")
    mine = ranks.share([Brief(case, said.get(case.id, "")) for case in cases])
    own = dict(zip((brief.case.id for brief in mine), _judged(spec, model, compute, mine), strict=True))
    found = {case_id: verdict for part in ranks.gather(own) for case_id, verdict in part.items()}
    table = [(case.id, found[case.id]) for case in cases]
    if ranks.first:
        write_jsonl(out / ROWS, ({"id": i, "given": one.given, "swapped": one.swapped} for i, one in table))
        write_scores(out, {i: [math.log(max(p, LEAST)) for p in one.probabilities] for i, one in table})
    return _biases([one for _, one in table])


def _judged(spec: JudgeSpec, model: Path | None, compute: Compute, briefs: list[Brief]) -> list[Verdict]:
    from trimtab.models.debating import Chat, Judge
    from trimtab.models.language import LanguageModel, end_ids, load_language, made_by
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder
    from trimtab.progress import Meter

    if not briefs:
        return []
    source = made_by(model, spec.model)
    tokenizer = load_tokenizer(model_folder(source.source, compute.cache, revision=source.revision))
    network = load_language(source, compute.cache)
    lm = LanguageModel(network, ends=end_ids(network, tokenizer), batch=compute.inference_batch)
    asked, meter, found = Judge(lm, Chat(tokenizer), spec.wording), Meter(len(briefs)), []
    for start in range(0, len(briefs), compute.inference_batch):
        batch = briefs[start : start + compute.inference_batch]
        found += asked(batch)
        meter.add(len(batch), 0)
    return found


def _biases(verdicts: list[Verdict]) -> Metrics:
    """How sure the judge is, and how much hangs on which answer is listed first."""
    n = len(verdicts)
    return {
        "rows": n,
        "confidence": sum(max(one.probabilities) for one in verdicts) / n,
        "position_bias": sum(one.place_bias for one in verdicts) / n,
        "turns_with_order": sum(one.turns_with_order for one in verdicts) / n,
    }


@stage(version=1, on="driver")
def verdicts(spec: LabelSpec, out: Path, *, compute: Compute, judged: Path, data: Path) -> Metrics:
    """A judge's verdicts on cases as labels of their answers, as stage context makes rows of them."""
    from trimtab.data.tables import read_jsonl

    scores = read_scores(judged)
    found: dict[str, list[float]] = {}
    for row in read_jsonl(data / ROWS):
        case, _, answer = row["id"].rpartition("-")
        if case not in scores:
            raise DataError(f"{judged}: no verdict on case {case}")
        own, other = scores[case][int(answer)], scores[case][1 - int(answer)]
        right = 1 / (1 + math.exp((other - own) / spec.temperature))
        found[row["id"]] = [1 - right, right]
    return write_labels(out, data, found, who=judged.name)


def write_labels(out: Path, data: Path, soft: Mapping[str, list[float]], *, who: str, source: str = "weak") -> Metrics:
    """Weak labels for rows as a student sees them: the text of `data`, the labels of a judge."""
    from trimtab.data.tables import WeakLabel, read_jsonl, write_jsonl

    def made(row: dict[str, Any]) -> WeakLabel:
        p = [round(one, 7) for one in soft[row["id"]]]
        return WeakLabel(row["id"], row["text"], p, p.index(max(p)), who, max(p), source)

    table = [made(row) for row in read_jsonl(data / ROWS)]
    write_jsonl(out / ROWS, table)
    return {"rows": len(table), "weak_confidence": sum(row.weak_confidence for row in table) / len(table)}
