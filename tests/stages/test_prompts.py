"""Stages prompts and divide: what is written where, and that no truth lies beside a student's inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.alignment import PromptSpec
from trimtab.compute import Compute
from trimtab.data.tables import read_candidates, read_jsonl
from trimtab.errors import DataError
from trimtab.parts import SplitSpec
from trimtab.stages.prompts import divide, prompts

COMPUTE = Compute(backend="inline")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The output of stage prompts on 60 pairs, two to a prompt, and a bad one."""
    rows = [{"prompt": f"p{i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"chosen": None}]))
    out = tmp_path / "prompts"
    out.mkdir()
    metrics = prompts(PromptSpec(source=str(source), max_bad_fraction=0.02), out, compute=COMPUTE)
    assert metrics == {"rows": 60, "rejected": 1, "beyond_limit": 0}
    return out


def test_a_limit_keeps_the_same_rows_whatever_their_order_and_counts_the_rest(tmp_path: Path) -> None:
    texts = [f"opening number {i}" for i in range(20)]
    kept = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        source, out = tmp_path / f"{name}.jsonl", tmp_path / name
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in order))
        out.mkdir()
        metrics = prompts(PromptSpec(source=str(source), limit=5), out, compute=COMPUTE)
        assert metrics == {"rows": 5, "rejected": 0, "beyond_limit": 15}
        kept.append({row.prompt for row in read_candidates(out / "rows.jsonl")})
    assert kept[0] == kept[1]


def divided(out: Path, spec: SplitSpec, **inputs: Path) -> dict[str, float]:
    out.mkdir()
    return divide(spec, out, compute=COMPUTE, **inputs)


@pytest.mark.chaos
def test_prompts_write_rows_truth_and_quarantine_apart(pairs: Path) -> None:
    rows, scores = read_candidates(pairs / "rows.jsonl"), read_jsonl(pairs / "scores.jsonl")
    assert [row.id for row in rows] == [row["id"] for row in scores]
    for row, truth in zip(rows, scores, strict=True):
        assert sorted(truth["scores"]) == [0.0, 1.0]
        assert row.candidates[truth["scores"].index(1.0)].text.startswith("good")
    assert [row["reason"] for row in read_jsonl(pairs / "quarantine.jsonl")] == ["no chosen"]
    assert "score" not in (pairs / "rows.jsonl").read_text()


def test_prompts_alone_have_no_truth(tmp_path: Path) -> None:
    assert prompts(PromptSpec(source="builtin:openings"), tmp_path, compute=COMPUTE)["rejected"] == 0
    assert not (tmp_path / "scores.jsonl").exists()
    out = tmp_path / "out"
    found = divided(out, SplitSpec(), rows=tmp_path, scores=tmp_path)
    assert not (out / "truth").exists()
    assert found["supervise"] == found["transfer"] == found["test"] > 150


def test_divide_keeps_truth_in_parts_of_its_own(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = divided(out, SplitSpec(hops=2), rows=pairs, scores=pairs)
    assert found == {"supervise": 20, "transfer": 20, "test": 20, "transfer.0": 10, "transfer.1": 10}
    truth = {row["id"]: row["scores"] for row in read_jsonl(pairs / "scores.jsonl")}
    for name, n in found.items():
        assert [path.name for path in (out / name).iterdir()] == ["rows.jsonl"]
        rows = read_candidates(out / name / "rows.jsonl")
        scores = read_jsonl(out / "truth" / name / "scores.jsonl")
        assert len(rows) == n
        assert [(row["id"], row["scores"]) for row in scores] == [(row.id, truth[row.id]) for row in rows]
    shown = {name: {row.prompt for row in read_candidates(out / name / "rows.jsonl")} for name in found}
    assert not shown["supervise"] & shown["transfer"] | shown["transfer"] & shown["test"]
    assert shown["transfer.0"] | shown["transfer.1"] == shown["transfer"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name: part["n"] for name, part in manifest.items()} == found


def test_divide_without_scores_and_with_scores_that_miss_a_row(pairs: Path, tmp_path: Path) -> None:
    divided(tmp_path / "plain", SplitSpec(), rows=pairs)
    assert not (tmp_path / "plain" / "truth").exists()
    short = tmp_path / "short"
    short.mkdir()
    lines = (pairs / "scores.jsonl").read_text().splitlines()
    (short / "scores.jsonl").write_text("\n".join(lines[1:]))
    missing = json.loads(lines[0])["id"]
    with pytest.raises(DataError, match=rf"no scores for row {missing} \("):
        divided(tmp_path / "out", SplitSpec(), rows=pairs, scores=short)
