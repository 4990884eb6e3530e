"""Stages panel and grade: several judges' labels into one, and how right, how sure and how biased labels are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from trimtab.compute import Compute
from trimtab.debating import PanelSpec
from trimtab.errors import DataError
from trimtab.parts import EvalSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.evaluate import OWN_ROWS, PREDICTIONS
from trimtab.stages.evaluate import scores as scored
from trimtab.stages.judge import write_labels
from trimtab.stages.pairs import read_scores, write_scores
from trimtab.stages.prepare import ROWS


@stage(version=1, on="driver")
def panel(spec: PanelSpec, out: Path, *, compute: Compute, members: Mapping[str, Path], data: Path) -> Metrics:
    """The members' labels as one, for rows as `data` shows them. `agreement`: share of rows on which two agree.

    Raises DataError where a member has no label for a row.
    """
    import torch

    from trimtab.data.tables import read_jsonl

    tables = [{row["id"]: row for row in read_jsonl(folder / ROWS)} for folder in members.values()]
    ids = [row["id"] for row in read_jsonl(data / ROWS)]
    for name, table in zip(members, tables, strict=True):
        if missing := [i for i in ids if i not in table]:
            raise DataError(f"judge {name} has no label for {len(missing)} rows, {missing[0]} the first")
    probs_JNC = torch.tensor([[table[i]["soft_label"] for i in ids] for table in tables])
    together = spec.panel(probs_JNC).tolist()
    own = any(table[i]["label_source"] == OWN_ROWS for table in tables for i in ids)
    source = OWN_ROWS if own else "weak"
    made = write_labels(out, data, dict(zip(ids, together, strict=True)), who="panel", source=source)
    says_JN = probs_JNC.argmax(-1)
    pairs = [float((a == b).float().mean()) for a, b in combinations(says_JN, 2)]
    return made | {"members": len(tables)} | ({"agreement": sum(pairs) / len(pairs)} if pairs else {})


@stage(version=1, on="driver")
def jury(spec: PanelSpec, out: Path, *, compute: Compute, members: Mapping[str, Path]) -> Metrics:
    """The panel's scores of two completions a prompt, out of its members': log p of either."""
    import torch

    tables = [read_scores(folder) for folder in members.values()]
    logprobs_JN2 = torch.tensor([[table[i] for i in tables[0]] for table in tables], dtype=torch.float64)
    together_N2 = spec.panel(logprobs_JN2.softmax(-1)).clamp(min=1e-6).log()
    write_scores(out, dict(zip(tables[0], together_N2.tolist(), strict=True)))
    return {"rows": len(tables[0]), "members": len(tables)}


@stage(version=1, on="driver")
def grade(
    spec: EvalSpec, out: Path, *, compute: Compute, labels: Path, truth: Path, transcripts: Path | None = None
) -> Metrics:
    """Labels against the truth as if they were a model's predictions: predictions.jsonl, accuracy, ece, brier, auroc.

    With `transcripts`, `speaker_bias`: how much likelier an answer is found right for being argued for first.
    """
    from trimtab.data.tables import read_jsonl, write_jsonl

    right = {row["id"]: row["label"] for row in read_jsonl(truth / ROWS)}
    given = {row["id"]: row["soft_label"] for row in read_jsonl(labels / ROWS)}
    rows = [{"id": i, "label": label, "probs": given[i]} for i, label in right.items()]
    write_jsonl(out / PREDICTIONS, rows)
    found = scored([row["probs"] for row in rows], [row["label"] for row in rows], bins=spec.ece_bins)
    return found | (_speaker_bias(given, transcripts) if transcripts else {})


def _speaker_bias(given: Mapping[str, list[float]], transcripts: Path) -> Metrics:
    """Mean P(right) of answers argued for first, less that of the others; right ones are about as many in both."""
    from trimtab.data.transcripts import read_transcripts

    said, found = read_transcripts(transcripts), ([], [])
    for row_id, probs in given.items():
        case, _, answer = row_id.rpartition("-")
        found[said[case].order.index(int(answer))].append(probs[1])
    first, second = (sum(values) / len(values) for values in found)
    return {"speaker_bias": first - second}
